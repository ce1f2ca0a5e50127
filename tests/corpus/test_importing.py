"""Importing collections: what is stored, refused or left out, and when files are read again."""

import gzip
import json

import ml_collections
import numpy as np
import pytest

from jdkd.config import CollectionConfig, PseudoQueriesConfig, schema
from jdkd.corpus import building, importing, storage
from jdkd.corpus import passages as passages_lib
from jdkd.corpus.passages import Passages
from jdkd.corpus.sources import base, parsing
from jdkd.runtime import files, lock, stages

PASSAGES = [
    ('a', 'Moon', 'is  round'),
    ('b', '', 'Moon is round'),
    ('c', 'Sun', 'is hot'),
    ('d', 'moon', 'IS\nROUND '),
]
QUERIES = [('train', 'q1', 'what is round'), ('train', 'q2', 'what is hot'), ('test', 'q3', 'sun')]
QRELS = [('train', 'q1', 'a', 1), ('train', 'q2', 'c', 2), ('train', 'q2', 'a', 0)]
QRELS += [('test', 'q3', 'c', 1)]


def source(passages=PASSAGES, queries=QUERIES, qrels=QRELS, answers=()) -> base.Source:
    def stream(name, items):
        return lambda fault: ((f'{name}:{i}', *item) for i, item in enumerate(items, 1))

    return base.Source(
        'tiny',
        (),
        stream('passages', passages),
        stream('queries', queries),
        stream('qrels', qrels),
        stream('answers', answers),
        license='CC0',
    )


def build(directory, *args, on_error='stop', **changes):
    return building.build_collection(source(*args, **changes), directory, on_error=on_error)


def test_everything_comes_back(tmp_path):
    assert build(tmp_path, answers=[('test', 'q3', 'hot'), ('test', 'q3', 'warm')]) == {
        'skipped': {}
    }
    c = storage.open_collection(tmp_path)
    assert (c.name, c.license) == ('tiny', 'CC0')
    assert list(zip(c.passage_ids, c.passages.titles, c.passages.texts, strict=True)) == PASSAGES
    assert list(c.passages) == ['Moon is  round', 'Moon is round', 'Sun is hot', 'moon IS\nROUND']
    assert c.passages[1:3] == [c.passages[1], c.passages[2]]
    assert c.queries == {
        'train': {'q1': 'what is round', 'q2': 'what is hot'},
        'test': {'q3': 'sun'},
    }
    assert c.qrels == {'train': {'q1': {'a': 1}, 'q2': {'c': 2, 'a': 0}}, 'test': {'q3': {'c': 1}}}
    assert c.answers == {'test': {'q3': ['hot', 'warm']}}
    np.testing.assert_array_equal(c.group, np.array([0, 0, 2, 0], np.int32))
    assert c.group.dtype == np.int32


def test_the_columns_on_disk_are_those_in_memory_whatever_the_batches(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    texts = [' '.join(map(str, rng.integers(0, 3, rng.integers(0, 4)))) for _ in range(100)]
    items = [(f'p{i}', text[:1], text[1:]) for i, text in enumerate(texts)]
    memory = Passages.from_columns(*map(list, zip(*items, strict=True)))
    for limits in ((7, 10**6), (1000, 9)):
        for name, limit in zip(('_BATCH_PASSAGES', '_BATCH_CHARACTERS'), limits, strict=True):
            monkeypatch.setattr(building, name, limit)
        directory = tmp_path / str(limits[0])
        directory.mkdir()
        build(directory, items, QUERIES, [])
        disk = storage.open_collection(directory).passages
        assert disk.fingerprint == memory.fingerprint
        np.testing.assert_array_equal(disk.group, memory.group)
        np.testing.assert_array_equal(disk.id_index.find(['p99', 'no', 'p0']), [99, -1, 0])
        assert disk[-1] == memory[99] and disk[5:30:7] == memory[5:30:7]
    first = {}
    for row, passage in enumerate(memory):
        assert memory.group[row] == first.setdefault(' '.join(passage.split()), row)


def test_rows_are_right_where_hashes_collide(monkeypatch):
    monkeypatch.setattr(
        passages_lib, 'id_hashes', lambda ids: np.array([len(i) for i in ids], 'u8')
    )
    row = Passages.from_columns(['aa', 'b', 'cc', 'dd'], [''] * 4, ['x'] * 4).id_index
    np.testing.assert_array_equal(
        row.find(['dd', 'aa', 'zz', 'b', 'ccc', '']), [3, 0, -1, 1, -1, -1]
    )
    assert row['cc'] == 2 and 'zz' not in row and row.get('zz') is None
    assert dict(row) == {'aa': 0, 'b': 1, 'cc': 2, 'dd': 3}


def test_queries_without_a_positive_stay_and_are_not_labelled(tmp_path):
    build(tmp_path, queries=[*QUERIES, ('train', 'q4', 'four'), ('dev', 'q5', 'five')])
    c = storage.open_collection(tmp_path)
    assert c.queries['train']['q4'] == 'four' and c.queries['dev'] == {'q5': 'five'}
    assert c.labelled('train') == ['q1', 'q2'] and c.labelled('dev') == []


def changed(items, row, *item):
    return [*items[:row], item, *items[row + 1 :]]


BAD = [
    (
        {'passages': changed(PASSAGES, 2, 'a', '', 'x')},
        "passages:3: passage id 'a' occurs a second time",
    ),
    (
        {'passages': changed(PASSAGES, 3, 'd 1', '', 'x')},
        "passages:4: passage id 'd 1' .* rename it",
    ),
    ({'passages': changed(PASSAGES, 1, '', '', 'x')}, "passages:2: passage id '' is empty"),
    ({'passages': changed(PASSAGES, 1, 'b\x7f', '', 'x')}, 'whitespace or a control character'),
    ({'passages': changed(PASSAGES, 1, 'b\u2003', '', 'x')}, 'whitespace or a control character'),
    (
        {'passages': changed(PASSAGES, 1, 'b', '', '\ud800')},
        'passages:2: the text holds a lone surrogate',
    ),
    ({'queries': [*QUERIES, ('train', 'q\n1', 'x')]}, r"queries:4: query id 'q\\n1' .* rename it"),
    ({'queries': [*QUERIES, ('train', 'q4', ' ')]}, "queries:4: query 'q4' has no text"),
    ({'queries': [*QUERIES, ('train', 'q4', '\udc00')]}, 'queries:4: .* lone surrogate'),
    (
        {'queries': [*QUERIES, ('train', 'q1', 'what is round')]},
        "queries:4: query id 'q1' occurs a second time",
    ),
    ({'queries': [*QUERIES, ('test', 'q1', 'x')]}, "'q1' has another text in another split"),
    (
        {'qrels': [*QRELS, ('dev', 'q5', 'z', 1)], 'queries': [*QUERIES, ('dev', 'q5', 'five')]},
        "qrels:5: passage 'z' does not exist, nor does any other of the 1 that split 'dev' judges",
    ),
    ({'qrels': [*QRELS, ('train', 'q1', '\ud800', 1)]}, r"qrels:5: passage id '\\ud800' .* rename"),
    ({'qrels': [*QRELS, ('train', 'q9', 'a', 1)]}, "qrels:5: .* names query 'q9', which does not"),
    ({'qrels': [*QRELS, ('dev', 'q1', 'a', 1)]}, "qrels:5: .* names query 'q1', which does not"),
    ({'qrels': [*QRELS, ('train', 'q1', 'a', 2)]}, 'have grade 2 here and 1 above; keep one'),
    ({'answers': [('test', 'q1', 'x')]}, "answers:1: the answer names query 'q1'"),
    ({'answers': [('test', 'q3', ' ')]}, "answers:1: answer ' ' must be a string with text"),
]


@pytest.mark.parametrize(('changes', 'message'), BAD)
def test_stops_with_the_place_or_leaves_out_and_counts(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(tmp_path, **changes)
    (tmp_path / 'skipping').mkdir()
    skipped = build(tmp_path / 'skipping', **changes, on_error='skip')['skipped']
    left_out = [entry for entry in skipped.values() if entry['first'] == str(caught.value)]
    assert [entry['count'] for entry in left_out] == [1]


def test_what_is_left_out_leaves_the_rest_as_it_is(tmp_path):
    bad = [('a b', '', 'x'), *PASSAGES[:2], ('a', '', 'again'), *PASSAGES[2:], ('d', '', 'again')]
    result = build(
        tmp_path,
        bad,
        [*QUERIES, ('train', 'q4', '')],
        [*QRELS, ('train', 'q9', 'a', 1)],
        on_error='skip',
    )
    assert {kind: entry['count'] for kind, entry in result['skipped'].items()} == {
        'unusable passage': 1,
        'repeated passage': 2,
        'unusable query': 1,
        'judgement of something unknown': 1,
    }
    (tmp_path / 'good').mkdir()
    build(tmp_path / 'good')
    assert (
        storage.open_collection(tmp_path).fingerprint
        == storage.open_collection(tmp_path / 'good').fingerprint
    )


@pytest.mark.parametrize('empty', ['passages', 'queries'])
def test_a_collection_needs_passages_and_queries(tmp_path, empty):
    with pytest.raises(ValueError, match=f"'tiny' has no {empty}; it needs at least one"):
        build(tmp_path, **{empty: [], 'qrels': []}, on_error='skip')


def test_refuses_an_unknown_choice(tmp_path):
    with pytest.raises(ValueError, match="on_error is 'ignore'; use stop or skip"):
        build(tmp_path, on_error='ignore')


@pytest.fixture
def beir(tmp_path):
    root = tmp_path / 'corpus'
    (root / 'qrels').mkdir(parents=True)
    entries = [{'_id': i, 'title': title, 'text': text} for i, title, text in PASSAGES]
    (root / 'corpus.jsonl').write_text(''.join(json.dumps(e) + '\n' for e in entries))
    entries = [{'_id': i, 'text': text, 'answers': [i]} for _, i, text in QUERIES]
    (root / 'queries.jsonl').write_text(''.join(json.dumps(e) + '\n' for e in entries))
    (root / 'qrels/train.tsv').write_text('q\tp\tgrade\nq1\ta\t1\nq2\tc\t1\n')
    (root / 'qrels/test.tsv').write_text('q\tp\tgrade\nq3\tc\t1\n')
    return root


def config(root, **changes) -> ml_collections.ConfigDict:
    collection = {
        'source': f'beir:{root}',
        'options': {},
        'on_error': 'stop',
        'train_split': 'train',
        'eval_split': 'dev',
        'test_split': 'test',
        'eval_fraction': 0.5,
        'unlabelled': 'distil',
        'label_share': 1.0,
        'eval_labels': True,
        **changes,
    }
    collection['pseudo_queries'] = schema.to_config_dict(PseudoQueriesConfig())
    return ml_collections.ConfigDict({'seed': 0, 'collection': collection})


def test_a_second_start_reads_no_file_again(beir, tmp_path, monkeypatch):
    first = importing.load_collection(config(beir), tmp_path / 'run')
    assert set(first.queries) == {'train', 'dev', 'test'}  # One query was held out.
    assert first.answers['test'] == {'q3': ['q3']}

    def refuse(*args):
        raise AssertionError(f'read {args[0]}')

    monkeypatch.setattr(parsing, 'read_lines', refuse)
    monkeypatch.setattr(files, 'sha256', refuse)
    assert (
        importing.load_collection(config(beir), tmp_path / 'run').fingerprint == first.fingerprint
    )


def test_a_changed_file_is_refused_unless_kept_and_a_copied_one_is_not(beir, tmp_path, caplog):
    first = importing.load_collection(config(beir), tmp_path / 'run').fingerprint
    content = (beir / 'corpus.jsonl').read_text()
    (beir / 'corpus.jsonl').write_text(content)  # Another time, the same bytes.
    assert importing.load_collection(config(beir), tmp_path / 'run').fingerprint == first
    (beir / 'corpus.jsonl').write_text(content.replace('hot', 'hat'))  # The same size.
    with pytest.raises(ValueError, match=r'built from other inputs \(.*corpus.jsonl differ\)'):
        importing.load_collection(config(beir), tmp_path / 'run')
    kept = importing.load_collection(config(beir), tmp_path / 'run', kept=True)
    assert kept.fingerprint == first
    (warning,) = [r.getMessage() for r in caplog.records if 'has changed' in r.getMessage()]
    assert warning.startswith(f'{beir / "corpus.jsonl"} has changed; {tmp_path / "run"}')
    with pytest.raises(ValueError, match=r'built from other inputs \(.*on_error differ\)'):
        importing.load_collection(config(beir, on_error='skip'), tmp_path / 'run', kept=True)
    damaged = tmp_path / 'run/collection/collection.json'
    damaged.write_text(damaged.read_text().replace('corpus', 'other'))
    # Not made anew from what the source is now.
    with lock.hold(tmp_path / 'run'), pytest.raises(stages.DamagedError, match='collection.json'):
        importing.load_collection(config(beir), tmp_path / 'run', kept=True)
    assert damaged.exists()


def test_a_run_goes_on_without_its_source(beir, tmp_path):
    first = importing.load_collection(config(beir), tmp_path / 'run').fingerprint
    beir.rename(tmp_path / 'moved')
    assert importing.load_collection(config(beir), tmp_path / 'run').fingerprint == first
    with pytest.raises(FileNotFoundError, match='corpus.jsonl is missing'):
        importing.load_collection(config(beir), tmp_path / 'other')
    # Before a workdir is begun; what has been imported is not asked for.
    spec = config(beir).collection
    with pytest.raises(FileNotFoundError, match='corpus.jsonl is missing'):
        importing.check_source(spec, tmp_path / 'other/collection')
    importing.check_source(spec, tmp_path / 'run/collection')
    # What was imported from elsewhere, or read otherwise, is no substitute.
    for other in (config(tmp_path / 'mistyped'), config(beir, on_error='skip')):
        with pytest.raises(FileNotFoundError, match='corpus.jsonl is missing'):
            importing.load_collection(other, tmp_path / 'run')


def test_tuples_among_options_are_the_lists_of_a_manifest(tmp_path):
    (tmp_path / 'ms').mkdir()
    (tmp_path / 'ms/collection.tsv').write_text('a\tMoon is round\nb\tSun is hot\n')
    (tmp_path / 'ms/q.tsv').write_text('q1\twhat is round\nq2\twhat is hot\n')
    (tmp_path / 'ms/r.txt').write_text('q1 0 a 1\nq2 0 b 1\n')
    splits = {'train': ('q.tsv', 'r.txt'), 'test': ('q.tsv', 'r.txt')}
    c = config(tmp_path, source=f'msmarco:{tmp_path / "ms"}', options={'splits': splits}).collection
    spec = schema.read(CollectionConfig, c.to_dict())
    importing._import(spec, tmp_path / 'run')
    (tmp_path / 'ms').rename(tmp_path / 'moved')
    importing._import(spec, tmp_path / 'run')  # What was imported is used.


def test_splits_are_checked_before_they_are_needed(beir, tmp_path):
    for field, split in (('test_split', 'eval'), ('train_split', 'training')):
        with pytest.raises(ValueError, match=f"has no split '{split}'; it has"):
            importing.load_collection(config(beir, **{field: split}), tmp_path / 'run')
    (beir / 'queries.jsonl').write_text(
        (beir / 'queries.jsonl').read_text().replace('["q3"]', '[]')
    )
    (beir / 'qrels/test.tsv').write_text('q\tp\tgrade\nq3\tc\t0\n')
    with pytest.raises(ValueError, match="split 'test' of collection 'corpus' has no query with"):
        importing.load_collection(config(beir), tmp_path / 'other')


def test_bad_data_leaves_no_collection_behind(beir, tmp_path):
    whole = gzip.compress((beir / 'corpus.jsonl').read_bytes())
    (beir / 'corpus.jsonl').unlink()
    (beir / 'corpus.jsonl.gz').write_bytes(whole[:-12])
    # Skipping is for lines, not for the end of a file.
    with pytest.raises(ValueError, match='corpus.jsonl.gz:.* cut short or damaged'):
        importing.load_collection(config(beir, on_error='skip'), tmp_path / 'run')
    assert not list((tmp_path / 'run').iterdir())
    (beir / 'corpus.jsonl.gz').write_bytes(whole)
    assert len(importing.load_collection(config(beir, on_error='skip'), tmp_path / 'run')) == 4
