"""GenDataset of Algorithm 1: retrieve, draw candidates, score them, write D_train and D_eval."""

from collections.abc import Collection, Sequence

import numpy as np
from absl import logging

from jdkd import diagnostics
from jdkd.algorithm.teacher import Teacher, false_negatives, fit_weights, score_histogram
from jdkd.distillation import schedules
from jdkd.lists import candidates, dark, dataset
from jdkd.lists.candidates import Lists
from jdkd.lists.features import record_features
from jdkd.run import Queries, Run
from jdkd.runtime import distributed, stages
from jdkd.systems import scoring
from jdkd.systems.encoders import Encoder
from jdkd.systems.imported import ImportedScores
from jdkd.systems.lexical import BM25System
from jdkd.systems.ranking import ranking_inputs
from jdkd.systems.system import System

SPLITS = ('train', 'eval')
_FITTED, _STAND_INS = 'rounds/00/fitted', 'rounds/00/stand_ins'


def generate(
    run: Run,
    round_index: int,
    *,
    teacher: Teacher,
    miners: Sequence[System],
    pool: Sequence[System],
    student: System,
    encoder: Encoder,
    active: np.ndarray,
) -> tuple[dict, dict]:
    """Builds `rounds/<i>/{runs,candidates,scores,dataset}`.

    What is fitted to the labels of D_eval and what stands in for positives that train queries lack
    is found in the first round and stays: later rounds have the same teacher.

    Args:
        run: The run.
        round_index: i.
        teacher: T.
        miners: Mine hard negatives beside the pool and the student.
        pool: TA, the assistants.
        student: M, as it enters the round: it mines negatives too.
        encoder: The student's, for its tokenizer and lengths.
        active: Rows of the train queries of this round.

    Returns:
        The result of the scores (`teacher` weights, `scales` of assistants, `score_histogram`,
        `coverage` of imported scores, `flatness` of all scores, and the `one_hot` shares of the
        teacher's lists) and the dataset's manifest.
    """
    root = f'rounds/{round_index:02d}'
    retrievers = {s.name: s for s in [*miners, *pool, student]}.values()
    runs = _runs(run, f'{root}/runs', retrievers)
    if not round_index:
        _fit(run, runs, teacher, pool)
        if not run.train.is_labelled.all():
            _find_stand_ins(run, teacher, retrievers)
    drawn = _candidates(run, f'{root}/candidates', round_index, runs, encoder, active)
    scores = _scores(run, f'{root}/scores', drawn, teacher, pool, encoder)
    inputs = {
        'scores': scores['digest'],
        'false_negatives': run.config.candidates.false_negatives,
    }

    def write(out):
        dataset.write(out, {split: _features(run, root, split, encoder) for split in SPLITS})

    written = distributed.from_primary(
        lambda: run.stage(f'{root}/dataset', inputs, write),
        f'{root}/dataset',
        writes=[run.workdir / root / 'dataset' / stages.MANIFEST],
    )
    return {**scores['result'], 'one_hot': _one_hot(run, root, round_index)}, written


def stand_ins(run: Run) -> dict | None:
    """The manifest of what stands in for positives, None where all train queries have one."""
    return None if run.train.is_labelled.all() else run.read_manifest(_STAND_INS)


def targets(run: Run, split: str = 'train') -> list[np.ndarray]:
    """Rows of each query's positives, or of the passage that stands in for one."""
    queries = _queries(run, split)
    found = list(queries.positives)
    if not queries.is_labelled.all():
        passages = np.load(run.workdir / _STAND_INS / 'passages.npy')
        for row, passage in zip(np.flatnonzero(~queries.is_labelled), passages, strict=True):
            found[row] = np.array([passage])
    return found


def _one_hot(run: Run, root: str, round_index: int) -> dict[str, float]:
    """Share of the train lists, without and with dark examples, whose teacher is near one-hot.

    At the temperature that the round begins with, which no stage before training depends on.
    """
    config = run.config
    tau = float(schedules.value(config.loss.temperature, round_index / config.rounds))
    teacher = np.load(run.workdir / root / 'scores/train.teacher.npy')
    originals = teacher[:, : 1 + config.candidates.hard_negatives]
    return {
        name: diagnostics.one_hot_share(logits, tau)
        for name, logits in (('originals', originals), ('all', teacher))
    }


def _queries(run: Run, split: str) -> Queries:
    return run.train if split == 'train' else run.held_out


def _runs(run: Run, path: str, retrievers: Collection[System]) -> dict:
    """Passages that each query's hard negatives are drawn from."""

    def build(out):
        for split in SPLITS:
            queries = _queries(run, split)
            rankings = [r.rank(queries)[0].passages for r in retrievers]
            pool = candidates.mining_pool(
                rankings, queries.positives, run.collection.group, run.config.candidates.depth
            )
            np.save(out / f'{split}.npy', pool)

    return run.stage(
        path,
        ranking_inputs(run, retrievers, depth=run.config.candidates.depth),
        build,
    )


def _draw(
    run: Run, split: str, round_index: int, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a round's lists: `[M]` queries, `[M]` their copies, `[M, N_o]` their originals.

    Args:
        run: The run; the round's `runs` are there.
        split: `train` or `eval`.
        round_index: The round.
        rows: Queries that may get lists.
    """
    config, queries = run.config, _queries(run, split)
    relevant = targets(run, split)
    seeds = {'seed': config.seed, 'round_index': round_index}
    rows, copies = candidates.choose_labelled(
        rows,
        queries.is_labelled,
        _num_lists(run)[split],
        share=config.candidates.labelled,
        **seeds,
    )
    group = run.collection.group
    pool = np.load(run.workdir / f'rounds/{round_index:02d}/runs/{split}.npy')
    for row in np.flatnonzero(~queries.is_labelled):  # Others' positives are not in it.
        pool[row][group[pool[row]] == group[relevant[row]]] = -1
    passages = candidates.sample_lists(
        rows,
        copies,
        query_ids=queries.ids,
        positives=relevant,
        best=[b if len(b) else r for b, r in zip(queries.best, relevant, strict=True)],
        pool=pool,
        group=group,
        num_negatives=config.candidates.hard_negatives,
        **seeds,
    )
    return rows, copies, passages


def _num_lists(run: Run) -> dict[str, int]:
    config = run.config
    # D_eval in whole batches, on any number of devices; queries come again where it has fewer.
    batches = min(config.candidates.eval_lists, len(run.held_out)) // config.batch_size
    return {
        'train': config.steps_per_round * config.batch_size,
        'eval': max(batches, 1) * config.batch_size,
    }


def _fit(run: Run, runs: dict, teacher: Teacher, pool: Sequence[System]) -> None:
    """Fits weights of the teacher's members and scales of assistants to the labels of D_eval.

    Held out, since members may have been trained on the labels of the train queries.
    """
    config = run.config
    members = teacher.members if teacher.weights is None else []
    unscaled = [s for s in pool if s.scale is None]

    def build(out):
        rows, _, passages = _draw(run, 'eval', 0, np.arange(len(run.held_out)))
        lists = Lists.from_originals(rows, passages)
        scores = {
            name: scoring.score_in_parts(s, run.held_out, lists, out, name)
            for name, s in {s.name: s for s in [*members, *unscaled]}.items()
        }
        return {
            'teacher': teacher.weights_on(scores),
            'scales': {s.name: fit_weights([scores[s.name]])[0] for s in unscaled},
        }

    inputs = {
        'runs': runs['digest'],
        'lists': _num_lists(run)['eval'],
        'hard_negatives': config.candidates.hard_negatives,
        'seed': config.seed,
        'teacher': {m.name: m.digest for m in teacher.members},
        'weights': teacher.weights,
        'assistants': {s.name: [s.digest, s.scale] for s in pool},
    }
    run.stage(_FITTED, inputs, build, resumable=True)


def _find_stand_ins(run: Run, teacher: Teacher, retrievers: Collection[System]) -> None:
    """For each unlabelled query, the teacher's best of the retrievers' best passages (ours)."""
    weights = run.read_manifest(_FITTED)['result']['teacher']
    depth = run.config.candidates.stand_ins

    def build(out):
        queries = np.flatnonzero(~run.train.is_labelled).astype(np.int32)
        rankings = [r.rank(run.train)[0].passages[queries] for r in retrievers]
        found = candidates.interleave(rankings, run.collection.group, depth)
        # Slots without a passage are scored as the first one, which does not change the best.
        found = np.where(found >= 0, found, found[:, :1])
        scores = teacher.score(weights, run.train, Lists.from_originals(queries, found), out)
        if distributed.is_primary():
            best = np.argmax(scores, axis=1)
            np.save(out / 'passages.npy', found[np.arange(len(found)), best])

    inputs = {
        **ranking_inputs(run, retrievers, depth=depth),
        'teacher': {m.name: [m.digest, weights[m.name]] for m in teacher.members},
    }
    run.stage(_STAND_INS, inputs, build, resumable=True)


def _candidates(
    run: Run, path: str, round_index: int, runs: dict, encoder: Encoder, active: np.ndarray
) -> dict:
    config = run.config

    def build(out):
        for split in SPLITS:
            queries = _queries(run, split)
            rows = active if split == 'train' else np.arange(len(queries))
            rows, copies, passages = _draw(run, split, round_index, rows)
            examples = dark.generate(
                passages,
                encoder.passage_tokens(run, prefix=False),
                query_ids=[queries.ids[r] for r in rows],
                copies=copies,
                special=encoder.tokenizer.special,
                length=config.train_passage_length - len(encoder.passage_prefix_ids),
                config=config.dark,
                seed=config.seed,
                round_index=round_index,
            )
            np.savez(out / f'{split}.npz', query=rows, passages=passages, dark=examples)

    found = stand_ins(run)
    return run.stage(
        path,
        {
            'runs': runs['digest'],
            'stand_ins': found and found['digest'],
            'active': candidates.array_digest(active),
            'lists': _num_lists(run),
            'labelled': found and config.candidates.labelled,
            'hard_negatives': config.candidates.hard_negatives,
            'dark': config.dark.to_dict(),
            'length': config.train_passage_length,
            'seed': config.seed,
        },
        build,
    )


def load_lists(run: Run, root: str, split: str, encoder: Encoder) -> Lists:
    """The candidate lists of a round."""
    with np.load(run.workdir / root / 'candidates' / f'{split}.npz') as f:
        return Lists(f['query'], f['passages'], f['dark'], encoder.tokenizer)


def _scores(
    run: Run, path: str, drawn: dict, teacher: Teacher, pool: Sequence[System], encoder: Encoder
) -> dict:
    """Logits of the teacher `[M, N]` and of the assistants `[M, K, N]` for both splits."""
    root = path.rsplit('/', 1)[0]
    systems = {s.name: s for s in [*teacher.members, *pool]}
    fitted = run.read_manifest(_FITTED)['result']

    def build(out):
        raw, coverage, flatness = {}, {}, {}
        drawn_lists = {split: load_lists(run, root, split, encoder) for split in SPLITS}
        for split, lists in drawn_lists.items():
            queries = _queries(run, split)
            for system in systems.values():
                if isinstance(system, ImportedScores):
                    share = system.coverage(queries, lists)
                    coverage.setdefault(system.name, {})[split] = share
                    logging.info(
                        '%s has %.1f%% of the pairs of %s', system.path, 100 * share, split
                    )
            raw[split] = {
                name: scoring.score_in_parts(s, queries, lists, out, f'{split}.{name}')
                for name, s in systems.items()
            }
        if not distributed.is_primary():
            return None
        num_originals = lists.passages.shape[1]
        for name, system in systems.items():
            own = raw['train'][name][:, :num_originals]
            starts = np.arange(0, own.size + 1, num_originals)
            flatness[name] = {'constant_share': diagnostics.constant_share(own.ravel(), starts)}
            # BM25 scores 0 wherever no term is shared.
            if not isinstance(system, BM25System):
                flatness[name]['saturated_share'] = diagnostics.saturated_share(own.ravel())
        for split, lists in drawn_lists.items():
            logits = sum(w * raw[split][name] for name, w in fitted['teacher'].items())
            scales = [fitted['scales'].get(s.name, s.scale) for s in pool]
            assistants = [c * raw[split][s.name] for c, s in zip(scales, pool, strict=True)]
            logits = logits.astype(np.float32)
            queries = _queries(run, split)
            scoring.check_finite('teacher', logits, run, queries, lists)
            np.save(out / f'{split}.teacher.npy', logits)
            if assistants:
                stacked = np.stack(assistants, axis=1).astype(np.float32)
                scoring.check_finite('assistants', stacked, run, queries, lists)
                np.save(out / f'{split}.assistants.npy', stacked)
        histogram = score_histogram(
            np.load(out / 'train.teacher.npy'),
            run.train.is_labelled[drawn_lists['train'].query],
            num_originals,
            run.config.dark.reinforced,
        )
        return {
            **fitted,
            'score_histogram': histogram,
            'coverage': coverage,
            'flatness': flatness,
        }

    return run.stage(
        path,
        {
            'candidates': drawn['digest'],
            'teacher': {m.name: m.digest for m in teacher.members},
            'weights': teacher.weights,
            'assistants': {s.name: [s.digest, s.scale] for s in pool},
            'fitted': fitted,
        },
        build,
        resumable=True,
    )


def _features(run: Run, root: str, split: str, encoder: Encoder) -> dict[str, np.ndarray]:
    lists = load_lists(run, root, split, encoder)
    features = record_features(run, lists, targets(run, split))
    if not run.train.is_labelled.all():
        features['labelled'] = _queries(run, split).is_labelled[lists.query]
    scores = run.workdir / root / 'scores'
    features['teacher'] = np.load(scores / f'{split}.teacher.npy')
    if (scores / f'{split}.assistants.npy').exists():
        features['assistants'] = np.load(scores / f'{split}.assistants.npy')
    if lists.dark.shape[1]:
        features['dark'] = encoder.prefixed(lists.dark).astype(np.int32)
    features['false_negative'] = false_negatives(
        features['teacher'][:, : lists.passages.shape[1]], run.config.candidates.false_negatives
    )
    return features
