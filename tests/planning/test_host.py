"""The host's work in a plan: units by hand, who shares them, and throughputs from a file."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from jdkd import config as configs
from jdkd.models.dual_encoder import DualEncoder
from jdkd.planning import disk, host, plan, requests, workload
from jdkd.planning.corpus_size import CorpusSize
from jdkd.runtime import mesh as meshes
from tests.helpers import tiny, toy

SIZE = CorpusSize(1000, 90, 10, 20, 16.0, 6.0, (90, 0))


@pytest.fixture
def config():
    c = tiny.get_config('home')
    c.rounds, c.steps_per_round, c.batch_size, c.depth = 3, 4, 2, 40
    return configs.resolve(c)


@pytest.fixture
def models(config):
    model = DualEncoder(toy.TRANSFORMER, 'mean', True)  # 8 dimensions.
    return dict.fromkeys(host.roles.encoders(config), (model, {'x': np.zeros((5, 2))}))


def test_units_of_work(config, models):
    units, words = host.count(config, SIZE, models, 'tpu'), float(SIZE.passage_words().mean())
    assert units['import'] == units['index with BM25'] == 1000 * words
    # All encoders share one token store. Of each list two dark examples, by dense, tuned and the
    # student, which finds the words of the positive and a negative.
    assert units['tokenise'] == (1000 + 3 * (4 * 2 + 10) * (2 * 3 + 2)) * words
    assert units['search with BM25'] == 120 * 1000
    # dense, tuned; the student at the start, aligned, and after each of three rounds.
    assert units['index with ScaNN'] == 1000 * 8 * (2 + 5)
    assert units['search with ScaNN'] == 30 * units['index with ScaNN']
    assert units['write embeddings'] == 4 * units['index with ScaNN']
    # First stage, which is an assistant too, dense, tuned and student.
    assert units['mine'] == 3 * 100 * 4 * config.candidates.depth
    candidates = 3 * (4 * 2 + 10) * (3 + 2)
    assert units['draw lists'] == units['write records'] == candidates
    # bm25, tuned, dense score lists; the two members re-rank the first stage's passages.
    assert units['read lists'] == 3 * candidates + 30 * 40 * 2
    assert units['find hard queries'] == 2 * 90
    assert units['save checkpoints'] == 12 * 10 * 3 * 2
    stored = disk.estimate(config, SIZE, SIZE.passage_words(), models)
    assert units['checksums'] == sum(stored.values())
    assert units['write rankings'] == stored['rankings']
    assert units.keys() == host.WORK.keys()


def test_searches_of_train_queries_count_where_scann_mines(config, models):
    def searched(platform, **index):
        c = config.replace(index=config.index.replace(**index))
        units = host.count(c, SIZE, models, platform)
        return units['index with ScaNN'], units['search with ScaNN']

    built, measured = searched('tpu')
    # dense and tuned once, the student in each of three rounds.
    mined = 90 * 1000 * 8 * (2 + 3)
    assert searched('cpu') == (built, measured + mined)
    assert searched('tpu', mining='scann') == (built, measured + mined)
    assert searched('tpu', kind='exact') == searched('cpu', kind='exact') == (0, 0)
    assert searched('tpu', kind='exact', mining='scann') == (built, mined)


def test_pairs_that_a_re_ranker_scores(config, models):
    # Of each of 100 queries a positive and 20 mined passages, and in two later rounds 12 more;
    # weights are fitted to six lists of three.
    candidates = config.candidates.replace(hardest=4, scored=20, depth=12, eval_lists=7)
    counts = requests.lists_to_score(config.replace(candidates=candidates), SIZE, 'tuned')
    assert counts.once == ((30, 40), (0, 10), (100, 21), (6, 3), (200, 12))


def test_without_rounds_nothing_is_mined_drawn_or_taught(config, models):
    config = config.replace(rounds=0)
    units = host.count(config, SIZE, models, 'tpu')
    for name in ('mine', 'draw lists', 'write records', 'find hard queries', 'save checkpoints'):
        assert units[name] == 0, name
    # dense, tuned; the student at the start and aligned.
    assert units['index with ScaNN'] == 1000 * 8 * (2 + 2)
    assert requests.lists_to_score(config, SIZE, 'tuned') == requests.ListCounts((), ())


def test_assistants_that_read_passages_cut_for_alignment_are_counted(config, models):
    assert config.align.to == ('dense',) and config.train_passage_length == 12
    words = np.full(10, 20.0)
    cut = config.replace(train_passage_length=8)
    before, after = (disk.estimate(c, SIZE, words, models) for c in (config, cut))
    assert after['embeddings'] - before['embeddings'] == 1000 * 8 * 4
    assert after['tokens'] - before['tokens'] == 1000 * (2 * 8 + 8)
    more = (
        host.count(cut, SIZE, models, 'tpu')['tokenise']
        - host.count(config, SIZE, models, 'tpu')['tokenise']
    )
    assert more == pytest.approx(1000 * float(SIZE.passage_words().mean()))


def test_hours_follow_from_units_rates_and_cores(config, models, tmp_path):
    file = tmp_path / 'host.json'
    rates = {'import': 2e-3, 'tokenise': 1e-3, 'mine': 1e-2}
    file.write_text(json.dumps({'machine': 'a laptop', 'core_seconds': rates}))
    config = config.replace(plan=config.plan.replace(throughputs=str(file), cores=5))
    devices = [types.SimpleNamespace(process_index=i // 4, platform='tpu') for i in range(8)]
    planned = host.plan(config, SIZE, models, 'v5e:2x4', devices)
    assert (planned['hosts'], planned['cores'], planned['measured_on']) == (2, 5, 'a laptop')
    units = host.count(config, SIZE, models, 'tpu')
    work = {row['name']: row for row in planned['work']}
    for name, shared in (('import', 1), ('tokenise', 10), ('mine', 2)):
        assert work[name]['core_seconds'] == units[name] * rates[name]
        assert work[name]['shared'] == shared
        assert work[name]['hours'] == units[name] * rates[name] / shared / 3600
    # What the file lacks is as measured by the authors.
    assert work['measure']['core_seconds'] == units['measure'] * host.WORK['measure'].rate
    usual = host.plan(config.replace(plan=configs.resolve(tiny.get_config('h')).plan), SIZE, models,
                      'v5e:2x4', devices)  # fmt: skip
    assert usual['cores'] == host.CORES['v5e'] and usual['measured_on'] == host.MEASURED_ON


def test_the_sum_is_of_devices_and_host():
    work = {'name': 'mine', 'unit': 'passages', 'units': 1e6, 'core_seconds': 7200.0}
    work |= {'shared': 2, 'hours': 1.0}
    planned = {
        'host_work': {'hosts': 2, 'cores': 56, 'measured_on': 'a laptop', 'work': [work]},
        'host_hours': 1.0,
    }
    devices = {'device_hours': 0.5, 'chip_hours': 4.0, 'hours': 1.5}
    *_, row, machine, _, total = plan._host_lines(planned | devices)
    assert row.split() == ['mine', '1e+06', 'passages', '2', '2', '1']
    assert machine == '2 host(s) of 56 cores; throughputs of a laptop'
    assert total.startswith('1.5 hours: devices 0.5 at least (4 chip-hours')
    assert plan._host_lines(planned)[-1] == 'host: 1 hours'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'no such file; write it with `python -m benchmarks.rehearsal'),
        ('[]', 'holds no throughputs'),
        ('{"machine": "x", "core_seconds": {"import": "fast"}}', 'holds no throughputs'),
        ('{"machine": "x", "core_seconds": {"dance": 1}}', r"unknown work \['dance'\]"),
    ],
)
def test_a_bad_file_of_throughputs_is_named(tmp_path, content, message):
    file = tmp_path / 'host.json'
    if content is not None:
        file.write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        host.read_rates(str(file))


def test_parts_beside_what_is_made_of_them(config):
    words = np.full(10, 20.0)
    transient = disk.transient(config, SIZE, words)
    # 12 ids of two bytes and a length; 11 terms a passage; the rankings of train queries.
    assert transient == {'tokens': 1000 * 28, 'BM25': 16 * 11 * 1000, 'rankings': 8 * 90 * 40}


@pytest.fixture
def sketchable(tmp_path):
    """A config whose models can be sketched."""
    toy.write_model(tmp_path / 'model', DualEncoder(toy.TRANSFORMER, 'mean', True))
    return tiny.get_config(str(tmp_path))


def list_phases(config):
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    return list(workload.list_phases(config, disk.sketch_models(config), mesh, SIZE))


def test_systems_that_only_give_pseudo_labels_rank_the_train_queries(sketchable):
    c, units, searched = sketchable, [], []
    c.systems.other, c.systems.start = c.systems.bm25, c.systems.dense
    c.index.mining = 'exact'
    for c.pseudo_labels.systems in ((), ('other', 'start')):
        config = configs.resolve(c)
        work = host.count(config, SIZE, disk.sketch_models(config), 'tpu')
        units.append(work['search with BM25'])
        searched += [p.once * p.items for p in list_phases(config) if p.name == 'search']
    assert units == [120 * 1000, 2 * 120 * 1000]
    assert searched[1] - searched[0] == pytest.approx(90)


def test_the_teacher_scores_what_may_stand_in_for_positives(sketchable):
    config = configs.resolve(sketchable)
    (member, *_) = config.teacher.members
    plain, more = (
        requests.lists_to_score(config, dataclasses.replace(SIZE, unlabelled=n), member).once
        for n in (0, 7)
    )
    (added,) = set(more) - set(plain)
    assert added == (7, config.candidates.stand_ins)
    assert dataclasses.replace(SIZE, unlabelled=7).queries == SIZE.queries


def test_a_twin_is_trained_encodes_and_searches_in_every_round(sketchable):
    sketchable.index.mining = 'exact'
    counts = []
    for sketchable.twin in (False, True):
        phases = list_phases(configs.resolve(sketchable))
        counts.append({p.name: (p.once, p.per_round) for p in phases})
    alone, both = counts
    for name in ('train student', 'encode with student', 'search'):
        assert both[name] == (alone[name][0], 2 * alone[name][1]), name
    assert both['encode with dense'] == alone['encode with dense']


def test_alignment_reads_whole_passages_and_the_rounds_cut_ones(sketchable):
    c, flops = sketchable, []
    for c.train_passage_length in (12, 6):
        flops.append({p.name: p.traced.model_flops for p in list_phases(configs.resolve(c))})
    whole, cut = flops
    assert cut['align student'] == whole['align student']
    assert cut['train student'] < 0.7 * whole['train student']
