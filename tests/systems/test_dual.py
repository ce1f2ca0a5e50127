"""Dual-encoders over embeddings that a test gives: their searches, scores, stages and errors."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from jdkd.config import Config, IndexConfig
from jdkd.lists.candidates import Lists
from jdkd.lists.slices import SlicedTexts
from jdkd.retrieval import vectors
from jdkd.retrieval.exact import ExactIndex
from jdkd.retrieval.ranking import Ranking
from jdkd.runtime import mesh as meshes
from jdkd.systems import dual
from jdkd.systems.cross import CrossEncoderSystem
from tests.helpers import tables

QUERIES, PASSAGES, DIM, DEPTH = 300, 40, 4, 5
RNG = np.random.default_rng(0)
TABLES = {
    'passages': RNG.normal(size=(PASSAGES, DIM)).astype(np.float32),
    'first tokens': RNG.normal(size=(PASSAGES, DIM)).astype(np.float32),
    'train': RNG.normal(size=(QUERIES, DIM)).astype(np.float32),
    'test': RNG.normal(size=(3, DIM)).astype(np.float32),
    'dark': RNG.normal(size=(4, DIM)).astype(np.float32),
}
# Stands for an encoder: its "tokens" are the name of a table, or a question's vector.
ENCODER = types.SimpleNamespace(
    spec=types.SimpleNamespace(passage_length=8),
    passage_tokens=lambda run, length=8: 'first tokens' if length < 8 else 'passages',
    query_tokens=lambda run, queries: queries.split,
    dark_tokens=lambda run, lists: 'dark',
    encode_queries=lambda texts: np.array([*map(eval_vector, texts)], np.float32),
)


def eval_vector(question):
    return [float(x) for x in question.split()]


class Embedded(dual.DualEncoderSystem):
    """Embeds texts by looking them up; `calls` are the names and towers of what was asked."""

    calls = ()

    def embed(self, tokens, desc, *, tower='passage', name='row {}'.format):
        found = TABLES[tokens] if isinstance(tokens, str) else tokens
        Embedded.calls += (tower, *map(name, range(len(found))))
        return found

    def write_embeddings(self, directory, tokens, kind, ids, *, tower='passage'):
        assert len(ids) == len(TABLES[tokens])
        Embedded.calls += (tower, kind)
        np.save(directory / 'vectors-00000.npy', TABLES[tokens])


class Asymmetric(dual.AsymmetricSystem, Embedded):
    pass


@pytest.fixture
def system(tmp_path):
    Embedded.calls = ()
    index = IndexConfig(kind='exact', recall=0.9)
    positives = {'train': [0] * QUERIES, 'test': [0] * 3}
    run = tables.make_run(tmp_path, Config(depth=DEPTH, index=index), PASSAGES, positives)
    run = dataclasses.replace(run, mesh=meshes.make_mesh(devices=jax.devices()[:1]))
    return Embedded('a', 'digest', None, run, ENCODER)


def test_train_queries_alone_are_searched_with_the_recall_of_the_config(system, monkeypatch):
    targets = []

    class Spoilt(dual.ExactIndex):
        """Where it may miss some, it misses the best passage of all queries from 255 on."""

        def search(self, queries, depth, *, recall_target=None):
            targets.append(recall_target)
            found = super().search(queries, depth + 1)
            rows, scores = found.passages[:, :depth], found.scores[:, :depth]
            if recall_target is not None:
                rows[255:] = found.passages[255:, 1:]
                scores[255:] = found.scores[255:, 1:]
            return Ranking(rows, scores)

    monkeypatch.setattr(dual, 'ExactIndex', Spoilt)
    ranking, facts = system.rank(system.run.train)
    # The second one is what the first 256 queries are compared with.
    assert targets == [0.9, None]
    assert facts == {'index_recall': pytest.approx(1 - 1 / DEPTH / 256)}
    exact = ExactIndex(TABLES['passages']).search(TABLES['train'], DEPTH)
    np.testing.assert_array_equal(ranking.passages[:255], exact.passages[:255])
    ranking, facts = system.rank(system.run.test)
    assert targets[2:] == [None] and facts == {'index_recall': 1.0}


@pytest.fixture
def scann(monkeypatch):
    """What was built and searched by a stand-in for ScaNN."""
    built, searched = [], []

    def build(out, passages, config):
        built.append(len(passages))
        (out / 'index').touch()

    def search(queries, passages, depth, config, directory):
        searched.append((config.kind, directory))
        return ExactIndex(passages[:]).search(queries, depth)

    monkeypatch.setattr(dual.approximate, 'is_exact', lambda config, count: config.kind == 'exact')
    monkeypatch.setattr(dual.approximate, 'scann', object())
    monkeypatch.setattr(dual.approximate, 'build', build)
    monkeypatch.setattr(dual.approximate, 'search', search)
    return built, searched


def with_index(system, **fields):
    config = system.run.config
    config = config.replace(index=config.index.replace(**fields))
    return dataclasses.replace(system, run=dataclasses.replace(system.run, config=config))


def test_an_index_to_mine_with_is_a_stage_like_any_other(system, scann):
    built, searched = scann
    system = with_index(system, kind='exact', mining='scann')
    system.rank(system.run.train), system.rank(system.run.test)
    assert built == [PASSAGES]
    assert searched == [('scann', system.run.workdir / 'systems/a/index')]


@pytest.mark.parametrize(('mining', 'mined'), [('auto', 1), ('exact', 0)])
def test_an_index_is_built_once_and_searched(system, monkeypatch, scann, mining, mined):
    built, searched = scann
    system = with_index(system, kind='scann', mining=mining)
    run = system.run
    system.rank(run.train), system.rank(run.test)
    home = run.workdir / 'systems/a/index'
    assert built == [PASSAGES] and searched == [('scann', home)] * (mined + 1)
    # An asymmetric system has the passages and the index of the other.
    other = dataclasses.replace(system, name='b', digest='other')
    asymmetric = Asymmetric.of('c', other, system)
    asymmetric.rank(run.test)
    assert built == [PASSAGES] and searched[-1] == ('scann', home)
    assert asymmetric.passages is system.passages
    assert len({s.digest for s in (asymmetric, other, system)}) == 3


def test_lists_batches_and_questions_have_the_scores_of_their_embeddings(system):
    test, run = TABLES['test'], system.run
    every = test @ TABLES['passages'].T
    slices = np.zeros((4, 3), np.int64)
    dark = SlicedTexts(slices, np.ones((2, 2), np.int64))
    rows = np.array([[1, 5, 7], [2, 0, 9]])
    scores = system.list_scorer(run.test)(Lists(np.array([2, 0]), rows, dark))
    expected = np.take_along_axis(every[[2, 0]], rows, axis=1)
    np.testing.assert_allclose(scores[:, :3], expected, rtol=1e-5)
    by_dark = np.einsum('md,mnd->mn', test[[2, 0]], TABLES['dark'].reshape(2, 2, DIM))
    np.testing.assert_allclose(scores[:, 3:], by_dark, rtol=1e-5)
    # Whoever embeds dark examples can say which one is not finite.
    assert Embedded.calls[-5:] == (
        'passage',
        *(f"dark example {i} of query '{query}'" for query in ('test2', 'test0') for i in (0, 1)),
    )
    plain = system.list_scorer(run.test)(Lists.from_originals(np.array([2, 0]), rows))
    np.testing.assert_array_equal(plain, scores[:, :3])
    batch = system.batch_scorer(run.test)(np.array([2, 0]), np.array([5, 1, 1]))
    np.testing.assert_allclose(batch, every[[2, 0]][:, [5, 1, 1]], rtol=1e-5)
    question = ' '.join(map(str, test[1]))
    found = system.search(question, 4)
    best = np.argsort(-every[1])[:4]
    np.testing.assert_array_equal(found.passages, [best])
    np.testing.assert_allclose(system.score(question, best[::-1]), every[1, best[::-1]], rtol=1e-5)
    assert Embedded.calls[-4:] == ('query', 'row 0') * 2


@pytest.mark.parametrize(
    ('store', 'expected'),
    [('float32', 'float32'), ('bfloat16', 'bfloat16'), ('int8', 'float32'), ('binary', 'float32')],
)
def test_embeddings_of_queries_are_never_quantised(system, store, expected):
    index = system.run.config.index.replace(store=store)
    run = dataclasses.replace(system.run, config=system.run.config.replace(index=index))
    system = dataclasses.replace(system, run=run)
    assert (system._store('passage'), system._store('query')) == (store, expected)


def test_embeddings_are_kept_for_the_system_and_the_collection_alone(system):
    passages, queries = system.passages, system.queries(system.run.test)
    assert Embedded.calls == ('passage', 'passages', 'query', 'test')
    same = dataclasses.replace(system)
    np.testing.assert_array_equal(same.passages[:], passages[:])
    np.testing.assert_array_equal(same.queries(system.run.test)[:], queries[:])
    assert len(Embedded.calls) == 4
    with pytest.raises(ValueError, match=r'other inputs \(system differ\)'):
        dataclasses.replace(system, digest='other').queries(system.run.test)
    collection = dataclasses.replace(system.run.collection, name='other')
    run = dataclasses.replace(system.run, collection=collection)
    with pytest.raises(ValueError, match=r'\(collection differ\)'):
        dataclasses.replace(system, run=run).queries(run.test)


def test_passages_that_are_cut_have_embeddings_of_their_own(system):
    whole, cut = system.passages, system.cut_passages(7)
    np.testing.assert_array_equal(cut[:], TABLES['first tokens'])
    assert Embedded.calls == ('passage', 'passages', 'passage', 'passages-7')
    assert system.cut_passages(8) is system.cut_passages(9) is whole
    np.testing.assert_array_equal(system.cut_passages(7)[:], cut[:])
    assert len(Embedded.calls) == 4


def test_embedding_goes_on_after_an_interrupt(system, monkeypatch):
    def write(out):
        np.save(out / 'vectors-00000.npy', TABLES['test'])

    def stop(self, out, *args, **kwargs):
        write(out)
        raise KeyboardInterrupt

    def finish(self, out, *args, **kwargs):
        assert (out / 'vectors-00000.npy').exists()

    monkeypatch.setattr(Embedded, 'write_embeddings', stop)
    with pytest.raises(KeyboardInterrupt):
        system.queries(system.run.test)
    monkeypatch.setattr(Embedded, 'write_embeddings', finish)
    np.testing.assert_array_equal(system.queries(system.run.test)[:], TABLES['test'])


def test_only_dual_encoders_have_embeddings(system):
    assert dual.as_dual(system) is system
    with pytest.raises(TypeError, match="system 'x' is no dual-encoder and has no embeddings"):
        dual.as_dual(CrossEncoderSystem('x', 'x', None, system.run, None))
    assert isinstance(system.passages, vectors.Vectors)
