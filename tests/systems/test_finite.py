"""A score or an embedding that is not finite stops with its system, query and passage."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

from jdkd import config as configs
from jdkd.algorithm.teacher import Teacher
from jdkd.configs import mta4dpr
from jdkd.corpus import importing
from jdkd.lists.candidates import Lists
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Run
from jdkd.runtime import mesh as meshes
from jdkd.systems import scoring
from jdkd.systems.build import build
from jdkd.systems.ranking import checked_ranking
from tests.helpers import toy

MODELS = {
    'dual': DualEncoder(toy.TRANSFORMER, 'mean', True),
    'cross': CrossEncoder(toy.TRANSFORMER, 'linear'),
}
SPOILT = 'swims'  # The word whose embedding is no number.


def write(directory, model):
    toy.write_model(directory, model)
    file = directory / 'model.safetensors'
    tensors = safetensors.numpy.load_file(file)
    (name,) = (n for n in tensors if n.endswith('word_embeddings.weight'))
    tensors[name][5 + toy.WORDS.index(SPOILT)] = np.nan
    safetensors.numpy.save_file(tensors, file)


@pytest.fixture
def run(tmp_path):
    home = toy.write_collection(tmp_path / 'toy', splits=('train', 'dev', 'test'))
    c = mta4dpr.get_config('tiny')
    c.collection.source, c.collection.options = f'beir:{home}', {}
    for name, model in MODELS.items():
        write(tmp_path / name, model)
        c.systems[name] = c.systems.minilm.copy_and_resolve_references()
        c.systems[name].kind = f'{name}_encoder'
        c.systems[name].weights = str(tmp_path / name)
        c.systems[name].query_length, c.systems[name].passage_length = 8, 16
    config = configs.resolve(c)
    workdir = tmp_path / 'w'
    return Run(config, workdir, meshes.make_mesh(), importing.load_collection(config, workdir))


def holding(run, queries):
    """Ids of the passages or the queries that hold the word."""
    if queries:
        return {i for i, t in zip(run.train.ids, run.train.texts, strict=True) if SPOILT in t}
    ids = run.collection.passage_ids
    return {i for i, text in zip(ids, run.passages, strict=True) if SPOILT in text}


def test_an_embedding_names_its_system_and_passage(run):
    system = build(run, 'dual')
    with pytest.raises(FloatingPointError) as caught:
        system.rank(run.train)
    named = re.search(
        r"dual: .* the model's output for passage '(p\d+)' is not finite", str(caught.value)
    )
    assert named[1] in holding(run, queries=False)
    # Nothing that is whole was left behind, and a restart says the same.
    assert not (run.workdir / 'systems/dual/embeddings-passages').exists()
    with pytest.raises(FloatingPointError, match=re.escape(named[0])):
        system.rank(run.train)


def test_a_pair_names_query_and_passage(run, tmp_path):
    ids = run.collection.passage_ids
    fine = [i for i, text in enumerate(run.passages) if SPOILT not in text]
    bad = next(i for i, text in enumerate(run.passages) if SPOILT in text)
    query = next(i for i, text in enumerate(run.train.texts) if SPOILT not in text)
    lists = Lists.from_originals(np.array([query, query]), np.array([fine[:3], [*fine[3:5], bad]]))
    system = build(run, 'cross')
    teacher = Teacher.alone(system)
    expected = f"cross: pairs: .* query '{run.train.ids[query]}' with passage '{ids[bad]}' is not"
    with pytest.raises(FloatingPointError, match=expected):
        teacher.logits(run.train, lists, tmp_path)
    good = Lists.from_originals(lists.query[:1], lists.passages[:1])
    assert np.isfinite(teacher.logits(run.train, good, tmp_path)).all()


def test_scores_and_rankings_name_system_query_and_passage(run, tmp_path):
    path = run.workdir.parent / 'scores.jsonl'
    path.write_text(json.dumps({'query_id': 'train1', 'passage_ids': ['p1'], 'scores': [1]}))
    spec = configs.ScoresSpec(path=str(path), missing=float('inf'))
    config = run.config.replace(systems={**run.config.systems, 'llm': spec})
    system = build(Run(config, run.workdir, run.mesh, run.collection), 'llm')
    at = run.train.ids.index('train1')
    lists = Lists.from_originals(np.array([at, at]), np.array([[1, 1], [1, 2]]))
    said = "'llm' gives query 'train1' and passage 'p2' the score inf, and 1 of 4 scores of split"
    with pytest.raises(FloatingPointError, match=said):
        scoring.score_in_parts(system, run.train, lists, tmp_path, 'llm')

    def search(part, depth):
        passages = np.full((4, depth), -1, np.int32)
        scores = np.full((4, depth), -np.inf, np.float32)
        passages[2, 0], scores[2, 0] = 7, np.nan
        return Ranking(passages, scores)

    said = f"'bm25' gives query '{run.train.ids[2]}' and passage 'p7' the score nan, and 1 of"
    with pytest.raises(FloatingPointError, match=said):
        checked_ranking(run, 'bm25', run.train, search)
