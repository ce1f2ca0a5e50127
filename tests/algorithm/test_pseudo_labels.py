"""Pseudo-labels: who gets one, which, and that assistants learn from them."""

import json
import shutil

import numpy as np
import pytest

from jdkd.algorithm import iterate, mining, pairs, pseudo_labels, round_files
from jdkd.algorithm.teacher import fit_weights
from jdkd.lists.candidates import Lists
from jdkd.models.dual_encoder import DualEncoder
from jdkd.systems.build import build
from tests.helpers import tiny, toy

RANKERS = ('bm25', 'dense')


def config_of(home, **collection):
    c = tiny.get_config(str(home))
    c.index.kind, c.rounds, c.steps_per_round, c.optimizer.warmup_steps = 'exact', 1, 2, 1
    c.pseudo_labels.systems = RANKERS
    c.collection.update(collection)
    return c


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('pseudo_labels')
    tiny.write(home)
    return home


@pytest.fixture(scope='module')
def unlabelled(home):
    """A run without labels of train queries or D_eval, and itself with pseudo-labels."""
    run = tiny.open_run(config_of(home, label_share=0.0, eval_labels=False), home / 'unlabelled')
    return run, pseudo_labels.label(run)


def test_the_half_with_the_largest_margins_gets_the_passage_that_both_rankers_favour(unlabelled):
    run, labelled = unlabelled
    result = run.read_manifest(pseudo_labels.STAGE)['result']
    rankers = [build(run, name) for name in RANKERS]
    every = np.tile(np.arange(len(run.collection), dtype=np.int32), (len(run.train), 1))
    every = Lists.from_originals(np.arange(len(run.train), dtype=np.int32), every)
    scores = {r.name: np.asarray(r.list_scorer(run.train)(every), float) for r in rankers}
    summed = sum(result['weights'][name] * own for name, own in scores.items())
    # One passage of each text, of those that the rankers find.
    found = mining.best_passages(run, run.train, np.arange(len(run.train)), rankers).passages
    logits = np.sort([own[rows[rows >= 0]] for own, rows in zip(summed, found, strict=True)])
    margins = logits[:, -1] - logits[:, -2]
    chosen, both = labelled.pseudo_labels, labelled.train_with_pseudo_labels
    assert len(margins) == 4 and len(chosen.queries) == 2
    np.testing.assert_array_equal(chosen.queries, np.sort(np.argsort(-margins)[:2]))
    assert result['margin'] == pytest.approx(margins[chosen.queries].min(), rel=1e-4)
    for query, passage in zip(chosen.queries, chosen.passages, strict=True):
        assert summed[query, passage] == pytest.approx(logits[query, -1], rel=1e-4)
        np.testing.assert_array_equal(both.positives[query], [passage])
        np.testing.assert_array_equal(both.best[query], [passage])
    assert list(np.flatnonzero(both.is_labelled)) == list(chosen.queries)
    assert not labelled.train.is_labelled.any()
    spread = np.mean([own[rows[rows >= 0]].std() for own, rows in zip(summed, found, strict=True)])
    assert spread == pytest.approx(run.config.spread, rel=1e-3)
    assert result['precision'] is None


@pytest.fixture(scope='module')
def judged(home):
    """A home whose positives of D_eval are what `dense` ranks first, but for the last query's."""
    run = tiny.open_run(config_of(home), home / 'before')
    first = build(run, 'dense').rank(run.held_out)[0].passages[:, 0].copy()
    first[-1] = (first[-1] + 1) % len(run.collection)
    rows = [
        f'{query}\t{run.collection.passage_ids[int(passage)]}\t1'
        for query, passage in zip(run.held_out.ids, first, strict=True)
    ]
    other = home / 'judged'
    shutil.copytree(home / 'toy', other / 'toy')
    (other / 'model').symlink_to(home / 'model')
    (other / 'toy/qrels/dev.tsv').write_text('\n'.join(['query-id\tcorpus-id\tscore', *rows]))
    return other


def test_queries_keep_their_labels_and_d_eval_says_how_many_are_right(judged):
    c = config_of(judged, label_share=0.5)
    c.pseudo_labels.share = 1.0
    run = tiny.open_run(c, judged / 'w')
    own = np.flatnonzero(run.train.is_labelled)
    labelled = pseudo_labels.label(run)
    assert len(own) == 2 and len(labelled.pseudo_labels.queries) == 2
    both = labelled.train_with_pseudo_labels
    assert list(np.flatnonzero(both.is_labelled)) == sorted([*own, *labelled.pseudo_labels.queries])
    for row in own:
        np.testing.assert_array_equal(both.positives[row], run.train.positives[row])
    # Weights are fitted to the labels of D_eval, which also tell how many would be right.
    result = run.read_manifest(pseudo_labels.STAGE)['result']
    queries, out = run.held_out, judged / 'w' / pseudo_labels.STAGE
    raw = [np.load(out / f'fit.{name}.00000.npy') for name in RANKERS]
    assert raw[0].shape == (len(queries), 1 + run.config.candidates.hard_negatives)
    assert list(result['weights'].values()) == fit_weights(raw, floor=run.config.fit_floor)
    rankers = [build(run, name) for name in RANKERS]
    found = mining.best_passages(run, queries, np.arange(len(queries)), rankers)
    summed = sum(
        weight * np.load(out / f'eval.{name}.00000.npy')
        for name, weight in result['weights'].items()
    )
    best, margins = pseudo_labels._lead(found, summed)
    right = [p in own for p, own in zip(best, queries.positives, strict=True)]
    sure = margins >= result['margin']
    assert 0 < sure.sum() < len(sure) and np.mean(right) != np.mean(np.array(right)[sure])
    assert result['precision'] == np.mean(np.array(right)[sure])
    # A second time, and other commands, read the same; another share is another stage.
    assert pseudo_labels.label(labelled).pseudo_labels.digest == labelled.pseudo_labels.digest
    assert pseudo_labels.read(run).pseudo_labels.digest == labelled.pseudo_labels.digest
    assert pseudo_labels.read(tiny.open_run(c, judged / 'none')).pseudo_labels is None
    c.pseudo_labels.share, c.candidates.hard_negatives = 0.5, 1
    with pytest.raises(ValueError, match='hard_negatives, share differ'):
        pseudo_labels.label(tiny.open_run(c, judged / 'w'))


def test_rankers_without_a_preference_give_none(home):
    # Positives that nothing finds: fitted weights are 0, and so are all margins.
    run = tiny.open_run(config_of(home, label_share=0.5), home / 'half')
    assert len(pseudo_labels.label(run).pseudo_labels.queries) == 0
    assert run.read_manifest(pseudo_labels.STAGE)['result']['weights'] == {'bm25': 0, 'dense': 0}
    none = tiny.open_run(config_of(home, label_share=0.0), home / 'no_labels')
    with pytest.raises(ValueError, match='bm25, dense put no passage first for any train query'):
        pseudo_labels.label(none)


def test_where_all_queries_are_labelled_or_no_system_is_named_there_is_none(home):
    full = tiny.open_run(config_of(home, label_share=1.0), home / 'full')
    c = config_of(home)
    c.pseudo_labels.systems = ()
    for run in (full, tiny.open_run(c, home / 'full')):
        assert pseudo_labels.label(run) == run
    assert not (home / 'full' / pseudo_labels.STAGE).exists()


@pytest.mark.parametrize('splits', [('train', 'dev', 'test'), ('dev', 'test')])
def test_pseudo_queries_get_none(tmp_path, splits):
    toy.write_model(tmp_path / 'model', DualEncoder(toy.TRANSFORMER, 'mean', True))
    toy.write_collection(tmp_path / 'toy', passages=60, splits=splits)
    c = config_of(tmp_path, label_share=0.0, eval_labels=False)
    c.collection.pseudo_queries.count = 6
    run = pseudo_labels.label(tiny.open_run(c, tmp_path / 'w'))
    is_made = np.array([i.startswith('pseudo:') for i in run.train.ids])
    assert is_made.sum() == 6 and len(is_made) == 6 + 4 * ('train' in splits)
    if 'train' not in splits:
        assert run.pseudo_labels is None
        return
    assert len(run.pseudo_labels.queries) == 2 and not is_made[run.pseudo_labels.queries].any()


def test_the_lead_by_hand():
    nan = np.nan
    logits = np.array([[1.0, 4.0, 2.5], [nan, 3.0, nan], [nan, nan, nan], [2.0, 2.0, 1.0]])
    passages = np.array([[7, 8, 9], [-1, 5, -1], [-1, -1, -1], [3, 4, 6]], np.int32)
    drawn = Lists.from_originals(np.arange(4), passages)
    best, margins = pseudo_labels._lead(drawn, logits)
    np.testing.assert_array_equal(best, [8, 5, -1, 3])
    # One passage alone leads by any margin; where there is none, none does.
    np.testing.assert_array_equal(margins, [1.5, np.inf, -np.inf, 0.0])


@pytest.mark.slow
def test_assistants_learn_from_them_and_from_no_other_label(home, tmp_path):
    run = tiny.open_run(config_of(home, label_share=0.0, eval_labels=False), tmp_path / 'w')
    pairs.write(run, tmp_path / 'pairs.jsonl', ('train',))  # Of the same assistants.
    iterate.train(run)
    labelled = pseudo_labels.read(run)
    chosen = labelled.pseudo_labels
    with np.load(tmp_path / 'w/systems/tuned/dataset/lists.npz') as f:
        assert set(f['query_row']) == set(chosen.queries)
        positives = dict(zip(chosen.queries, chosen.passages, strict=True))
        assert [positives[row] for row in f['query_row']] == list(f['passages'][:, 0])
    lists = run.require_manifest('systems/tuned/dataset')
    assert lists['inputs']['labelled'] == run.config.candidates.labelled
    # The student's lists have the teacher's best passages instead.
    assert round_files.without_positive(labelled, 'train').tolist() == [0, 1, 2, 3]
    report = json.loads((tmp_path / 'w/report.json').read_text())
    assert report['collection']['unlabelled'] == 4
    assert report['collection']['pseudo_labels'] == 2
    assert (
        '4 train queries have no label, of which assistants learned 2'
        in (tmp_path / 'w/report.html').read_text()
    )
