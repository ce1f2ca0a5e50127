"""A teacher whose scores were made elsewhere, for some pairs of train and D_eval alone."""

import json
import types

import numpy as np
import pytest

from jdkd import config as configs
from jdkd.algorithm import coverage, iterate, pairs
from jdkd.algorithm.round_files import load_lists, positives
from jdkd.algorithm.teacher import Teacher, rerank
from jdkd.configs import common
from jdkd.lists.candidates import Lists
from jdkd.run import Run
from jdkd.systems.build import build
from tests.helpers import tiny

pytestmark = pytest.mark.slow

TOP = 25  # Passages of BM25 that were scored.


def get_config(home):
    """The tiny config with a teacher that is a file of scores."""
    c = tiny.get_config(str(home))
    c.systems.llm = common.scores(f'{home}/llm.jsonl')
    c.teacher.members = ('llm',)
    c.assistants = ('dense', 'tuned')
    c.dark.reinforced = c.dark.noisy = 0
    c.index.kind, c.rounds = 'exact', 2
    return c


def scores_of(run, queries, rows, passages):
    """Lines of JSON with the scores of an encoder."""
    lists = Lists.from_originals(np.full(len(passages), rows, np.int32), passages[:, None])
    scores = 20 * build(run, 'dense').list_scorer(queries)(lists)[:, 0]
    ids = run.collection.passage_ids
    return [
        json.dumps({'query_id': queries.ids[rows], 'passage_id': ids[int(p)], 'score': float(s)})
        for p, s in zip(passages, scores, strict=True)
    ]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A finished run; the file has the top passages of BM25 and positives of all but one query."""
    home = tmp_path_factory.mktemp('imported')
    tiny.write(home)
    run = tiny.open_run(configs.resolve(get_config(home)), home / 'w')
    lacks = int(np.flatnonzero(run.train.is_labelled)[0])  # No positive of this one is scored.
    lines = []
    for queries in (run.train, run.held_out):
        ranking, _ = build(run, 'bm25').rank(queries)
        for row in range(len(queries)):
            passages = ranking.passages[row, :TOP]
            own = queries.positives[row]
            if queries is run.train and row == lacks:
                passages = passages[~np.isin(passages, own)]
            else:
                passages = np.union1d(passages, own)
            lines += scores_of(run, queries, row, passages)
    (home / 'llm.jsonl').write_text('\n'.join(lines))
    report = iterate.train(run)
    return types.SimpleNamespace(run=run, report=report, lacks=lacks, llm=build(run, 'llm'))


def test_lists_hold_scored_pairs_alone(trained):
    run = trained.run
    for i in range(2):
        for split, queries in (('train', run.train), ('eval', run.held_out)):
            lists = load_lists(run, i, split)
            assert trained.llm.covers(queries, lists).all()
            assert np.isfinite(trained.llm.list_scorer(queries)(lists)).all()
            if split == 'train':
                assert trained.lacks not in lists.query
    first = load_lists(run, 0, 'train')
    assert set(first.query) == set(range(len(run.train))) - {trained.lacks}


def test_a_scored_passage_stands_in_for_a_missing_label(trained):
    run = trained.run
    row = int(np.flatnonzero(~run.train.is_labelled)[0])
    (stand_in,) = positives(run)[row]
    passages, scores = trained.llm.scores.of(run.train.ids[row])
    assert stand_in in passages
    # Ten of the retrievers' best are asked; the best of all may not be among them.
    assert scores[passages == stand_in] > np.median(scores)


def test_the_report_has_no_row_for_a_teacher_without_scores_of_the_test_queries(trained):
    run, report = trained.run, trained.report
    assert set(report['test']) == {
        'bm25', 'dense', 'tuned', 'student_init', 'student_aligned', 'student_on_dense', 'student',
    }  # fmt: skip
    assert report['teacher_eval']['R@40'] > 0
    (warning,) = [w for w in report['warnings'] if w['what'] == 'coverage']
    assert 'llm.jsonl has scores for 0 of the 4 queries of split' in warning['message']
    assert 'no row' in warning['message']
    for name in ('report.html', 'student/README.md'):
        assert 'teacher_rerank' not in (run.workdir / name).read_text()


def test_reranking_keeps_the_first_stage_behind_what_the_teacher_has_scored(trained, tmp_path):
    run = trained.run
    bm25 = build(run, 'bm25')
    first = bm25.rank(run.test)[0].passages[0]
    lines = [
        json.dumps(
            {'query_id': run.test.ids[0], 'passage_id': run.collection.passage_ids[p], 'score': s}
        )
        for p, s in [(int(first[3]), 1.0), (int(first[7]), 5.0)]
    ]
    (tmp_path / 'llm.jsonl').write_text('\n'.join(lines))
    changed = run.config.replace(
        systems={**run.config.systems, 'other': configs.ScoresSpec(path=f'{tmp_path}/llm.jsonl')}
    )
    other = build(Run(changed, run.workdir, run.mesh, run.collection), 'other')
    ranking = rerank(run, 'other', Teacher([other], {'other': 2.0}), bm25, run.test)
    rest = np.delete(first, [3, 7])
    np.testing.assert_array_equal(ranking.passages[0], [first[7], first[3], *rest])
    np.testing.assert_array_equal(ranking.scores[0, :2], [10, 2])
    assert (np.diff(ranking.scores[0]) < 0).all() and np.isfinite(ranking.scores).all()
    np.testing.assert_array_equal(ranking.passages[1:], bm25.rank(run.test)[0].passages[1:])


def test_pairs_go_out_and_their_scores_come_back(tmp_path):
    tiny.write(tmp_path)
    config = configs.resolve(get_config(tmp_path))
    run = tiny.open_run(config, tmp_path / 'w')
    out = tmp_path / 'pairs.jsonl'
    count = pairs.write(run, out, ['train', 'eval', 'test'])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    keys = {(line['query_id'], line['passage_id']) for line in lines}
    assert len(keys) == len(lines) == count
    for line in lines:
        row = run.collection.id_index[line['passage_id']]
        assert line['text'] == run.passages.texts[row] and 'title' not in line
    for queries in (run.train, run.held_out):
        for query, text, best in zip(queries.ids, queries.texts, queries.best, strict=True):
            assert {(query, run.collection.passage_ids[int(p)]) for p in best} <= keys
            assert {line['query'] for line in lines if line['query_id'] == query} == {text}
    # Half of the scores come back: the other half is left to score.
    scores = [
        {'query_id': line['query_id'], 'passage_id': line['passage_id'], 'score': i % 7}
        for i, line in enumerate(lines)
    ]
    file = tmp_path / 'llm.jsonl'
    file.write_text('\n'.join(map(json.dumps, scores[::2])))
    again = tiny.open_run(config, tmp_path / 'again')
    assert pairs.write(again, out, ['train', 'eval', 'test']) == count // 2
    left = [json.loads(line) for line in out.read_text().splitlines()]
    assert left == lines[1::2]
    # With all of them every query is used, and all that the first stage finds is re-ranked.
    file.write_text('\n'.join(map(json.dumps, scores)))
    mined = Run(config, tmp_path / 'all', run.mesh, run.collection)
    llm, bm25 = build(mined, 'llm'), build(mined, 'bm25')
    assert coverage.check(mined) == []
    for queries in (run.train, run.held_out):
        best = coverage.covered_rows([llm], queries, queries.best)
        top = bm25.rank(queries)[0].passages[:, : config.candidates.depth]
        assert best.all()
        positive = [np.isin(rows, own) for rows, own in zip(top, queries.positives, strict=True)]
        lists = Lists.from_originals(np.arange(len(top)), top)
        same_text = np.array([len(np.unique(run.collection.group[r])) == len(r) for r in top])
        covered = llm.covers(queries, lists) | np.array(positive)
        assert covered[same_text].all()
    tested = Lists.from_originals(np.arange(len(run.test)), bm25.rank(run.test)[0].passages)
    np.testing.assert_array_equal(llm.covers(run.test, tested), tested.passages >= 0)
