"""An index answers as the student itself does, whatever it was made from."""

import csv
import dataclasses
import gzip
import json
import shutil

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jdkd
from jdkd.commands import index as index_command
from jdkd.config.fields import STORES
from jdkd.indexing import building, contents, exporting
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.retrieval.quantization import Binary, Int8
from jdkd.runtime import stages
from tests.helpers import indexes, toy

ROWS = indexes.passages(0, 40)
QUERIES = ['red cat', 'dog sleeps', 'a bird that sings and swims', 'fish']


@pytest.fixture(scope='module')
def student(tmp_path_factory):
    return indexes.write_student(tmp_path_factory.mktemp('index') / 'student')


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return indexes.write(tmp_path_factory.mktemp('corpus') / 'corpus.jsonl', ROWS)


@pytest.fixture(scope='module')
def index(tmp_path_factory, student, corpus):
    directory = tmp_path_factory.mktemp('made') / 'index'
    indexes.create(directory, student, corpus)
    return jdkd.open_index(directory)


def pairs(rows):
    return [(row['title'], row['text']) for row in rows]


def test_answers_are_those_of_the_retriever(index, student):
    retriever = jdkd.load(student).index(pairs(ROWS))
    for query in QUERIES:
        expected, found = retriever.search(query, 7), index.search(query, 7)
        assert [hit.id for hit in found] == [f'p{hit.row}' for hit in expected]
        assert [(hit.title, hit.text) for hit in found] == [hit.passage for hit in expected]
        np.testing.assert_allclose(
            [hit.score for hit in found], [hit.score for hit in expected], atol=1e-5
        )
    assert len(index.search('cat', 99)) == len(index) == len(ROWS)
    with pytest.raises(ValueError, match='k=0 must be at least 1'):
        index.search('cat', 0)


def test_answers_are_those_of_sentence_transformers(index, student):
    sentence_transformers = pytest.importorskip('sentence_transformers')
    theirs = sentence_transformers.SentenceTransformer(str(student), device='cpu')
    texts = [f'{title} {text}'.strip() for title, text in pairs(ROWS)]
    scores = theirs.encode_query(QUERIES) @ theirs.encode_document(texts).T
    ranking = index.rank(QUERIES, 7)
    best = np.sort(scores, axis=1)[:, :-8:-1]
    np.testing.assert_allclose(ranking.scores, best, atol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(scores, ranking.passages, axis=1), best, atol=1e-5
    )


def test_added_passages_count_as_if_they_had_been_there(tmp_path, index, student):
    first, second = (
        indexes.write(tmp_path / f'{i}.jsonl', rows)
        for i, rows in enumerate((ROWS[:23], ROWS[23:]))
    )
    indexes.create(tmp_path / 'index', student, first)
    indexes.add(tmp_path / 'index', second)
    found = jdkd.open_index(tmp_path / 'index')
    assert list(found.ids) == [row['_id'] for row in ROWS]
    np.testing.assert_array_equal(found.vectors[:], index.vectors[:])
    for query in QUERIES:
        assert found.search(query, 9) == index.search(query, 9)
    assert [s.passages for s in found.contents.segments] == [23, 17]
    assert not list((tmp_path / 'index').rglob('tokens'))


@pytest.mark.parametrize('store', STORES)
def test_stores_are_those_of_quantised_embeddings(tmp_path, index, student, store, corpus):
    more = indexes.write(tmp_path / 'more.jsonl', indexes.passages(40, 45))
    indexes.create(tmp_path / 'index', student, corpus, store=store)
    indexes.add(tmp_path / 'index', more)
    found = jdkd.open_index(tmp_path / 'index').vectors[: len(ROWS)]
    whole = index.vectors[:]
    expected = {
        'float32': whole,
        'bfloat16': whole.astype(ml_dtypes.bfloat16).astype(np.float32),
        'int8': Int8.of(whole)[:],
        'binary': Binary.of(whole)[:],
    }[store]
    np.testing.assert_array_equal(found, expected)


def write_csv(path):
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter='\t' if path.suffix == '.tsv' else ',')
        writer.writeheader()
        writer.writerows(ROWS)


def write_gzip(path):
    with gzip.open(path, 'wt') as file:
        file.writelines(f'{json.dumps(row)}\n' for row in ROWS)


@pytest.mark.parametrize(
    ('name', 'write'),
    [
        ('passages.csv', write_csv),
        ('passages.tsv', write_csv),
        ('passages.jsonl.gz', write_gzip),
        ('passages.parquet', lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path)),
    ],
)
def test_passages_are_read_from_files_of_all_kinds(tmp_path, index, student, name, write):
    write(tmp_path / name)
    indexes.create(tmp_path / 'index', student, tmp_path / name)
    assert jdkd.open_index(tmp_path / 'index').search('cat', 5) == index.search('cat', 5)


def test_passages_are_read_from_sources_and_other_fields(tmp_path, student):
    toy.write_collection(tmp_path / 'toy')
    indexes.create(tmp_path / 'a', student, f'beir:{tmp_path / "toy"}')
    rows = [{'key': f'k{i}', 'body': row['text']} for i, row in enumerate(ROWS)]
    other = indexes.write(tmp_path / 'other.jsonl', rows)
    with pytest.raises(ValueError, match="other.jsonl:1: there is no field 'text'; there are key"):
        indexes.create(tmp_path / 'b', student, other)
    fields = {'fields': {'passage_id': 'key', 'text': 'body'}}
    indexes.create(tmp_path / 'b', student, other, options=fields)
    assert len(jdkd.open_index(tmp_path / 'a')) == 30
    assert jdkd.open_index(tmp_path / 'b').ids[3] == 'k3'


def test_a_corpus_in_beir_layout_needs_no_judgements(tmp_path, index, student):
    (tmp_path / 'mine').mkdir()
    indexes.write(tmp_path / 'mine/corpus.jsonl', indexes.passages(0, 40))
    indexes.create(tmp_path / 'other', student, f'beir:{tmp_path / "mine"}')
    assert list(jdkd.open_index(tmp_path / 'other').ids) == list(index.ids)


def test_ids_that_are_there_are_refused_or_left_out(tmp_path, student, corpus):
    indexes.create(tmp_path / 'index', student, corpus)
    before = indexes.tree(tmp_path / 'index')
    rows = [*indexes.passages(40, 43), ROWS[7], *indexes.passages(43, 45)]
    more = indexes.write(tmp_path / 'more.jsonl', rows)
    with pytest.raises(ValueError, match=r"more.jsonl:4: the id 'p7' is in .*index already; leave"):
        indexes.add(tmp_path / 'index', more)
    assert indexes.tree(tmp_path / 'index') == before
    indexes.add(tmp_path / 'index', more, on_error='skip')
    found = jdkd.open_index(tmp_path / 'index')
    assert list(found.ids)[40:] == [f'p{i}' for i in range(40, 45)]
    # A file that has not grown adds nothing, whatever else is wrong with it.
    before = indexes.tree(tmp_path / 'index')
    same = indexes.write(tmp_path / 'same.jsonl', [*ROWS[:3], {'_id': 'p98', 'text': None}])
    held = contents.Contents.read(tmp_path / 'index')
    assert indexes.add(tmp_path / 'index', same, on_error='skip') == held
    assert indexes.tree(tmp_path / 'index') == before
    with pytest.raises(ValueError, match='twice.jsonl:2: passage id .p99. occurs a second time'):
        twice = indexes.write(tmp_path / 'twice.jsonl', 2 * [{'_id': 'p99', 'text': 'cat'}])
        indexes.add(tmp_path / 'index', twice)


def test_the_same_command_again_changes_nothing(tmp_path, student, corpus):
    more = indexes.write(tmp_path / 'more.jsonl', indexes.passages(40, 45))
    indexes.create(tmp_path / 'index', student, corpus)
    indexes.add(tmp_path / 'index', more)
    before = indexes.tree(tmp_path / 'index')
    indexes.add(tmp_path / 'index', more)
    indexes.add(tmp_path / 'index', corpus)
    indexes.create(tmp_path / 'index', student, corpus)
    assert indexes.tree(tmp_path / 'index') == before


def test_an_index_of_something_else_is_not_touched(tmp_path, student, corpus):
    indexes.create(tmp_path / 'index', student, corpus)
    before = indexes.tree(tmp_path / 'index')
    other = indexes.write_student(tmp_path / 'other', seed=1)
    more = indexes.write(tmp_path / 'more.jsonl', indexes.passages(40, 45))
    for arguments, kwargs, message in (
        ((other, corpus), {}, 'was made with another value of the student'),
        ((student, corpus), {'store': 'int8'}, 'was made with another value of --store'),
        ((student, more), {}, r'is an index of .*corpus.jsonl, and not of what .*more.jsonl holds'),
    ):
        with pytest.raises(ValueError, match=message):
            indexes.create(tmp_path / 'index', *arguments, **kwargs)
    assert indexes.tree(tmp_path / 'index') == before
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.tex').write_text('x')
    with pytest.raises(ValueError, match="holds something else than an index .'thesis.tex'."):
        index_command.index(
            tmp_path / 'mine', student, corpus, store='float32', on_error='stop', options={}
        )
    assert [path.name for path in (tmp_path / 'mine').iterdir()] == ['thesis.tex']


def test_another_model_card_is_the_same_student(tmp_path, student, corpus):
    indexes.create(tmp_path / 'index', student, corpus)
    before = indexes.tree(tmp_path / 'index')
    copy = tmp_path / 'copy'
    shutil.copytree(student, copy)
    (copy / 'README.md').write_text('edited')
    indexes.create(tmp_path / 'index', copy, corpus)
    assert indexes.tree(tmp_path / 'index') == before
    marker = json.dumps({'passage_format': 'colon'})
    (copy / 'jdkd_export.json').write_text(marker)
    with pytest.raises(ValueError, match='another value of the format of passages'):
        indexes.create(tmp_path / 'index', copy, corpus)
    (copy / 'jdkd_export.json').unlink()
    shutil.rmtree(tmp_path / 'index/student')  # Which a copy with another card mends.
    indexes.create(tmp_path / 'index', copy, corpus)
    assert len(jdkd.open_index(tmp_path / 'index')) == len(indexes.passages(0, 40))


def test_the_same_file_read_otherwise_is_something_else(tmp_path, student):
    rows = [{**row, 'body': 'a bird that swims'} for row in indexes.passages(0, 3)]
    file, options = indexes.write(tmp_path / 'p.jsonl', rows), {'fields': {'text': 'body'}}
    indexes.create(tmp_path / 'index', student, file)
    with pytest.raises(ValueError, match=r'is an index of .*p.jsonl, and not of what .*p.jsonl'):
        indexes.create(tmp_path / 'index', student, file, options=options)
    with pytest.raises(ValueError, match="the id 'p0' is in .* already"):
        indexes.add(tmp_path / 'index', file, options=options)


def test_damage_is_named_and_mended(tmp_path, student, corpus):
    indexes.create(tmp_path / 'index', student, corpus)
    before = indexes.tree(tmp_path / 'index')
    (file,) = (tmp_path / 'index').rglob('vectors-*.npy')
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again = r'vectors-00000.npy has changed .*; `jdkd add .*index .*corpus.jsonl`, with the options'
    with pytest.raises(stages.DamagedError, match=again):
        stages._verified.clear()
        jdkd.open_index(tmp_path / 'index')
    indexes.create(tmp_path / 'index', student, corpus)
    after = indexes.tree(tmp_path / 'index')
    assert {name: after[name] for name in before} == before
    # Another addition would not mend the passages of the first.
    more = indexes.write(tmp_path / 'more.jsonl', indexes.passages(40, 45))
    (file,) = (tmp_path / 'index/segments').rglob('passages/manifest.json')
    file.unlink()
    with pytest.raises(stages.DamagedError, match=r'is missing; `jdkd add .* .*corpus.jsonl`'):
        indexes.add(tmp_path / 'index', more)
    indexes.add(tmp_path / 'index', corpus)
    indexes.add(tmp_path / 'index', more)
    assert len(jdkd.open_index(tmp_path / 'index')) == 45
    # Nothing is embedded with a damaged student.
    weights = tmp_path / 'index/student/model.safetensors'
    content, damaged = weights.read_bytes(), bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    stages._verified.clear()
    last = indexes.write(tmp_path / 'last.jsonl', indexes.passages(50, 52))
    with pytest.raises(stages.DamagedError, match='model.safetensors has changed .* `jdkd index`'):
        indexes.add(tmp_path / 'index', last)
    weights.write_bytes(content)
    assert len(jdkd.open_index(tmp_path / 'index')) == 45
    shutil.rmtree(tmp_path / 'index/student')
    with pytest.raises(stages.DamagedError, match='is missing; the `jdkd index` that made it'):
        jdkd.open_index(tmp_path / 'index')


def test_what_is_no_index_or_no_student_is_named(tmp_path, student, corpus):
    with pytest.raises(FileNotFoundError, match='none holds no index; make one with `jdkd index'):
        jdkd.open_index(tmp_path / 'none')
    contents.Contents('x', {}, 'float32').write(tmp_path)
    with pytest.raises(ValueError, match='is unfinished; run the `jdkd index` that began it'):
        jdkd.open_index(tmp_path)
    with pytest.raises(FileNotFoundError, match='is an index without student/; bring it to its en'):
        jdkd.load(tmp_path)
    (tmp_path / 'index.json').write_text('{"format": 1}')
    with pytest.raises(ValueError, match='index.json is damaged'):
        jdkd.open_index(tmp_path)
    (tmp_path / 'index.json').write_text('{"format": 9}')
    with pytest.raises(ValueError, match='index.json has format 9, and this jdkd reads 1'):
        jdkd.open_index(tmp_path)
    toy.write_model(tmp_path / 'cross', CrossEncoder(toy.TRANSFORMER, 'linear'))
    with pytest.raises(ValueError, match='cross-encoder, which has no embeddings'):
        indexes.create(tmp_path / 'b', tmp_path / 'cross', corpus)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='/empty has no model.safetensors'):
        indexes.create(tmp_path / 'b', tmp_path / 'empty', corpus)
    indexes.create(tmp_path / 'b', student, corpus)  # Of the others, nothing was copied.
    with pytest.raises(FileNotFoundError, match='there is no such directory'):
        indexes.create(tmp_path / 'c', './nobody', corpus)
    with pytest.raises(FileNotFoundError, match="there is no file './none.jsonl', nor is"):
        indexes.create(tmp_path / 'd', student, './none.jsonl')
    assert not (tmp_path / 'd' / 'student').exists()  # A mistyped name copies nothing.


def test_the_student_is_copied_without_what_lies_beside_it(tmp_path, student, corpus):
    shutil.copytree(student, tmp_path / 'student')
    for name in ('checkpoint-500/model.safetensors', 'onnx/model.onnx', 'pytorch_model.bin'):
        (tmp_path / 'student' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'student' / name).write_text('x')
    indexes.create(tmp_path / 'index', tmp_path / 'student', corpus)
    copied = {p.relative_to(tmp_path / 'index/student').as_posix() for p in _files(tmp_path)}
    own = {p.relative_to(student).as_posix() for p in student.rglob('*') if p.is_file()}
    assert copied - {'manifest.json'} == own
    shutil.rmtree(tmp_path / 'student')
    assert jdkd.open_index(tmp_path / 'index').search('cat')


def _files(tmp_path):
    return [p for p in (tmp_path / 'index/student').rglob('*') if p.is_file()]


@pytest.mark.parametrize('rows', [7, 100])
def test_vectors_leave_for_other_tools(tmp_path, index, monkeypatch, rows):
    monkeypatch.setattr(exporting, '_ROWS', rows)
    paths = [p.name for kind in ('npy', 'parquet') for p in exporting.export(index, kind, tmp_path)]
    assert paths == ['vectors.npy', 'ids.txt', 'passages.parquet']
    np.testing.assert_array_equal(np.load(tmp_path / 'vectors.npy'), index.vectors[:])
    assert (tmp_path / 'ids.txt').read_text().split() == [row['_id'] for row in ROWS]
    table = pq.read_table(tmp_path / 'passages.parquet').to_pylist()
    assert [{k: row[k] for k in ROWS[0]} for row in table] == ROWS
    np.testing.assert_array_equal(
        np.array([row['embedding'] for row in table], np.float32), index.vectors[:]
    )
    with pytest.raises(FileExistsError, match='vectors.npy exists already; give another --output'):
        exporting.check_output(index, 'npy', tmp_path)
    exporting.check_output(index, 'faiss', tmp_path)  # Its ids are the same.
    (tmp_path / 'ids.txt').write_text('years of work')
    with pytest.raises(FileExistsError, match='ids.txt exists already, with other ids'):
        exporting.check_output(index, 'faiss', tmp_path)
    with pytest.raises(FileExistsError, match='ids.txt is no directory'):
        exporting.check_output(index, 'npy', tmp_path / 'ids.txt')
    exporting.check_output(index, 'npy', tmp_path / 'new')
    with pytest.raises(ValueError, match="'csv' is no format of vectors; use one of npy"):
        exporting.export(index, 'csv', tmp_path)


def test_faiss_finds_the_same_passages(tmp_path, index):
    faiss = pytest.importorskip('faiss')
    exporting.export(index, 'faiss', tmp_path)
    flat = faiss.read_index(str(tmp_path / 'vectors.faiss'))
    ids = (tmp_path / 'ids.txt').read_text().split()
    scores, rows = flat.search(index.retriever.encode(QUERIES, kind='query'), 5)
    for i, query in enumerate(QUERIES):
        found = index.search(query, 5)
        np.testing.assert_allclose(scores[i], [hit.score for hit in found], atol=1e-5)
        assert {ids[row] for row in rows[i]} == {hit.id for hit in found}


def test_later_unfinished_additions_leave_nothing_behind(tmp_path, student, corpus, monkeypatch):
    indexes.create(tmp_path / 'index', student, corpus)
    one, two = (
        indexes.write(tmp_path / f'{i}.jsonl', indexes.passages(40 + i, 41 + i)) for i in range(2)
    )

    def fail(*args):
        raise FloatingPointError

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError):
        patch.setattr(building, '_encode', fail)
        indexes.add(tmp_path / 'index', one)
    (tmp_path / 'index/segments/.DS_Store').touch()  # As file managers leave it.
    indexes.add(tmp_path / 'index', two)
    indexes.add(tmp_path / 'index', one)
    found = jdkd.open_index(tmp_path / 'index')
    assert list(found.ids)[40:] == ['p41', 'p40']
    names = {path.name for path in (tmp_path / 'index/segments').iterdir()}
    assert names == {segment.name for segment in found.contents.segments}


def test_found_is_plain_data(index):
    (found,) = index.search('cat', 1)
    assert set(dataclasses.asdict(found)) == {'id', 'score', 'title', 'text'}
