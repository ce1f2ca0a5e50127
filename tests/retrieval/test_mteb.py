"""mteb's own code measures a loaded student, and its numbers are jdkd's."""

import dataclasses
import types

import numpy as np
import pytest

import jdkd
from jdkd.models.dual_encoder import DualEncoder
from jdkd.retrieval import measures
from jdkd.retrieval.mteb import MTEBEncoder
from tests.helpers import toy

mteb = pytest.importorskip('mteb')
pytestmark = pytest.mark.slow  # Imports torch.


@pytest.fixture(scope='module')
def student(tmp_path_factory):
    home = tmp_path_factory.mktemp('mteb')
    toy.write_model(home / 'model', DualEncoder(toy.TRANSFORMER, 'mean', True))
    return jdkd.load(home / 'model')


@pytest.fixture(scope='module')
def data():
    """Passages with titles, queries and grades."""
    rng = np.random.default_rng(1)

    def text(low, high):
        return ' '.join(rng.choice(toy.WORDS, rng.integers(low, high)))

    passages = {f'p{i}': (text(1, 3), text(2, 7)) for i in range(60)}
    queries = {f'q{i}': text(2, 5) for i in range(12)}
    qrels = {
        q: {f'p{p}': int(rng.integers(1, 3)) for p in rng.choice(60, 5, replace=False)}
        for q in queries
    }
    return passages, queries, qrels


def make_task(passages, queries, qrels):
    import datasets

    class Toy(mteb.abstasks.AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            type='Retrieval',
            name='Toy',
            description='Toy passages.',
            dataset={'path': 'NA', 'revision': 'NA'},
            eval_splits=['test'],
            eval_langs=['eng-Latn'],
            main_score='ndcg_at_10',
        )

        def load_data(self, num_proc=None, **kwargs):
            rows = [{'id': p, 'title': a, 'text': b} for p, (a, b) in passages.items()]
            asked = [{'id': q, 'text': text} for q, text in queries.items()]
            split = {
                'corpus': datasets.Dataset.from_list(rows),
                'queries': datasets.Dataset.from_list(asked),
                'relevant_docs': qrels,
                'top_ranked': None,
            }
            self.dataset = {'default': {'test': split}}
            self.data_loaded = True

    return Toy()


def test_mteb_measures_what_jdkd_measures(student, data):
    passages, queries, qrels = data
    result = mteb.evaluate(MTEBEncoder(student), make_task(*data), cache=None)
    (scores,) = result.task_results[0].scores['test']
    student.index(list(passages.values()))
    ids = list(passages)
    run = {q: {ids[h.row]: h.score for h in student.search(t, 60)} for q, t in queries.items()}
    ours = measures.measure(run, qrels, ['nDCG@10', 'RR@10', 'R@20'], {}).means
    found = [scores['ndcg_at_10'], scores['mrr_at_10'], scores['recall_at_20']]
    np.testing.assert_allclose(found, [ours[m] for m in ('nDCG@10', 'RR@10', 'R@20')], atol=1e-5)
    assert 0.05 < found[0] < 0.95


def test_passages_are_read_with_their_titles_and_queries_as_queries(student, data):
    passages, queries, _ = data
    titles, texts = zip(*passages.values(), strict=True)
    batch = {'title': titles, 'body': texts, 'text': ['x'] * len(texts)}
    encoder, types = MTEBEncoder(student), mteb.types.PromptType
    np.testing.assert_array_equal(
        encoder.encode([batch], prompt_type=types.document), student.encode(list(passages.values()))
    )
    np.testing.assert_array_equal(
        encoder.encode([{'text': list(queries.values())}], prompt_type=types.query),
        student.encode(list(queries.values()), kind='query'),
    )


def test_mteb_tells_students_apart_by_all_that_decides_on_embeddings(student, tmp_path):
    toy.write_model(tmp_path / 'other', DualEncoder(toy.TRANSFORMER, 'mean', True), seed=1)
    metas = [MTEBEncoder(s).mteb_model_meta for s in (student, jdkd.load(tmp_path / 'other'))]
    assert metas[0].revision != metas[1].revision
    read = dataclasses.replace(
        student.encoder, spec=student.encoder.spec.replace(query_prefix='q: ')
    )
    assert MTEBEncoder(types.SimpleNamespace(encoder=read)).mteb_model_meta.revision not in {
        meta.revision for meta in metas
    }
    assert metas[0].revision == MTEBEncoder(student).mteb_model_meta.revision
