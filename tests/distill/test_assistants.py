"""Fusion, distances and selection against values computed by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdkd.distill import assistants


def test_subsets_of_three():
    assert assistants.choice_names(['a', 'b', 'c'], 'subsets') == [
        'a', 'b', 'c', 'a+b', 'a+c', 'b+c', 'a+b+c',
    ]  # fmt: skip
    np.testing.assert_allclose(assistants.fusion_weights(3, 'subsets').sum(axis=1), 1)


@pytest.mark.parametrize(
    ('fusion', 'num_assistants', 'choices'),
    [('none', 3, 3), ('mean', 3, 4), ('subsets', 4, 15), ('subsets', 5, 6), ('subsets', 1, 1)],
)
def test_number_of_choices(fusion, num_assistants, choices):
    assert len(assistants.fusion_weights(num_assistants, fusion)) == choices


def test_unknown_fusion():
    with pytest.raises(ValueError, match="'mean' or 'subsets'"):
        assistants.fusion_weights(3, 'average')


def test_fusion_averages_distributions_not_logits():
    # (1/2, 1/2) and (9/10, 1/10) average to (7/10, 3/10); their logits would give 3/4.
    logits = jnp.log(jnp.array([[[0.5, 0.5]], [[0.9, 0.1]]]))
    fused = jnp.exp(assistants.fuse(logits, assistants.fusion_weights(2, 'mean')))
    np.testing.assert_allclose(fused[:, 0], [[0.5, 0.5], [0.9, 0.1], [0.7, 0.3]], atol=1e-6)


def test_the_selected_fusion_is_that_of_all_choices():
    logits = jax.random.normal(jax.random.key(0), (3, 5, 4))
    weights = assistants.fusion_weights(3, 'subsets')
    every = assistants.fuse(logits, weights, temperature=2.0)
    selected = jnp.array([0, 6, 3, 3, 5])
    found = assistants.fuse_selected(logits, weights, selected, temperature=2.0)
    np.testing.assert_allclose(found, every[selected, jnp.arange(5)], atol=1e-6)


def test_ranks_break_ties_by_order():
    np.testing.assert_array_equal(assistants.ranks(jnp.array([1.0, 3.0, 1.0, 2.0])), [2, 0, 3, 1])


def test_footrule_by_hand():
    a = jnp.array([4.0, 3.0, 2.0, 1.0])
    assert assistants.footrule(a, a) == 0
    assert assistants.footrule(a, -a) == 1  # 3 + 1 + 1 + 3 = 8, the maximum floor(16 / 2)
    swapped = jnp.array([3.0, 4.0, 2.0, 1.0])
    assert assistants.footrule(a, swapped) == pytest.approx(2 / 8)
    assert assistants.footrule(jnp.array([1.0]), jnp.array([9.0])) == 0


def test_rank_biased_distance_equals_its_definition():
    rng = np.random.default_rng(0)
    a, b = rng.permutation(8), rng.permutation(8)  # passages, best first
    overlap, norm, p = 0.0, 0.0, 0.9
    for d in range(1, 9):
        overlap += p ** (d - 1) * len(set(a[:d]) & set(b[:d])) / d
        norm += p ** (d - 1)
    scores_a, scores_b = np.empty(8), np.empty(8)
    scores_a[a], scores_b[b] = -np.arange(8), -np.arange(8)
    found = assistants.rank_biased_distance(jnp.array(scores_a), jnp.array(scores_b))
    assert found == pytest.approx(1 - overlap / norm, abs=1e-6)


@pytest.mark.parametrize('distance', ['kl', 'footrule', 'rbo'])
def test_the_teacher_itself_is_the_closest(distance):
    teacher = jax.random.normal(jax.random.key(0), (5, 6))
    noise = jax.random.normal(jax.random.key(1), (2, 5, 6)) * 3
    pool = jnp.stack([teacher + noise[0], teacher, teacher + noise[1]])
    log_choices = assistants.fuse(pool, assistants.fusion_weights(3, 'none'))
    found = assistants.distances(log_choices, teacher, distance=distance, temperature=1.0)
    np.testing.assert_allclose(found[1], 0, atol=1e-6)
    np.testing.assert_array_equal(assistants.select(found), 1)


def test_fusing_can_come_closer_than_any_original():
    teacher = jnp.log(jnp.array([[0.4, 0.4, 0.2]]))
    pool = jnp.log(jnp.array([[[0.7, 0.1, 0.2]], [[0.1, 0.7, 0.2]]]))
    weights = assistants.fusion_weights(2, 'subsets')
    found = assistants.distances(
        assistants.fuse(pool, weights), teacher, distance='kl', temperature=1.0
    )
    assert assistants.choice_names(['a', 'b'], 'subsets')[int(jnp.argmin(found))] == 'a+b'


def test_select_per_batch_and_per_query():
    found = jnp.array([[1.0, 5.0], [2.0, 2.0]])
    np.testing.assert_array_equal(assistants.select(found, per='batch'), [1, 1])
    np.testing.assert_array_equal(assistants.select(found, per='query'), [0, 1])
    np.testing.assert_array_equal(assistants.select(jnp.ones((3, 2))), [0, 0])  # ties: the first


def test_selection_is_the_same_in_any_order_of_queries():
    found = np.random.default_rng(0).random((4, 6)).astype(np.float32)
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 97):
        shuffled = assistants.select(jnp.array(found[:, list(order)]))
        np.testing.assert_array_equal(shuffled, assistants.select(jnp.array(found)))
