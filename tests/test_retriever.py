"""The Python API: retrievers load, encode, score and search as their checkpoints say."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

import jdkd
from jdkd import retriever
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from tests.helpers import toy

DUAL = DualEncoder(toy.TRANSFORMER, 'mean', True)
PROMPTS = {'query_prompt': 'red ', 'passage_prompt': 'blue '}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp('retriever') / 'model'
    toy.write_model(directory, DUAL, max_length=6, **PROMPTS)
    return directory


@pytest.fixture(scope='module')
def passages():
    rng = np.random.default_rng(0)
    return [' '.join(rng.choice(toy.WORDS, rng.integers(1, 9))) for _ in range(50)]


def test_embeddings_are_those_of_sentence_transformers(directory, passages):
    sentence_transformers = pytest.importorskip('sentence_transformers')
    theirs = sentence_transformers.SentenceTransformer(str(directory), device='cpu')
    ours = jdkd.load(directory)
    assert (
        max(len(text.split()) for text in passages) > ours.encoder.spec.passage_length - 2
    )  # Some are cut.
    queries = ours.encode(passages, kind='query')
    np.testing.assert_allclose(queries, theirs.encode_query(passages), atol=1e-5)
    np.testing.assert_allclose(ours.encode(passages), theirs.encode_document(passages), atol=1e-5)
    assert abs(queries - ours.encode(passages)).max() > 0.01


def test_untied_towers_embed_queries_and_passages(tmp_path, directory):
    toy.write_towers(tmp_path / 'out', DUAL)
    loaded = jdkd.load(tmp_path / 'out')
    for kind in ('query', 'passage'):
        alone = jdkd.load(tmp_path / f'out_{kind}')
        found = loaded.encode(['red cat', 'dog'], kind=kind)
        np.testing.assert_allclose(found, alone.encode(['red cat', 'dog'], kind=kind), atol=1e-6)


def test_a_run_gives_its_student_of_one_tower_or_two(tmp_path, directory):
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'metrics.jsonl').touch()
    shutil.copytree(directory, tmp_path / 'one/student')
    toy.write_towers(tmp_path / 'two/student', DUAL)
    for run in (tmp_path / 'one', tmp_path / 'two'):
        expected = jdkd.load(run / 'student').encode(['red cat'], kind='query')
        np.testing.assert_array_equal(jdkd.load(run).encode(['red cat'], kind='query'), expected)
    (tmp_path / 'two/student/modules.json').unlink()
    with pytest.raises(FileNotFoundError, match='two is a run without student/; bring it to its'):
        jdkd.load(tmp_path / 'two')


def test_search_is_the_exact_argsort_of_scores(directory, passages):
    student = jdkd.load(str(directory))
    texts = [*passages, passages[3]]  # Ties keep the order of the passages.
    assert student.index(texts) is student
    scores = student.score('cat sleeps', texts)
    hits = student.search('cat sleeps', k=7)
    expected = np.argsort(-scores, kind='stable')[:7]
    assert [hit.row for hit in hits] == expected.tolist()
    assert [hit.passage for hit in hits] == [texts[row] for row in expected]
    np.testing.assert_allclose([hit.score for hit in hits], scores[expected], atol=1e-6)
    assert len(student.search('cat', k=99)) == len(texts)
    texts = ['dog']
    student.index(texts)
    texts[0] = 'bird'  # The list stays the caller's.
    assert student.search('cat')[0].passage == 'dog'


def test_many_texts_are_encoded_in_chunks(directory, passages, monkeypatch):
    student = jdkd.load(directory)
    expected = student.encode(passages)
    monkeypatch.setattr(retriever, '_CHUNK', 7)
    np.testing.assert_allclose(student.encode(passages), expected, atol=1e-6)


def test_mistakes_are_named(directory, tmp_path):
    student = jdkd.load(directory)
    with pytest.raises(ValueError, match=r'call index\(passages\) first'):
        student.search('cat')
    with pytest.raises(ValueError, match='nothing to index; give at least one passage'):
        student.index([])
    with pytest.raises(ValueError, match='nothing to encode; give at least one text'):
        student.encode([])
    for wrong in (None, 5, float('nan'), ('a', None), ['a', 'b', 'c']):
        with pytest.raises(TypeError, match=r'texts\[1\] must be a text or a pair of title'):
            student.encode(['ok', wrong])
    for wrong in (['a', 'b'], 7, ('a', 'b')):
        with pytest.raises(TypeError, match=r'texts\[0\] must be a text, found'):
            student.index(['cat']).search(wrong)
    with pytest.raises(TypeError, match=r"takes a list of texts; give \['cat'\]"):
        student.encode('cat')
    with pytest.raises(TypeError, match=r"takes a list of texts; give \['cat'\]"):
        student.index('cat')
    with pytest.raises(ValueError, match="kind='document' is not supported"):
        student.encode(['cat'], kind='document')
    with pytest.raises(ValueError, match='k=0 must be at least 1'):
        student.index(['cat']).search('cat', k=0)
    with pytest.raises(FileNotFoundError, match='there is no such directory'):
        jdkd.load(tmp_path / 'nothing')
    toy.write_model(tmp_path / 'cross', CrossEncoder(toy.TRANSFORMER, 'linear'))
    with pytest.raises(ValueError, match='is a cross-encoder'):
        jdkd.load(tmp_path / 'cross')


def test_the_import_is_light():
    code = (
        'import sys, jdkd; assert {"load", "distill", "losses"} <= set(dir(jdkd)); '
        'assert not {"jax", "flax", "numpy"} & set(sys.modules); '
        'from jdkd.distillation import losses; assert jdkd.losses is losses'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jdkd.nothing
