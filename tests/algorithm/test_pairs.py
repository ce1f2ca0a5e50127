"""Pairs that go out to be scored: which, in what order, and with what text."""

import dataclasses
import json

import numpy as np
import pytest

from jdkd.algorithm import pairs
from jdkd.config import (
    BM25Spec,
    CandidatesConfig,
    Config,
    EncoderSpec,
    FineTuningConfig,
    ScoresSpec,
    TeacherConfig,
)
from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.run import Run
from tests.helpers import tables

PASSAGES = 6
# Best first: of the first query 5, 4, ...; of the second 0, 1, ...
SCORES = [np.arange(PASSAGES), -np.arange(PASSAGES)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose first stage ranks by SCORES, and whose student finds passage 2 first."""
    ids = [f'p{i}' for i in range(PASSAGES)]
    passages = Passages.from_columns(
        ids, ['', '', 'Title', '', '', ''], [f'text é{i}' for i in ids]
    )
    queries = {s: {f'{s}{i}': f'{s} {i}' for i in range(2)} for s in ('train', 'dev', 'test')}
    qrels = {s: {f'{s}0': {'p0': 1}, f'{s}1': {'p3': 1}} for s in queries}
    config = Config(
        systems={'first': BM25Spec(), 'llm': ScoresSpec(path=str(tmp_path / 'llm.trec'))},
        first_stage='first',
        teacher=TeacherConfig(members=('llm',)),
        assistants=('llm',),
        candidates=CandidatesConfig(depth=2),
        depth=3,
    )
    run = Run(config, tmp_path / 'w', None, Collection('c', passages, queries, qrels))
    built = []

    def build(run, name):
        built.append(name)
        return tables.make_system(run, name, SCORES)

    own = np.zeros((2, PASSAGES))
    own[:, 2] = 1.0
    monkeypatch.setattr(pairs, 'build', build)
    monkeypatch.setattr(pairs.student, 'load', lambda run: type('M', (), {'start': 'encoder'}))
    monkeypatch.setattr(
        pairs, 'align', lambda run, model, targets: tables.make_system(run, 'm', own)
    )
    run.__dict__['built'] = built
    return run


def write(run, *splits):
    """The lines that are written for some splits, as {query: [passage]}, and their number."""
    out = run.workdir.parent / 'out/pairs.jsonl'
    count = pairs.write(run, out, splits)
    lines = [json.loads(line) for line in out.read_text(encoding='utf-8').splitlines()]
    found = {}
    for line in lines:
        found.setdefault(line['query_id'], []).append(line['passage_id'])
    assert count == len(lines)
    return found, lines


@pytest.mark.parametrize(
    ('content', 'is_ours'),
    [
        ('', True),
        ('{"query_id": "a", "query": "x", "passage_id": "p", "text": "t"}\n', True),
        ('{"query_id": "a", "query": "x", "passage_id": "p", "title": "t", "text": "t"}\n', True),
        ('{"query_id": "a", "query": "x", "passage_id": "p", "text": "t", "score": 1}\n', False),
        ('{"_id": "p", "text": "t"}\n', False),
        ('[1]\n', False),
        ('a Q0 p 1 2.0 x\n', False),
    ],
)
def test_only_a_file_of_pairs_is_replaced(tmp_path, content, is_ours):
    pairs.check_output(tmp_path / 'new.jsonl')
    (tmp_path / 'there').write_text(content)
    if is_ours:
        pairs.check_output(tmp_path / 'there')
        return
    with pytest.raises(FileExistsError, match='there exists and is no file of pairs; give another'):
        pairs.check_output(tmp_path / 'there')
    with pytest.raises(FileExistsError, match='is no file of pairs'):
        pairs.check_output(tmp_path)


def test_positives_and_mined_passages_of_train_and_eval_and_the_top_of_test(run):
    found, lines = write(run, 'train', 'eval', 'test')
    # The positive, then the two best of the first stage and of the student, each once.
    mined = ['p0', 'p5', 'p2', 'p4'], ['p3', 'p0', 'p2', 'p1']
    assert {q: set(p) for q, p in found.items() if 'test' not in q} == {
        f'{split}{i}': set(mined[i]) for split in ('train', 'dev') for i in range(2)
    }
    assert found['train0'][0] == 'p0' and found['dev1'][0] == 'p3'
    assert found['test0'] == ['p5', 'p4', 'p3'] and found['test1'] == ['p0', 'p1', 'p2']
    assert all(len(set(p)) == len(p) for p in found.values())
    assert set(run.built) == {'first'}  # The file of the other is yet to be made.
    with_title = next(line for line in lines if line['passage_id'] == 'p2')
    assert with_title == {
        **{'query_id': 'train0', 'query': 'train 0'},
        **{'passage_id': 'p2', 'title': 'Title', 'text': 'text ép2'},
    }
    assert 'title' not in lines[0]
    assert 'é' in (run.workdir.parent / 'out/pairs.jsonl').read_text(encoding='utf-8')


def test_no_miner_takes_the_place_of_a_first_stage_without_a_file(run):
    candidates = run.config.candidates.replace(retrievers=('first',))
    config = run.config.replace(first_stage='llm', candidates=candidates)
    write(dataclasses.replace(run, config=config), 'train', 'test')
    assert run.built == ['first', 'llm']  # Who has no scores is asked, and says so.


def test_of_test_queries_alone_nothing_is_mined(run, monkeypatch):
    monkeypatch.setattr(pairs, 'align', None)
    assert set(write(run, 'test')[0]) == {'test0', 'test1'} and run.built == ['first']


def test_a_first_stage_that_is_fine_tuned_knows_the_pseudo_labels(run, monkeypatch):
    asked = []
    monkeypatch.setattr(pairs.pseudo_labels, 'label', lambda run: asked.append(run) or run)
    write(run, 'test')
    assert not asked
    tuned = EncoderSpec(train=FineTuningConfig(steps=1))
    config = run.config.replace(systems={**run.config.systems, 'first': tuned})
    write(dataclasses.replace(run, config=config), 'test')
    assert len(asked) == 1


def test_pairs_that_have_a_score_are_left_out(run, tmp_path, caplog):
    (tmp_path / 'llm.trec').write_text('test0 Q0 p4 1 9 x\ntest1 Q0 p5 1 9 x\n')
    caplog.set_level('INFO')
    found, _ = write(run, 'test')
    assert found == {'test0': ['p5', 'p3'], 'test1': ['p0', 'p1', 'p2']}
    assert 'have all of them' not in caplog.text
    lines = [f'test{q} Q0 p{p} 1 {p} x\n' for q in range(2) for p in range(PASSAGES)]
    (tmp_path / 'llm.trec').write_text(''.join(lines))
    fresh = Run(run.config, tmp_path / 'again', None, run.collection)
    assert write(fresh, 'test') == ({}, [])
    assert 'the files of llm have all of them' in caplog.text


def test_a_scored_pool_asks_for_the_first_mined_passages(run):
    candidates = CandidatesConfig(depth=2, hardest=1, scored=1)
    fewer = Run(run.config.replace(candidates=candidates), run.workdir, None, run.collection)
    found, _ = write(fewer, 'train')
    assert found == {'train0': ['p0', 'p5'], 'train1': ['p3', 'p0']}
