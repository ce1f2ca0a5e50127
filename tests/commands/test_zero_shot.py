"""A checkpoint over several collections, against its parts computed alone."""

import functools
import json

import jax
import numpy as np
import pytest
import pytrec_eval

from jdkd import config as configs
from jdkd.commands import zero_shot
from jdkd.configs import eval as eval_config
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from jdkd.retrieval import encode
from tests.helpers import toy

DUAL = DualEncoder(toy.TRANSFORMER, 'mean', True)
CROSS = CrossEncoder(toy.TRANSFORMER, 'linear')


def resolved(directory, *collections, **overrides):
    c = eval_config.get_config()
    c.model, c.collections = str(directory), ','.join(f'beir:{path}' for path in collections)
    c.depth, c.measures = 10, ('nDCG@10', 'R@10')
    c.update(overrides)
    return configs.resolve(c)


def evaluate(workdir, *args, against=None, **overrides):
    workdir.mkdir(exist_ok=True)
    return zero_shot.evaluate(resolved(*args, **overrides), workdir, against)


def read_run(path):
    with path.open() as f:
        return pytrec_eval.parse_run(f)


def read_qrels(home, split):
    rows = [x.split('\t') for x in (home / 'qrels' / f'{split}.tsv').read_text().splitlines()[1:]]
    qrels = {}
    for query_id, passage_id, grade in rows:
        qrels.setdefault(query_id, {})[passage_id] = int(grade)
    return qrels


def texts(home, name):
    lines = map(json.loads, (home / name).read_text().splitlines())
    return {line['_id']: line['text'] for line in lines}


def tokens(text, after=()):
    """As the toy's tokenizer makes them; after a query's, those of a pair, padded to 16."""
    ids = [*(after or [2]), *(5 + toy.WORDS.index(w) for w in text.split()), 3]
    return ids + [0] * (16 - len(ids)) if after else ids


def test_every_collection_is_measured_as_trec_eval_does(tmp_path, capsys, monkeypatch):
    toy.write_model(tmp_path / 'model', DUAL)
    first = toy.write_collection(tmp_path / 'a/toy')
    second = toy.write_collection(tmp_path / 'b/toy', splits=('dev',), seed=1)
    found = evaluate(tmp_path / 'w', tmp_path / 'model', first, second)
    assert json.loads((tmp_path / 'w/report.json').read_text()) == found
    for name, home, split in (('toy', first, 'test'), ('toy-2', second, 'dev')):
        about = found['collections'][name]
        assert (about['split'], about['queries'], about['passages']) == (split, 4, 30)
        judge = pytrec_eval.RelevanceEvaluator(
            read_qrels(home, split), {'ndcg_cut.10', 'recall.10'}
        )
        for system, file in (('test', 'run.trec'), ('bm25', 'bm25.trec')):
            theirs = judge.evaluate(read_run(tmp_path / 'w' / name / file)).values()
            for ours, key in (('nDCG@10', 'ndcg_cut_10'), ('R@10', 'recall_10')):
                mean = np.mean([t[key] for t in theirs])
                assert found[system][name][ours] == pytest.approx(mean, abs=1e-12)
                assert 0 < mean < 1
        difference = found['significance'][name]['bm25']['nDCG@10']['difference']
        expected = found['test'][name]['nDCG@10'] - found['bm25'][name]['nDCG@10']
        assert difference == pytest.approx(expected)
    mean = np.mean([m['nDCG@10'] for m in found['test'].values()])
    assert found['average']['model']['nDCG@10'] == pytest.approx(mean)
    shown = capsys.readouterr().out.splitlines()
    assert shown[3].split() == ['average', *(
        f'{100 * found["average"][s]["nDCG@10"]:.1f}' for s in ('bm25', 'model')
    )]  # fmt: skip

    # Started again it encodes nothing.
    monkeypatch.delattr(encode, 'embed')
    assert evaluate(tmp_path / 'w', tmp_path / 'model', first, second) == found


def test_a_dual_encoder_ranks_by_its_embeddings(tmp_path):
    params = toy.write_model(tmp_path / 'model', DUAL)
    home = toy.write_collection(tmp_path / 'toy')
    evaluate(tmp_path / 'w', tmp_path / 'model', home)
    passages, queries = texts(home, 'corpus.jsonl'), texts(home, 'queries.jsonl')
    padded = np.zeros((len(passages) + len(queries), 16), np.int32)
    for row, text in zip(padded, [*passages.values(), *queries.values()], strict=True):
        row[: len(tokens(text))] = tokens(text)
    vectors = jax.jit(DUAL.apply)({'params': params}, padded)
    scores = dict(zip(queries, vectors[len(passages) :] @ vectors[: len(passages)].T, strict=True))
    for query_id, ranked in read_run(tmp_path / 'w/toy/run.trec').items():
        expected = np.sort(scores[query_id])[::-1][:10]
        np.testing.assert_allclose(sorted(ranked.values())[::-1], expected, atol=1e-5)


def test_a_cross_encoder_reranks_bm25(tmp_path):
    params = toy.write_model(tmp_path / 'model', CROSS)
    home = toy.write_collection(tmp_path / 'toy')
    found = evaluate(tmp_path / 'w', tmp_path / 'model', home)
    told = found['checkpoint']
    assert (told['kind'], told['query_length'], told['passage_length']) == ('cross_encoder', 6, 19)
    passages, queries = texts(home, 'corpus.jsonl'), texts(home, 'queries.jsonl')
    score = jax.jit(functools.partial(CROSS.apply, {'params': params}))
    run, first = (read_run(tmp_path / 'w/toy' / f) for f in ('run.trec', 'bm25.trec'))
    assert found['test']['toy']['R@10'] == found['bm25']['toy']['R@10']
    for query_id, ranked in run.items():
        assert ranked.keys() == first[query_id].keys() and len(ranked) == 10
        query = tokens(queries[query_id])
        pairs = np.array([tokens(passages[p], after=query) for p in ranked])
        types = (np.arange(16) >= len(query)) & (pairs > 0)
        expected = score(pairs, types.astype(np.int32))
        np.testing.assert_allclose(list(ranked.values()), expected, atol=1e-5)


def test_a_passage_with_the_querys_id_is_no_result_and_the_depth_stays(tmp_path):
    toy.write_model(tmp_path / 'model', DUAL)
    home = toy.write_collection(tmp_path / 'toy')
    for file in (home / 'queries.jsonl', home / 'qrels/test.tsv'):
        # The first query is a passage, with its words: it would be the first result.
        file.write_text(file.read_text().replace('test0', 'p7'))
    lines = (home / 'queries.jsonl').read_text().splitlines()
    text = texts(home, 'corpus.jsonl')['p7']
    lines = [json.dumps({'_id': 'p7', 'text': text}) if '"p7"' in x else x for x in lines]
    (home / 'queries.jsonl').write_text('\n'.join(lines))
    runs = {}
    for ignore in (True, False):
        workdir = tmp_path / f'w{ignore}'
        found = evaluate(workdir, tmp_path / 'model', home, ignore_identical_ids=ignore)
        assert found['collections']['toy']['identical_ids'] == int(ignore)
        runs[ignore] = {f: read_run(workdir / 'toy' / f) for f in ('run.trec', 'bm25.trec')}
    for file in ('run.trec', 'bm25.trec'):
        kept, dropped = runs[False][file], runs[True][file]
        assert kept.keys() == dropped.keys() and 'p7' in kept['p7'] and 'p7' not in dropped['p7']
        assert all(len(ranked) == 10 for run in (kept, dropped) for ranked in run.values())
        assert kept['test1'] == dropped['test1']


def test_another_models_evaluation_is_compared_with(tmp_path):
    home = toy.write_collection(tmp_path / 'toy')
    for seed in (0, 1):
        toy.write_model(tmp_path / f'model{seed}', DUAL, seed=seed)
    theirs = evaluate(tmp_path / 'w0', tmp_path / 'model0', home)
    ours = evaluate(tmp_path / 'w1', tmp_path / 'model1', home, against=str(tmp_path / 'w0'))
    assert ours['other'] == theirs['test'] != ours['test']
    expected = ours['test']['toy']['R@10'] - theirs['test']['toy']['R@10']
    found = ours['significance']['toy']['other']['R@10']
    assert found['difference'] == pytest.approx(expected) and 0 < found['p'] <= 1
    run_file = tmp_path / 'w0/toy/run.trec'
    again = evaluate(tmp_path / 'w1', tmp_path / 'model1', home, against=str(run_file))
    assert again['significance'] == ours['significance']
    with pytest.raises(FileNotFoundError, match='w2/toy/run.trec is not there; --against takes'):
        evaluate(tmp_path / 'w1', tmp_path / 'model1', home, against=str(tmp_path / 'w2'))
    run_file.write_text('train0 Q0 p1 1 3.0 x\n')
    with pytest.raises(ValueError, match="has none of the 4 queries of split 'test'"):
        evaluate(tmp_path / 'w1', tmp_path / 'model1', home, against=str(run_file))


def test_answers_are_looked_for_in_the_retrieved_texts(tmp_path):
    toy.write_model(tmp_path / 'model', DUAL)
    home = toy.write_collection(tmp_path / 'toy')
    lines = [json.loads(x) for x in (home / 'queries.jsonl').read_text().splitlines()]
    answers = {'test1': ['Red  CAT', 'bird'], 'test2': ['green']}
    lines = [json.dumps(x | {'answers': answers.get(x['_id'], [])}) for x in lines]
    (home / 'queries.jsonl').write_text('\n'.join(lines))
    found = evaluate(tmp_path / 'w', tmp_path / 'model', home, measures=('AnswerR@3', 'R@3'))
    passages = texts(home, 'corpus.jsonl')
    for system, file in (('test', 'run.trec'), ('bm25', 'bm25.trec')):
        ranked = read_run(tmp_path / 'w/toy' / file)['test1']
        best = sorted(ranked, key=lambda p, r=ranked: (r[p], p), reverse=True)[:3]
        hit = any('red cat' in passages[p] or 'bird' in passages[p] for p in best)
        assert found[system]['toy']['AnswerR@3'] == hit / 2
    kept = json.loads((tmp_path / 'w/toy/test/model.per_query.json').read_text())
    assert kept['test0'].keys() == {'R@3'} and kept['test2']['AnswerR@3'] == 0


@pytest.mark.parametrize(
    ('max_length', 'overrides', 'expected'),
    [(24, {}, (24, 24)), (24, {'passage_length': 20}, (24, 20)), (36, {}, (36, 36))],
)
def test_lengths_and_prompts_are_the_checkpoints(tmp_path, max_length, overrides, expected):
    toy.write_model(tmp_path / 'model', DUAL, max_length=max_length, query_prompt='red ')
    spec = zero_shot.model_spec(resolved(tmp_path / 'model', tmp_path, encoder=overrides))
    assert (spec.query_length, spec.passage_length) == expected
    assert spec.kind == 'dual_encoder' and spec.query_prefix is None


def test_what_cannot_be_measured_is_refused_before_anything_is_encoded(tmp_path, monkeypatch):
    def build(*args):
        raise AssertionError('built a system')

    monkeypatch.setattr(zero_shot, 'build', build)
    toy.write_model(tmp_path / 'model', DUAL)
    toy.write_collection(tmp_path / 'toy')
    toy.write_collection(tmp_path / 'other', splits=('dev',), seed=1)
    args = tmp_path / 'model', tmp_path / 'toy', tmp_path / 'other'
    with pytest.raises(ValueError) as caught:
        evaluate(tmp_path / 'w', *args, measures=('nDCG@10', 'ERR@10'))
    for name, split in (('toy', 'test'), ('other', 'dev')):
        assert f"{name}: measures names 'ERR@10', which cannot be" in str(caught.value)
        assert f'of split {split!r}' in str(caught.value)
    (tmp_path / 'run').write_text('test0 Q0 nowhere 1 2.5 x\n')
    with pytest.raises(ValueError, match="run:1: passage 'nowhere' is not in collection"):
        evaluate(tmp_path / 'v', *args[:2], against=str(tmp_path / 'run'))
    with pytest.raises(ValueError, match='is one run file, and there are 2 collections'):
        evaluate(tmp_path / 'w', *args, against=str(tmp_path / 'run'))
    (tmp_path / 'their/toy').mkdir(parents=True)
    (tmp_path / 'their/toy/run.trec').write_text('test0 Q0 p1 1 2.5 x\n')
    (tmp_path / 'their/other').mkdir()
    (tmp_path / 'their/other/run.trec').write_text('dev0 Q0 nowhere 1 2.5 x\n')
    with pytest.raises(ValueError, match="other/run.trec:1: passage 'nowhere' is not in"):
        evaluate(tmp_path / 'w', *args, against=str(tmp_path / 'their'))
    config = resolved(*args, options={'toys': {'name': 'x'}})
    with pytest.raises(ValueError, match=r"'toys', which is none of the collections \(toy, other"):
        zero_shot.validate(config, tmp_path / 'w')


def test_names_are_unique():
    sources = ['beir:/a/x', 'python_docs', 'beir:/b/x/', 'beir:/c/x-2', 'irds:beir/nfcorpus/test']
    expected = ['x', 'python_docs', 'x-2', 'x-2-2', 'beir_nfcorpus_test']
    assert zero_shot.names(sources) == expected
    assert zero_shot.names(['irds:..', 'tfds:../x']) == ['_', '__x']  # Directories in the workdir.


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'model': ''}, 'model is not set; say for example --config.model=DIR'),
        ({'collections': ''}, 'collections is not set; say for example --config.collections=beir'),
        ({'encoder': {'kind': 'bm25'}}, "kind is 'bm25'; use one of dual_encoder, cross_encoder"),
        (
            {'encoder': {'query_length': 9, 'passage_length': 99}},
            'model: .* has 40 positions, but .* need 99',
        ),
        ({'depth': 0}, 'depth=0 must be at least 1'),
        ({'index': {'kind': 'hnsw'}}, "index.kind is 'hnsw'; use one of scann, exact"),
    ],
)
def test_what_cannot_work_is_named(tmp_path, overrides, message):
    toy.write_model(tmp_path / 'model', DUAL)
    home = toy.write_collection(tmp_path / 'toy')
    zero_shot.validate(resolved(tmp_path / 'model', home), tmp_path / 'w')
    with pytest.raises(ValueError, match=message):
        zero_shot.validate(resolved(tmp_path / 'model', home, **overrides), tmp_path / 'w')


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    config = resolved(tmp_path / 'none', tmp_path / 'nothing', measures=('MRP@3',))
    with pytest.raises(ValueError) as caught:
        zero_shot.validate(config, tmp_path / 'w')
    lines = str(caught.value).splitlines()
    assert lines[0] == '3 things are wrong:'
    for line, said in zip(lines[1:], ("'MRP@3'", 'nothing', 'no such directory'), strict=True):
        assert said in line
    assert not (tmp_path / 'w').exists()


def test_a_collection_without_a_split_to_measure_is_an_error(tmp_path):
    toy.write_model(tmp_path / 'model', DUAL)
    home = toy.write_collection(tmp_path / 'toy', splits=('train',))
    with pytest.raises(ValueError, match='has judged queries in train, but splits=test,dev says'):
        evaluate(tmp_path / 'w', tmp_path / 'model', home)
