"""Losses against values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdkd.distill import losses


def test_listwise_kl_by_hand():
    # p = (2/3, 1/3), q = (1/2, 1/2).
    teacher = jnp.log(jnp.array([2.0, 1.0]))
    expected = 2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(2 / 3)
    assert losses.listwise_kl(jnp.zeros(2), teacher) == pytest.approx(expected, abs=1e-6)


def test_listwise_kl_temperature_squares():
    # At tau = 2 the teacher's logits halve: p = softmax(ln 2, 0), and the result grows by 4.
    teacher = jnp.array([2 * np.log(2.0), 0.0])
    expected = 4 * (2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(2 / 3))
    found = losses.listwise_kl(jnp.zeros(2), teacher, temperature=2.0)
    assert found == pytest.approx(expected, abs=1e-6)


def test_listwise_kl_ignores_a_shift_of_either():
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 5))
    np.testing.assert_allclose(
        losses.listwise_kl(a + 7, b - 3), losses.listwise_kl(a, b), atol=1e-5
    )


def test_listwise_kl_is_zero_at_equality_and_never_negative():
    a, b = jax.random.normal(jax.random.key(1), (2, 64, 6)) * 10
    np.testing.assert_allclose(losses.listwise_kl(a, a), 0, atol=1e-6)
    assert (losses.listwise_kl(a, b) >= 0).all()


def test_masked_candidates_do_not_count_in_either_list():
    student, teacher = jnp.array([1.0, 0.0, 99.0]), jnp.array([0.0, 1.0, -99.0])
    where = jnp.array([True, True, False])
    masked = losses.listwise_kl(student, teacher, where=where)
    np.testing.assert_allclose(masked, losses.listwise_kl(student[:2], teacher[:2]), rtol=1e-6)
    gradient = jax.grad(lambda s: losses.listwise_kl(s, teacher, where=where))(student)
    assert gradient[2] == 0 and jnp.isfinite(gradient).all()


def test_a_list_of_one_has_no_gradient():
    gradient = jax.grad(lambda s: losses.listwise_kl(s, jnp.array([5.0])))(jnp.array([3.0]))
    assert gradient[0] == 0


def test_extreme_logits_stay_finite():
    student, teacher = jnp.array([1e4, -1e4]), jnp.array([-1e4, 1e4])
    value, gradient = jax.value_and_grad(losses.listwise_kl)(student, teacher)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_no_gradient_reaches_the_teacher():
    gradient = jax.grad(lambda t: losses.listwise_kl(jnp.array([1.0, 0.0]), t))(jnp.ones(2))
    np.testing.assert_array_equal(gradient, 0)


def test_bfloat16_scores_are_computed_in_float32():
    a, b = jax.random.normal(jax.random.key(2), (2, 4, 8)).astype(jnp.bfloat16)
    assert losses.listwise_kl(a, b).dtype == jnp.float32


def test_vmap_equals_the_batch():
    a, b = jax.random.normal(jax.random.key(3), (2, 4, 8))
    np.testing.assert_allclose(
        jax.vmap(losses.listwise_kl)(a, b), losses.listwise_kl(a, b), rtol=1e-6
    )


def test_info_nce_by_hand():
    logits = jnp.log(jnp.array([[1.0, 2.0, 1.0], [3.0, 1.0, 4.0]]))
    found = losses.info_nce(logits, jnp.array([1, 0]))
    np.testing.assert_allclose(found, [-np.log(0.5), -np.log(3 / 8)], rtol=1e-6)


def test_info_nce_leaves_out_what_is_masked():
    logits = jnp.log(jnp.array([[1.0, 2.0, 1.0]]))
    found = losses.info_nce(logits, jnp.array([1]), where=jnp.array([[True, True, False]]))
    np.testing.assert_allclose(found, [-np.log(2 / 3)], rtol=1e-6)


def test_negatives_mask():
    # Query 0 has positive group 10; query 1 has 20, and 30 is judged relevant for it as well.
    group = jnp.array([[10, 30], [20, 10]])
    relevant = jnp.array([[10, -1], [20, 30]])
    false_negative = jnp.array([[False, True], [False, False]])
    np.testing.assert_array_equal(
        losses.negatives_mask(group, relevant, false_negative),
        [
            [True, False, True, False],  # 30 is its false negative, 10 again its positive
            [True, False, True, True],  # 30 is relevant for it; 10 is not
        ],
    )
