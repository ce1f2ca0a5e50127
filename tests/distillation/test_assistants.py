"""Fusion, distances and selection against values computed by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdkd.distillation import assistants


def test_subsets_of_three():
    assert assistants.choice_names(['a', 'b', 'c'], 'subsets') == [
        'a', 'b', 'c', 'a+b', 'a+c', 'b+c', 'a+b+c',
    ]  # fmt: skip
    np.testing.assert_allclose(assistants.fusion_weights(3, 'subsets').sum(axis=1), 1)


@pytest.mark.parametrize(
    ('fusion', 'num_assistants', 'choices'),
    [
        ('none', 3, 3),
        ('mean', 3, 4),
        ('mean', 1, 1),
        ('subsets', 4, 15),
        ('subsets', 5, 6),
        ('subsets', 1, 1),
        ('rrf', 4, 15),
        ('rrf', 5, 6),
        ('rrf', 1, 1),
    ],
)
def test_number_of_choices(fusion, num_assistants, choices):
    assert len(assistants.fusion_weights(num_assistants, fusion)) == choices


def test_unknown_fusion():
    with pytest.raises(ValueError, match='use one of none, mean, subsets, rrf'):
        assistants.fusion_weights(3, 'average')


def test_fusion_averages_distributions_not_logits():
    # (1/2, 1/2) and (9/10, 1/10) average to (7/10, 3/10); their logits would give 3/4.
    logits = jnp.log(jnp.array([[[0.5, 0.5]], [[0.9, 0.1]]]))
    fused = assistants.fuse(logits, assistants.fusion_weights(2, 'mean'), fusion='mean')
    expected = [[0.5, 0.5], [0.9, 0.1], [0.7, 0.3]]
    np.testing.assert_allclose(jax.nn.softmax(fused[:, 0]), expected, atol=1e-6)


def test_an_assistant_alone_keeps_its_logits_at_any_temperature():
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    rows = assistants.fusion_weights(2, 'none')
    found = assistants.fuse(jnp.array(logits), rows, fusion='none', temperature=5.0)
    np.testing.assert_allclose(found - found[..., :1], logits - logits[..., :1], atol=1e-5)


@pytest.mark.parametrize('fusion', ['subsets', 'rrf'])
def test_the_selected_fusion_is_that_of_all_choices(fusion):
    logits = jnp.array(np.random.default_rng(0).normal(size=(3, 5, 4)), jnp.bfloat16)
    rows = assistants.fusion_weights(3, fusion)
    every = assistants.fuse(logits, rows, fusion=fusion, temperature=2.0)
    selected = jnp.array([0, 6, 3, 3, 5])
    found = assistants.fuse_selected(logits, rows, selected, fusion=fusion, temperature=2.0)
    assert found.dtype == every.dtype == jnp.float32
    np.testing.assert_allclose(found, every[selected, jnp.arange(5)], atol=1e-5)
    # One alone keeps its distribution, ranks or not.
    own = logits[0, 0].astype(jnp.float32)
    np.testing.assert_allclose(found[0] - found[0, 0], own - own[0], atol=1e-5)


HALVES = np.full((2, 1), 0.5, np.float32)


def test_reciprocal_ranks_by_hand():
    # Ranks 1 2 3 and 2 1 3: sums 1/61 + 1/62 twice and 2/63, of mean spread (1 + 2) sqrt(2/3) / 2.
    pool = jnp.array([[3.0, 2.0, 1.0], [4.0, 6.0, 2.0]])
    sums = np.array([1 / 61 + 1 / 62, 1 / 61 + 1 / 62, 2 / 63])
    expected = (sums - sums.mean()) / sums.std() * (1 + 2) * np.sqrt(2 / 3) / 2
    np.testing.assert_allclose(assistants.reciprocal_ranks(pool, HALVES), expected, rtol=1e-3)


def test_reciprocal_ranks_are_as_sharp_as_their_members_and_see_ranks_alone():
    pool = np.random.default_rng(1).normal(size=(2, 8, 16)).astype(np.float32)
    weights = HALVES[..., None]
    found = assistants.reciprocal_ranks(jnp.array(pool), weights)
    np.testing.assert_allclose(found.std(axis=-1), pool.std(axis=-1).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.mean(axis=-1), 0, atol=1e-5)
    cubed = assistants.reciprocal_ranks(jnp.array(pool**3), weights)
    ratio = (pool**3).std(axis=-1).mean(axis=0) / pool.std(axis=-1).mean(axis=0)
    np.testing.assert_allclose(cubed, found * ratio[:, None], rtol=1e-3)


def test_reciprocal_ranks_of_equal_scores_do_not_depend_on_their_place():
    # As BM25 scores a list that shares no word with the query but for one passage.
    pool = jnp.array([[0.0, 0.0, 0.0, 5.0], [1.0, 1.0, 1.0, 2.0]])
    found = assistants.reciprocal_ranks(pool, HALVES)
    assert found[0] == found[1] == found[2] < found[3]


@pytest.mark.parametrize(
    'pool',
    [
        [[1.0], [2.0]],
        [[1.0, 2.0], [2.0, 1.0]],
        [[3.0, 3.0]] * 2,
        # Sums of the same terms in other orders differ by rounding.
        [[1.0, 2.0, 3.0], [2.0, 3.0, 1.0], [3.0, 1.0, 2.0]],
    ],
)
def test_reciprocal_ranks_that_cancel_out_are_uniform(pool):
    weights = np.full((len(pool), 1), 1 / len(pool), np.float32)
    np.testing.assert_array_equal(assistants.reciprocal_ranks(jnp.array(pool), weights), 0)


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
    teacher, *noise = 3 * np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
    pool = jnp.stack([teacher + noise[0], teacher, teacher + noise[1]])
    choices = assistants.fuse(pool, assistants.fusion_weights(3, 'none'), fusion='none')
    found = assistants.distances(choices, teacher, distance=distance, temperature=1.0)
    np.testing.assert_allclose(found[1], 0, atol=1e-6)
    np.testing.assert_array_equal(assistants.select(found), 1)


@pytest.mark.parametrize('distance', ['kl', 'footrule', 'rbo'])
def test_lists_of_one_and_pools_of_one(distance):
    teacher, pool = jnp.ones((3, 1)), jnp.zeros((1, 3, 1))
    choices = assistants.fuse(pool, assistants.fusion_weights(1, 'subsets'), fusion='subsets')
    found = assistants.distances(choices, teacher, distance=distance, temperature=1.0)
    np.testing.assert_allclose(found, np.zeros((1, 3)), atol=1e-7)
    np.testing.assert_array_equal(assistants.select(found, per='batch'), 0)
    np.testing.assert_array_equal(assistants.select(found, per='query'), 0)


@pytest.mark.parametrize('distance', ['kl', 'footrule', 'rbo'])
def test_distances_of_bfloat16_scores_are_float32(distance):
    rng = np.random.default_rng(6)
    choices = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.bfloat16)
    teacher = jnp.asarray(rng.normal(size=(3, 5)), jnp.bfloat16)
    found = assistants.distances(choices, teacher, distance=distance, temperature=1.0)
    full = assistants.distances(
        np.float32(choices), jnp.float32(teacher), distance=distance, temperature=1.0
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, full, atol=1e-6)


DISTANCES = {'footrule': assistants.footrule, 'rbo': assistants.rank_biased_distance}


def test_equal_scores_by_hand():
    # Ranks 1 2 3 4, and 1.5 1.5 3 4.
    strict, tied = jnp.array([4.0, 3.0, 2.0, 1.0]), jnp.array([5.0, 5.0, 1.0, 0.0])
    assert assistants.footrule(strict, tied) == pytest.approx((0.5 + 0.5) / 8)
    # Half of the two orders of the equal ones overlap at depth 1; all do from depth 2 on.
    norm = sum(0.5**d for d in range(4))
    found = assistants.rank_biased_distance(strict, tied, persistence=0.5)
    assert found == pytest.approx(0.5 / norm, abs=1e-6)
    assert assistants.footrule(tied, tied) == 0


@pytest.mark.parametrize('distance', DISTANCES)
def test_rank_distances_do_not_depend_on_the_order_of_the_list(distance):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (2, 50, 6)).astype(np.float32)  # Many equal scores.
    found = DISTANCES[distance](jnp.array(a), jnp.array(b))
    for order in (rng.permutation(6) for _ in range(5)):
        again = DISTANCES[distance](jnp.array(a[:, order]), jnp.array(b[:, order]))
        np.testing.assert_allclose(again, found, atol=1e-6)


@pytest.mark.parametrize('distance', DISTANCES)
def test_a_constant_assistant_gains_nothing_from_positives_that_come_first(distance):
    """A teacher whose best is the positive, at index 0, in any order of the others."""
    orders = np.array([(0, *p) for p in itertools.permutations(range(1, 5))])
    teacher = -orders.astype(np.float32)
    found = DISTANCES[distance](jnp.zeros(teacher.shape), jnp.array(teacher))
    every = -np.array(list(itertools.permutations(range(5))), np.float32)
    others = DISTANCES[distance](jnp.array(every), jnp.array(teacher[:1]) * jnp.ones((120, 1)))
    # Footrule: |3 - 1| + |3 - 2| + ... of 12. Overlap: the mean over all orders.
    expected = 0.5 if distance == 'footrule' else np.mean(others)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # One who only knows the positive is closer to the teacher.
    informed = DISTANCES[distance](jnp.array([1.0, 0, 0, 0, 0]) * jnp.ones((24, 1)), teacher)
    assert (informed < found - 0.1).all()


def test_equal_scores_overlap_as_much_as_their_orders_do_on_average():
    a, b = np.array([3.0, 3.0, 1.0, 3.0, 0.0]), np.array([2.0, 5.0, 5.0, 0.0, 0.0])

    def orders(scores):
        """All strict scores that break the ties."""
        for noise in itertools.permutations(np.arange(5) / 10):
            yield scores + noise

    pairs = np.array([(x, y) for x in orders(a) for y in orders(b)][::7], np.float32)
    every = assistants.rank_biased_distance(jnp.array(pairs[:, 0]), jnp.array(pairs[:, 1]))
    found = assistants.rank_biased_distance(jnp.array(a), jnp.array(b))
    assert found == pytest.approx(float(every.mean()), abs=2e-3)


def test_a_smaller_persistence_weighs_the_top():
    teacher = jnp.array([[4.0, 3.0, 2.0, 1.0]])
    pool = jnp.array([[[4.0, 3.0, 1.0, 2.0]], [[3.0, 4.0, 2.0, 1.0]]])
    found = {
        p: assistants.distances(pool, teacher, distance='rbo', temperature=1.0, persistence=p)
        for p in (0.1, 0.9)
    }
    norm = 1 + 0.1 + 0.01 + 0.001
    np.testing.assert_allclose(found[0.1][:, 0], [0.01 / 3 / norm, 1 / norm], atol=1e-6)
    assert found[0.9][0, 0] > 10 * found[0.1][0, 0]


def test_fusing_can_come_closer_than_any_original():
    teacher = jnp.log(jnp.array([[0.4, 0.4, 0.2]]))
    pool = jnp.log(jnp.array([[[0.7, 0.1, 0.2]], [[0.1, 0.7, 0.2]]]))
    weights = assistants.fusion_weights(2, 'subsets')
    found = assistants.distances(
        assistants.fuse(pool, weights, fusion='subsets'), teacher, distance='kl', temperature=1.0
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
