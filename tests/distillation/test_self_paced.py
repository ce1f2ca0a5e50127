"""The self-paced mask against values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdkd.distillation import self_paced


def test_confidence_is_the_positives_probability():
    teacher = jnp.log(jnp.array([[3.0, 1.0, 0.0 + 1e-9], [1.0, 1.0, 2.0]]))
    np.testing.assert_allclose(self_paced.confidence(teacher), [0.75, 0.25], atol=1e-6)


def test_hard_mask_keeps_the_most_confident_half():
    confidence = jnp.array([0.1, 0.9, 0.4, 0.8])
    kept, threshold = self_paced.weights(confidence, jnp.array(0.5))
    np.testing.assert_array_equal(kept, [0, 1, 1, 1])  # never fewer than the share asks for
    assert threshold == pytest.approx(0.4)
    kept, _ = self_paced.weights(confidence, jnp.array(1.0))
    np.testing.assert_array_equal(kept, 1)


def test_linear_weights():
    # gamma = 0.2, so age lambda = 0.8: v = 1 - (1 - c) / 0.8.
    kept, threshold = self_paced.weights(
        jnp.array([0.2, 0.6, 1.0]), jnp.array(0.9), weighting='linear'
    )
    assert threshold == pytest.approx(0.2)
    np.testing.assert_allclose(kept, [0.0, 0.5, 1.0], atol=1e-6)
    everything, _ = self_paced.weights(jnp.full(3, 0.2), jnp.array(1.0), weighting='linear')
    np.testing.assert_array_equal(everything, np.ones(3))


def entropy(teacher):
    p = np.asarray(jax.nn.softmax(teacher, axis=-1))
    return -(p * np.log(np.maximum(p, 1e-30))).sum(axis=-1)


def test_lists_that_are_already_one_hot_are_not_the_only_ones_kept():
    # As measured on real lists: two of three have a margin of several logits.
    margins = np.concatenate([np.linspace(5, 12, 40), np.linspace(-1, 4, 20)])
    teacher = jnp.array(np.stack([margins, np.zeros(60), np.zeros(60)], axis=1), jnp.float32)
    confidence = self_paced.confidence(teacher)

    def kept_and_dropped(**options):
        kept = np.asarray(self_paced.weights(confidence, 0.5, **options)[0]) > 0
        return entropy(teacher)[kept].mean(), entropy(teacher)[~kept].mean(), kept

    kept, dropped, _ = kept_and_dropped(cap=1.0)
    assert kept < 0.02 < dropped
    kept, dropped, chosen = kept_and_dropped(cap=0.95)
    assert kept > 2 * dropped
    # Half of those below the cap: the surer ones.
    below = np.asarray(confidence) <= 0.95
    lowest = np.sort(np.asarray(confidence)[below])[(below.sum() - 1) // 2]
    np.testing.assert_array_equal(chosen, below & (np.asarray(confidence) >= lowest))


@pytest.mark.parametrize('weighting', ['hard', 'linear'])
def test_the_cap_by_hand(weighting):
    confidence = jnp.array([0.99, 0.2, 0.6, 0.8])
    found, threshold = self_paced.weights(confidence, 0.75, cap=0.9, weighting=weighting)
    assert threshold == pytest.approx(0.2)
    expected = {'hard': [0, 1, 1, 1], 'linear': [0, 0, 0.5, 0.75]}[weighting]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # It does not count where it would leave nothing, or where pacing is off.
    alone, _ = self_paced.weights(confidence[:1], 0.75, cap=0.9, weighting='hard')
    np.testing.assert_array_equal(alone, [1])
    off, _ = self_paced.weights(confidence, 1.0, cap=0.9, weighting=weighting)
    np.testing.assert_array_equal(off, [1, 1, 1, 1])


def test_no_gradient_flows_through_the_mask():
    def total(confidence):
        return self_paced.weights(confidence, jnp.array(0.5), weighting='linear')[0].sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.array([0.1, 0.5, 0.9])), 0)


def test_weighted_mean_of_nothing_is_zero():
    assert self_paced.weighted_mean(jnp.array([3.0, 4.0]), jnp.zeros(2)) == 0
    assert self_paced.weighted_mean(jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0])) == 3


def test_unknown_weighting():
    with pytest.raises(ValueError, match="'hard' or 'linear'"):
        self_paced.weights(jnp.ones(2), jnp.array(0.5), weighting='soft')
