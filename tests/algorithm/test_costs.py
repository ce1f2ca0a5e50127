"""What quality costs: the student's measures at each size by hand, and speeds of every system."""

import itertools
import types

import jax
import numpy as np
import pytest

from jdkd.algorithm import costs, student
from jdkd.algorithm.teacher import Teacher
from jdkd.config import Config
from jdkd.retrieval import exact
from jdkd.retrieval.quantization import Binary, Int8
from jdkd.retrieval.vectors import Vectors
from jdkd.systems import measuring
from jdkd.systems.build import build
from jdkd.systems.dual import DualEncoderSystem
from tests.helpers import tables, tiny


@pytest.mark.parametrize(('store', 'kind'), [('int8', Int8), ('binary', Binary)])
def test_embeddings_are_rounded_as_the_files_of_a_store_are(monkeypatch, store, kind):
    monkeypatch.setattr(costs, 'FILE_ROWS', 100)
    array = np.random.default_rng(0).normal(size=(250, 16)).astype(np.float32)
    stored = np.concatenate([kind.of(array[i : i + 100])[:] for i in range(0, 250, 100)])
    sized = costs._Sized(Vectors((array[:130], array[130:])), 16, store, normalize=False)
    for rows in (slice(0, 250), slice(50, 210), slice(99, 101), slice(240, 999), slice(0, 0)):
        np.testing.assert_array_equal(sized[rows], stored[rows])


def test_sizes_are_measured_and_systems_timed(tmp_path):
    tiny.write(tmp_path)
    c = tiny.get_config(str(tmp_path))
    c.student.dims = (4,)
    c.measures, c.depth = ('MRR@10', 'MAP'), 400  # In which random rankings differ.
    c.index.kind = 'exact'
    run = tiny.open_run(c, tmp_path / 'w')
    bm25, dense = build(run, 'bm25'), build(run, 'dense')
    own = student.load(run).initial
    systems = {'bm25': bm25, 'dense': dense}
    teacher = Teacher([bm25, dense], {'bm25': 1.0, 'dense': 2.0})
    found = costs.measure(run, own, systems, teacher)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    queries, passages = own.queries(run.test)[:], own.passages[:]
    narrow = unit(queries[:, :4]), unit(passages[:, :4])
    expected = {
        (8, 'float32'): (32, queries, passages),
        (8, 'int8'): (8, queries, Int8.of(passages)[:]),
        (8, 'binary'): (1, queries, Binary.of(passages)[:]),
        (4, 'float32'): (16, *narrow),
        (4, 'int8'): (4, narrow[0], Int8.of(narrow[1])[:]),
    }
    assert [(s['width'], s['store']) for s in found['sizes']] == list(expected)
    for size, (count, rows, vectors) in zip(found['sizes'], expected.values(), strict=True):
        ranking = exact.ExactIndex(vectors).search(rows, run.config.depth)
        assert size['bytes_per_passage'] == count
        assert size['test'] == measuring.measure(run, ranking, run.test).means
    assert len({tuple(size['test'].values()) for size in found['sizes']}) == 5
    assert not any('_exact' in system.__dict__ for system in (dense, own))  # Nothing stays there.
    speeds = found['systems']
    assert set(speeds) == {'bm25', 'dense', 'student', 'teacher_rerank'}
    assert all(value > 0 for own in speeds.values() for value in own.values())
    size = sum(x.size for x in jax.tree.leaves(own.encoder.params))
    assert speeds['student']['parameters'] == speeds['teacher_rerank']['parameters'] == size
    assert 'parameters' not in speeds['bm25'] and speeds['bm25']['bytes_per_passage'] > 1
    assert speeds['student'].keys() == speeds['dense'].keys() > speeds['bm25'].keys()
    # Timed once.
    assert costs.measure(run, own, systems, teacher) == found


def test_costs_of_a_dual_encoder_are_of_both_its_towers_and_all_its_files(tmp_path, monkeypatch):
    run = tables.make_run(tmp_path, Config(), 10, {'test': [0]})
    encoder = types.SimpleNamespace(
        params={'w': np.ones((2, 3)), 'b': np.ones(3)},
        query_tokens=lambda run, queries: queries.split,
        passage_tokens=lambda run: 'passages',
    )
    speeds = {('test', 'query'): 3.0, ('passages', 'passage'): 4.0}
    monkeypatch.setattr(costs, '_milliseconds', lambda answer, questions: 5.0)
    monkeypatch.setattr(
        costs, '_texts_per_second', lambda run, system, tokens, tower: speeds[tokens, tower]
    )
    for name, size in {'embeddings-passages': 40, 'index': 10, 'embeddings-test': 99}.items():

        def build(out, size=size):
            (out / '0').mkdir()
            (out / '0/file').write_bytes(bytes(size // 2))
            (out / 'file').write_bytes(bytes(size - size // 2))

        run.stage(f'systems/a/{name}', {}, build)
    assert costs._costs(run, DualEncoderSystem('a', 'd', None, run, encoder)) == {
        'milliseconds_per_search': 5.0,
        'bytes_per_passage': 5.0,
        'parameters': 9,
        'queries_per_second': 3.0,
        'passages_per_second': 4.0,
    }


def test_the_median_time_of_an_answer_is_in_milliseconds(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(costs.time, 'perf_counter', lambda: clock.now)
    monkeypatch.setattr(costs.distributed, 'from_primary', lambda decide, name: decide())

    def answer(question):
        clock.now += float(question)

    # Those of 1, 2 and 3 seconds come in time, of which there are five.
    assert costs._milliseconds(answer, ['1', '2', '3', '4']) == 2000.0
    # At most 20 are asked.
    questions = ['0.125'] * 20 + ['9'] * 30
    assert costs._milliseconds(answer, questions) == 125.0


@pytest.mark.parametrize(('count', 'rows'), [(1001, (436, 564)), (200, (36, 164)), (7, (0, 7))])
def test_an_encoder_is_timed_on_texts_amid_the_store(monkeypatch, count, rows):
    embedded, clock = [], itertools.count()

    def embed(model, params, tokens, *, rows, **_):
        embedded.append((model, params, rows.start, rows.stop))

    monkeypatch.setattr(costs.encode, 'embed', embed)
    # Each look at the clock takes a second more than the one before.
    monkeypatch.setattr(costs.time, 'perf_counter', lambda: sum(range(next(clock))))
    encoder = types.SimpleNamespace(model='model', params={'query': {'w': 1}, 'passage': {'w': 2}})
    system = types.SimpleNamespace(name='a', encoder=encoder)
    run = types.SimpleNamespace(mesh=None)
    found = costs._texts_per_second(run, system, range(count), 'query')
    assert embedded == [('model', {'w': 1}, *rows)] * 2
    # The first time does not count: the second takes from the third look to the fourth.
    assert found == (rows[1] - rows[0]) / 2


@pytest.mark.parametrize(('enough', 'timed'), [(True, 1), (False, 4)])
def test_the_first_process_says_how_many_questions_all_time(monkeypatch, enough, timed):
    monkeypatch.setattr(costs.distributed, 'from_primary', lambda decide, name: enough)
    asked = []
    assert costs._milliseconds(asked.append, ['bbb', 'a', 'cc', 'dddd']) > 0
    assert asked == ['a', 'dddd', *['bbb', 'a', 'cc', 'dddd'][:timed]]
