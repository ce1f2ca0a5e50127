"""Formats of run files: told by what the columns hold, named, or refused where they are unclear."""

import numpy as np
import pytest
import pytrec_eval

from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.corpus.sources import base
from jdkd.retrieval import measures, run_formats, trec

IDS = [f'p{i}' for i in range(8)]
QUERIES = {'a': 'x', 'b': 'y', '7': 'z'}
COLLECTION = Collection('c', Passages.from_columns(IDS, [''] * 8, ['x'] * 8), {'test': QUERIES}, {})
# Best first; the judged passages lead, so that any other order has lower measures.
RUN = {
    'a': {'p3': 9.5, 'p1': 4.0, 'p0': 0.25, 'p2': -1.0},
    'b': {'p2': 3.0, 'p7': 2.5, 'p4': 1.0},
    '7': {'p5': 12.0, 'p6': 11.5},
}
QRELS = {'a': {'p3': 3, 'p1': 1}, 'b': {'p2': 2, 'p7': 1}, '7': {'p5': 1}}


def write(path, line, sort=True, header=''):
    lines = []
    for query, scores in RUN.items():
        ranked = sorted(scores, key=lambda p: -scores[p])
        for passage in ranked if sort else sorted(scores):
            rank, score = ranked.index(passage) + 1, scores[passage]
            lines.append(line.format(q=query, p=passage, r=rank, s=score, i=int(4 * score + 8)))
    path.write_text(header + '\n'.join(lines) + '\n')


def read(path, format=None, on_error=base.raise_error):
    scores = trec.read(path, COLLECTION, on_error, format=format)
    found = {}
    for query in scores.queries:
        rows, values = scores.of(query)
        found[query] = trec.sort_scores({IDS[r]: v for r, v in zip(rows, values, strict=True)})
    return found


def evaluated(run):
    keys = {'nDCG@10': 'ndcg_cut_10', 'MAP': 'map', 'MRR': 'recip_rank', 'R@1': 'recall_1'}
    wanted = {'ndcg_cut.10', 'map', 'recip_rank', 'recall.1'}
    theirs = pytrec_eval.RelevanceEvaluator(QRELS, wanted).evaluate(run)
    return {q: {name: v[key] for name, key in keys.items()} for q, v in theirs.items()}


TOLD = {
    'TREC': '{q} Q0 {p} {r} {s} tag',
    'TREC with words after the tag': '{q} Q0 {p} {r} {s} my run of today',
    'TREC with tabs': '{q}\tQ0\t{p}\t{r}\t{s}\tbm25 k1 0.9',
    'TREC with stale ranks': '{q} Q0 {p} 0 {s} tag',
    'TREC with other iterations': '{q} 1 {p} {r} {s} tag',
    'TREC without a tag': '{q} Q0 {p} {r} {s}',
    'TREC without a rank': '{q} Q0 {p} {s} tag',
    'Q0 and a score': '{q}\tQ0\t{p}\t{s}',
    'ranks of MS MARCO': '{q}\t{p}\t{r}',
    'ColBERT': '{q}\t{p}\t{r}\t{s}',
    'ColBERT with whole-number scores': '{q}\t{p}\t{r}\t{i}',
    'ColBERT with spaces': '{q} {p} {r} {s}',
    'ColBERT with a tag': '{q} {p} {r} {s} colbert',
    'score before rank': '{q}\t{p}\t{s}\t{r}',
    'whole-number score before rank': '{q}\t{p}\t{i}\t{r}',
    'scores': '{q}\t{p}\t{s}',
    'scores with a tag': '{q} {p} {s} dense',
    'whole-number scores': '{q}\t{p}\t{i}',
    'top 1000': '{q}\t{p}\twhat is it\tsome text of {p}',
    'top 1000 of numbers': '{q}\t{p}\t1984\ttext {p}',
}


@pytest.mark.parametrize('line', TOLD.values(), ids=TOLD)
def test_a_run_measures_what_trec_eval_gives_whatever_its_columns(tmp_path, line):
    write(tmp_path / 'run', line)
    found = read(tmp_path / 'run')
    assert {q: list(ranked) for q, ranked in found.items()} == {q: list(r) for q, r in RUN.items()}
    measured = measures.measure(found, QRELS, ['nDCG@10', 'MAP', 'MRR', 'R@1'])
    assert measured.per_query == evaluated(RUN)
    assert measured.means['nDCG@10'] == 1


@pytest.mark.parametrize('name', ['TREC', 'ColBERT', 'score before rank', 'scores'])
def test_the_order_of_the_file_does_not_matter_where_there_are_scores(tmp_path, name):
    write(tmp_path / 'run', TOLD[name], sort=False)
    assert read(tmp_path / 'run') == RUN


HEADERS = {
    'qid\tpid\trank\n': '{q}\t{p}\t{r}',
    'qid\tpid\trank\tscore\n': '{q}\t{p}\t{r}\t{s}',
    'query_id\tdoc_id\tscore\n': '{q}\t{p}\t{i}',  # Whole numbers, but named.
    'query-id\tcorpus-id\tscore\n': '{q}\t{p}\t{s}',
    'score,rank\n'.replace(',', '\t'): None,
    'topic\titer\tdocno\trank\tsim\trun_id\n': '{q}\tQ0\t{p}\t{r}\t{s}\tx y',
    'qid\tpid\tquery\tpassage\n': '{q}\t{p}\twhat is it\tsome text',
    'passage_id query_id score\n': '{p} {q} {s}',
    'query id\tpassage id\tscore\n': '{q}\t{p}\t{s}',
    'qid\tdocno\trank\tscore\tquery\n': '{q}\t{p}\t{r}\t{s}\twhat is it',  # PyTerrier's.
    'query\tqid\tdocno\tscore\n': 'what is it\t{q}\t{p}\t{s}',
    'qid\tpid\trank \n': '{q}\t{p}\t{r}.0',
}


@pytest.mark.parametrize(('header', 'line'), [x for x in HEADERS.items() if x[1]])
def test_a_header_row_is_no_line_and_names_the_columns(tmp_path, header, line):
    write(tmp_path / 'run', line, header=header)
    found = read(tmp_path / 'run')
    assert {q: list(ranked) for q, ranked in found.items()} == {q: list(r) for q, r in RUN.items()}


UNCLEAR = {
    'ranks in reverse, or scores': 'a\tp0\t3\na\tp1\t2\na\tp2\t1\n',
    'whole numbers in any order': 'a\tp0\t40\na\tp1\t95\na\tp2\t12\n',
    'ranks that pandas wrote': 'a\tp0\t1.0\na\tp1\t2.0\nb\tp1\t1.0\n',
    'two ids of passages': 'qid\tdocid\tdocno\tscore\na\t0\tp0\t2.5\n',
    'two scores': 'qid pid relevance score\na p0 1 2.5\n',
    'ranks with gaps': 'a\tp0\t1\na\tp1\t3\na\tp2\t7\n',
    'judgements': 'a\tp0\t1\na\tp1\t0\nb\tp1\t1\n',
    'grades of a language model': 'a p0 3\na p1 0\na p2 3\nb p1 2\n',
    'two columns that count': 'a p0 1 1\na p1 2 2\n',
    'distances': 'a p0 1 0.25\na p1 2 0.5\n',
    'judgements of TREC': 'a 0 p0 1\na 0 p1 0\nb 0 p1 2\n',
    'judgements with Q0': 'a Q0 p0 1\na Q0 p1 0\n',
}


@pytest.mark.parametrize('text', UNCLEAR.values(), ids=UNCLEAR)
def test_what_may_be_read_in_two_ways_is_refused_unless_it_is_named(tmp_path, text):
    (tmp_path / 'run').write_text(text)
    with pytest.raises(ValueError, match=r'run:1: .*name the columns in a first row, such as'):
        read(tmp_path / 'run')


def test_a_named_format_is_followed(tmp_path):
    (tmp_path / 'run').write_text(UNCLEAR['ranks in reverse, or scores'])
    assert read(tmp_path / 'run', 'query passage rank')['a'] == {'p2': -1, 'p1': -2, 'p0': -3}
    assert read(tmp_path / 'run', 'query passage score')['a'] == {'p0': 3, 'p1': 2, 'p2': 1}
    (tmp_path / 'run').write_text('qid\tscore\tpid\na\t2\tp1\na\t4\tp0\n')
    assert read(tmp_path / 'run', 'query score passage')['a'] == {'p0': 4, 'p1': 2}
    (tmp_path / 'run').write_text('a p1\na p0\n')
    assert list(read(tmp_path / 'run', 'query passage')['a']) == ['p1', 'p0']
    (tmp_path / 'run').write_text(UNCLEAR['ranks that pandas wrote'])
    assert read(tmp_path / 'run', 'query passage rank')['a'] == {'p0': -1, 'p1': -2}
    (tmp_path / 'run').write_text(UNCLEAR['two ids of passages'])
    assert read(tmp_path / 'run', 'query Q0 passage score') == {'a': {'p0': 2.5}}
    (tmp_path / 'run').write_text(UNCLEAR['judgements of TREC'])
    assert read(tmp_path / 'run', 'query Q0 passage score')['b'] == {'p1': 2}
    (tmp_path / 'run').write_text(' {"query_id": "a", "passage_id": "p1", "score": 1}\n')
    assert read(tmp_path / 'run', 'json') == {'a': {'p1': 1}}


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('query score', 'names no format: give json or the names of the columns'),
        ('query passage score score', 'names no format'),
        ('query passage distance', "'query passage distance' names no format"),
        ('trec', "'trec' names no format"),
        ('', "'' names no format"),
    ],
)
def test_refuses_names(name, message):
    with pytest.raises(ValueError, match=message):
        run_formats.named(name)


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ('a\tp0\t1\t2.5\na\tp1\tx\n', "run:2: not a run line; it must read 'query passage rank s"),
        ('a\tp0\t1\t2.5\na\tp1\t2\tlow\n', r'run:2: not a run line; .* \(could not convert'),
        (
            'a\tp0\t1\na\tp1\t2\na\tp1\t2.5\n',
            "run:1: 'a p0 1' and the lines after it may hold|run:3",
        ),
        ('a\tp0\t0.5\na\tp1\t\n', "run:2: not a run line; it must read 'query passage score'"),
        ('a Q0 p0 1 2 x\na Q0 p1 1\n', r'run:2: not a run line; .* \(4 fields\)'),
        ('a Q0 p0 1 2 x\na Q0 p1 2 1_0 x\n', r"run:2: not a run line; .* \('1_0' is no num"),
        ('a Q0 p0 1 2 x\na Q0 p1 2 ٣ x\n', 'run:2: not a run line; .* is no number'),
        ('qid pid rank\na p0 1.5\n', r"run:2: not a run line; .* \(rank '1.5' is no whole"),
        ('a\n', 'run:1: not a line of scores; write'),
        ('a b c d\n', 'run:1: not a line of scores; write'),
        ('a Q0 p0 one two x\n', 'run:1: not a line of scores; write'),
        ('qid\tpid\trank\n', 'holds no scores'),
    ],
)
def test_names_the_line_and_the_columns_it_should_have(tmp_path, lines, message):
    (tmp_path / 'run').write_text(lines)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / 'run')


def test_a_fault_in_every_line_is_told(tmp_path):
    (tmp_path / 'run').write_text('z Q0 p0 1 2.5 x\nz Q0 p1 2 1.5 x\n')
    with pytest.raises(ValueError, match="holds no scores; .* The first error: .*run:1: query 'z'"):
        read(tmp_path / 'run', on_error=base.count_errors({}))


def test_later_lines_of_a_large_file_have_the_format_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(run_formats, 'SAMPLE', 2)
    write(tmp_path / 'run', TOLD['ColBERT'])
    assert read(tmp_path / 'run') == RUN
    write(tmp_path / 'run', TOLD['top 1000'])
    assert np.all(np.diff(list(read(tmp_path / 'run')['a'].values())) == -1)
