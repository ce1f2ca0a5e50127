"""A run without labels: no label of train or D_eval is read, and what takes their place."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from jdkd import config as configs
from jdkd.algorithm import final, iterate, pairs, round_files, student
from jdkd.algorithm.teacher import spread_weights
from jdkd.commands import compare, evaluate
from jdkd.corpus import importing
from jdkd.report import finished
from jdkd.retrieval import measures
from jdkd.run import Run
from jdkd.runtime import lock, stages
from jdkd.serving import service
from tests.helpers import tiny, toy


def config_of(home):
    c = tiny.get_config(str(home))
    c.index.kind, c.rounds, c.steps_per_round, c.optimizer.warmup_steps = 'exact', 1, 2, 1
    c.collection.label_share, c.collection.eval_labels = 0.0, False
    c.collection.pseudo_queries.count = 3
    c.teacher.members, c.assistants = ('bm25', 'dense'), ('dense', 'bm25')
    c.loss.contrastive = 0.0
    return configs.resolve(c)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('unlabelled')
    tiny.write(home)
    return home


@pytest.fixture(scope='module')
def run(home):
    run = tiny.open_run(config_of(home), home / 'w')
    iterate.train(run)
    return run


def digests(workdir):
    """Digests of all stages but the import, whose inputs are the files."""
    found = {p.parent.relative_to(workdir): p for p in workdir.rglob(stages.MANIFEST)}
    return {
        str(k): json.loads(p.read_text())['digest']
        for k, p in found.items()
        if k.name != 'collection'
    }


@pytest.mark.slow
def test_no_label_of_train_or_d_eval_is_read(run, home):
    for split in ('train', 'dev'):
        file = home / 'toy/qrels' / f'{split}.tsv'
        header, *rows = file.read_text().splitlines()
        passages = [row.split('\t')[1] for row in rows][::-1]
        rows = [
            '\t'.join((row.split('\t')[0], passage, '1'))
            for row, passage in zip(rows, passages, strict=True)
        ]
        file.write_text('\n'.join([header, *rows]))
    again = tiny.open_run(config_of(home), home / 'again')
    assert again.collection.fingerprint == run.collection.fingerprint
    iterate.train(again)
    first = digests(run.workdir)
    assert 'rounds/00/train' in first and 'test' in first
    assert digests(again.workdir) == first


@pytest.mark.slow
def test_teacher_and_assistants_have_the_spread_of_the_config(run):
    fitted, config = round_files.read_fitted(run), run.config
    raw = {
        name: np.load(run.workdir / f'rounds/00/fitted/{name}.00000.npy')
        for name in ('bm25', 'dense')
    }
    assert raw['bm25'].shape == (len(run.held_out), config.candidates.stand_ins)
    for name, scale in fitted['scales'].items():
        assert (scale * raw[name]).std(axis=1).mean() == pytest.approx(config.spread, rel=1e-5)
    teacher = sum(weight * raw[name] for name, weight in fitted['teacher'].items())
    assert teacher.std(axis=1).mean() == pytest.approx(config.spread, rel=1e-5)


@pytest.mark.slow
def test_the_teachers_best_passage_stands_in_on_d_eval_and_in_training(run):
    weights = round_files.read_fitted(run)['teacher']
    for split, queries in (('train', run.train), ('eval', run.held_out)):
        assert not queries.is_labelled.any()
        found = round_files.positives(run, split)
        assert [len(rows) for rows in found] == [1] * len(queries)
        drawn = round_files.load_lists(run, 0, split)
        np.testing.assert_array_equal(drawn.passages[:, 0], np.concatenate(found)[drawn.query])
    assert set(weights) == {'bm25', 'dense'}
    qrels = round_files.eval_qrels(run)
    assert list(qrels) == list(run.held_out.ids)
    assert len(run.train) == 4 + 3  # With the pseudo-queries.


@pytest.mark.slow
@pytest.mark.parametrize('log', [True, False])
def test_a_corpus_that_nobody_judged_trains_a_student(home, tmp_path, log):
    shutil.copytree(home / 'toy', tmp_path / 'toy')
    shutil.rmtree(tmp_path / 'toy/qrels')
    if not log:
        (tmp_path / 'toy/queries.jsonl').unlink()
    c = config_of(home)
    options = {'unjudged': 'train'}
    spec = c.collection.replace(source=f'beir:{tmp_path}/toy', options=options, test_split=None)
    made = spec.pseudo_queries.replace(count=12)
    own = tiny.open_run(c.replace(collection=spec.replace(pseudo_queries=made)), tmp_path / 'w')
    configs.save(own.workdir, own.config)
    report = iterate.train(own)
    assert len(report['rounds']) == (1 if log else 0)
    assert report['final'] == ('student_00' if log else 'student_aligned')
    assert report['test'] == report['significance'] == {} and not report['costs']['sizes']
    assert set(report['costs']['systems']) >= {'bm25', 'dense', 'student'}
    assert ('teacher_rerank' in report['costs']['systems']) == log
    assert not (own.workdir / 'test').exists() and not (own.workdir / 'run.trec').exists()
    page = (own.workdir / 'report.html').read_text()
    assert 'There are no test queries' in page and ('Round 0' in page) == log
    card = (own.workdir / 'student/README.md').read_text()
    assert 'There were no test queries' in card and '## Cost' in card
    assert final.load(student.load(own)).name == report['final']
    assert [w['what'] for w in report['warnings']].count('no_rounds') == (not log)
    with pytest.raises(ValueError, match='has no test queries .collection.test_split=None'):
        evaluate.measure_student(own)
    with pytest.raises(ValueError, match='has no test queries .collection.test_split=None'):
        pairs.write(own, tmp_path / 'pairs.jsonl', ['test'])
    if not log:
        with pytest.raises(ValueError, match='no round is trained that would read scores'):
            pairs.write(own, tmp_path / 'pairs.jsonl', ['train', 'test'])
    assert finished.read(own.workdir).report['test'] == {}
    with pytest.raises(ValueError, match='was not tested'):
        compare.write_comparison(own.workdir, shutil.copytree(own.workdir, tmp_path / 'other'))


@pytest.mark.slow
def test_a_student_that_is_only_aligned_is_tested_without_a_teacher(home, tmp_path):
    config = config_of(home).replace(rounds=0)
    config = config.replace(teacher=config.teacher.replace(members=('bm25', 'tuned')))
    own = tiny.open_run(config, tmp_path / 'w')
    report = iterate.train(own)
    assert report['final'] == 'student_aligned' and report['rounds'] == []
    assert set(report['test']) >= {'bm25', 'dense', 'student'}
    assert not (own.workdir / 'systems/tuned').exists()  # Which would teach alone.
    assert 'teacher_rerank' not in {**report['test'], **report['costs']['systems']}
    assert report['test']['student'] == report['test']['student_aligned']
    assert report['costs']['sizes'] and (own.workdir / 'run.trec').exists()
    shown, left_out = service.searchers(own)
    assert list(shown) == ['bm25'] and not left_out


@pytest.mark.slow
def test_another_test_split_is_tested_anew_and_none_leaves_no_test(home, tmp_path):
    config, reports = config_of(home).replace(rounds=0), []
    for split in ('test', 'train', None):
        spec = config.collection.replace(train_split='dev', eval_split='other', test_split=split)
        made = spec.pseudo_queries.replace(count=0)
        spec = spec.replace(pseudo_queries=made)
        own = tiny.open_run(config.replace(collection=spec), tmp_path / 'w')
        with lock.hold(tmp_path / 'w', update=True):
            reports.append(iterate.train(own))
        ranked = (own.workdir / 'run.trec').read_text().split()[::6] if split else []
        assert set(ranked) == set(own.test.ids)
        if split:
            assert set(measures.load(own.workdir / 'test', 'student')) == set(own.test.ids)
    first, second, last = reports
    assert first['costs'] != second['costs']  # Timed again.
    assert last['test'] == {} and not last['costs']['sizes']
    assert not (tmp_path / 'w/test').exists() and not (tmp_path / 'w/run.trec').exists()
    assert {'test', 'run.trec'} <= {p.name for p in (tmp_path / 'w/replaced/0002').iterdir()}


def test_weights_of_equal_spread_by_hand():
    first, second = np.array([[0.0, 2.0], [3.0, 1.0]]), np.array([[10.0, 30.0], [0.0, 20.0]])
    # Deviations of 1 and 10; the sum of first / 1 and second / 10 has 2 and 0, in the mean 1.
    assert spread_weights([first, second], 3.0) == pytest.approx([3.0, 0.3])
    assert spread_weights([first], 3.0) == pytest.approx([3.0])
    # Constant scores tell nothing.
    assert spread_weights([first, np.ones((2, 2))], 3.0) == pytest.approx([3.0, 0.0])
    assert spread_weights([np.ones((2, 2))], 3.0) == [0.0]


@pytest.mark.parametrize('splits', [('test',), ('test', 'train')])
def test_labels_are_dropped_before_d_eval_is_held_out(tmp_path, splits):
    toy.write_collection(tmp_path / 'toy', passages=30, splits=splits)
    c = tiny.get_config(str(tmp_path))
    c.collection.label_share, c.collection.eval_labels = 0.0, False
    c.collection.pseudo_queries.count = 6
    collection = importing.load_collection(configs.resolve(c), tmp_path / 'w')
    assert not {'train', 'dev'} & set(collection.qrels) and collection.labelled('test')
    made = [q for q in collection.queries['dev'] if q.startswith('pseudo:')]
    # D_eval has pseudo-queries only where there is no other train query.
    assert bool(made) == ('train' not in splits)
    assert len(collection.queries['train']) + len(collection.queries['dev']) == (
        6 + 4 * ('train' in splits)
    )
    run = Run(configs.resolve(c), tmp_path / 'w', None, collection)
    assert run.eval_judges == ('train' in splits)

    def rounds():
        return dataclasses.replace(run, config=configs.resolve(c)).num_rounds

    assert rounds() == (c.rounds if run.eval_judges else 0)
    c.align.epochs = 0.0  # Without alignment there is nothing to stay with.
    assert rounds() == c.rounds
    c.align.epochs, c.final = 1.0, 'last'
    assert rounds() == c.rounds
    c.final, c.collection.pseudo_queries.file = 'best', 'of_a_generator.jsonl'
    assert rounds() == c.rounds
