"""Losses against values computed by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jdkd.distillation import losses


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


def test_terms_without_probability_count_as_nothing():
    # The second candidate's probability is 0 in float32, and 0 log 0 = 0.
    teacher = jnp.array([0.0, -1e9, 0.0])
    value, gradient = jax.value_and_grad(losses.listwise_kl)(jnp.zeros(3), teacher)
    assert value == pytest.approx(np.log(3 / 2), abs=1e-6)
    np.testing.assert_allclose(gradient, [1 / 3 - 1 / 2, 1 / 3, 1 / 3 - 1 / 2], atol=1e-6)


def test_a_nan_is_not_hidden():
    fine, bad = jnp.array([0.0, 1.0]), jnp.array([0.0, jnp.nan])
    for student, teacher in ((fine, bad), (bad, fine)):
        assert np.isnan(losses.listwise_kl(student, teacher))


def test_the_gradient_is_the_difference_of_distributions_times_tau():
    # d/ds tau^2 KL(p || softmax(s / tau)) = tau (softmax(s / tau) - p).
    student, teacher = np.random.default_rng(4).normal(size=(2, 5))
    found = jax.grad(lambda s: losses.listwise_kl(s, jnp.array(teacher), temperature=3.0))(
        jnp.array(student)
    )
    expected = 3 * (scipy.special.softmax(student / 3) - scipy.special.softmax(teacher / 3))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_margin_mse_by_hand():
    # Student's margins 1 and 3, teacher's 2 and 1: errors -1 and 2.
    student, teacher = jnp.array([3.0, 2.0, 0.0]), jnp.array([2.0, 0.0, 1.0])
    assert losses.margin_mse(student, teacher) == pytest.approx((1 + 4) / 2)
    assert losses.margin_mse(student[:1], teacher[:1]) == 0  # Nothing beside the positive.


def test_margin_mse_ignores_a_shift_but_no_factor():
    student, teacher = jnp.array([3.0, 2.0, 0.0]), jnp.array([2.0, 0.0, 1.0])
    assert losses.margin_mse(student + 7, teacher - 4) == pytest.approx(2.5)
    assert losses.margin_mse(2 * student, 2 * teacher) == pytest.approx(10)
    assert losses.margin_mse(2 * teacher, teacher) == pytest.approx((4 + 1) / 2)


def test_margin_mse_gradient_by_hand():
    # e = (-1, 2): d/ds_0 = mean of 2e = 1, d/ds_j = -2 e_j / 2.
    student, teacher = jnp.array([3.0, 2.0, 0.0]), jnp.array([2.0, 0.0, 1.0])
    to_student, to_teacher = jax.grad(losses.margin_mse, argnums=(0, 1))(student, teacher)
    np.testing.assert_allclose(to_student, [1.0, 1.0, -2.0], rtol=1e-6)
    np.testing.assert_array_equal(to_teacher, 0)


def test_kl_of_a_list_without_candidates_is_zero_without_a_gradient():
    nobody = jnp.zeros(3, bool)
    value, gradient = jax.value_and_grad(
        lambda s: losses.listwise_kl(s, jnp.ones(3), where=nobody)
    )(jnp.array([1.0, 2.0, 3.0]))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize('distance', ['kl', 'margin_mse'])
class TestEveryDistance:
    def test_nothing_to_compare_is_zero_without_a_gradient(self, distance):
        loss = functools.partial(losses.distillation, distance=distance, temperature=1.0)
        value, gradient = jax.value_and_grad(loss)(jnp.array([3.0]), jnp.array([5.0]))
        assert value == 0 and gradient[0] == 0

    def test_bfloat16_scores_are_computed_in_float32(self, distance):
        loss = functools.partial(losses.distillation, distance=distance, temperature=1.0)
        a, b = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 8)), jnp.bfloat16)
        found = loss(a, b)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, loss(a.astype(np.float32), b.astype(np.float32)))

    def test_vmap_equals_the_batch(self, distance):
        loss = functools.partial(losses.distillation, distance=distance, temperature=2.0)
        a, b = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 8)))
        np.testing.assert_allclose(jax.vmap(loss)(a, b), loss(a, b), rtol=1e-6)


@pytest.mark.parametrize('distance', ['', 'cosine', 'mse'])
def test_unknown_distance(distance):
    with pytest.raises(ValueError, match="'kl' or 'margin_mse'"):
        losses.distillation(jnp.ones(2), jnp.ones(2), distance=distance, temperature=1.0)


def test_info_nce_by_hand():
    logits = jnp.log(jnp.array([[1.0, 2.0, 1.0], [3.0, 1.0, 4.0]]))
    found = losses.info_nce(logits, jnp.array([1, 0]))
    np.testing.assert_allclose(found, [-np.log(0.5), -np.log(3 / 8)], rtol=1e-6)


def test_info_nce_leaves_out_what_is_masked():
    logits = jnp.log(jnp.array([[1.0, 2.0, 1.0]]))
    found = losses.info_nce(logits, jnp.array([1]), where=jnp.array([[True, True, False]]))
    np.testing.assert_allclose(found, [-np.log(2 / 3)], rtol=1e-6)


def test_info_nce_pulls_the_positive_and_pushes_what_counts():
    logits = jnp.log(jnp.array([[1.0, 2.0, 1.0]]))
    where = jnp.array([[True, True, False]])
    gradient = jax.grad(lambda x: losses.info_nce(x, jnp.array([1]), where=where)[0])(logits)
    np.testing.assert_allclose(gradient, [[1 / 3, 2 / 3 - 1, 0.0]], atol=1e-6)


def test_info_nce_of_a_positive_alone_is_zero_without_a_gradient():
    where = jnp.array([[False, True, False]])
    value, gradient = jax.value_and_grad(
        lambda x: losses.info_nce(x, jnp.array([1]), where=where)[0]
    )(jnp.array([[5.0, 2.0, 9.0]]))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_info_nce_of_bfloat16_scores_is_computed_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)) * 9, jnp.bfloat16)
    found = losses.info_nce(logits, jnp.arange(3))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, losses.info_nce(np.float32(logits), jnp.arange(3)))


def test_copies_of_a_positive_and_judged_passages_are_no_negatives_wherever_they_stand():
    # Query 0's positive stands twice in its own list and first in query 1's, which is judged too.
    group, relevant = jnp.array([[10, 10, 7], [10, 5, 7]]), jnp.array([[10], [10]])
    found = losses.negatives_mask(group, relevant, jnp.zeros((2, 3), bool))
    np.testing.assert_array_equal(
        found,
        [[True, False, True, False, True, True], [False, False, True, True, True, True]],
    )


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
    # A false negative of query 0's list is none of its negatives in query 1's list either.
    np.testing.assert_array_equal(
        losses.negatives_mask(jnp.array([[10, 30], [20, 30]]), relevant[:, :1], false_negative),
        [[True, False, True, False], [True, True, True, True]],
    )
