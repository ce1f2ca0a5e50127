"""Scores of a round's lists: kept raw, once for each system, and read as logits."""

from collections.abc import Mapping, Sequence

import numpy as np

from jdkd import diagnostics
from jdkd.algorithm.round_files import SPLITS, load_lists, read_fitted, round_path, split_queries
from jdkd.algorithm.teacher import Teacher, score_histogram, weighted_sum
from jdkd.run import Run
from jdkd.runtime import distributed
from jdkd.systems import scoring
from jdkd.systems.system import System, unique


def keep_scores(
    run: Run,
    round_index: int,
    drawn: dict,
    teacher: Teacher,
    pool: Sequence[System],
) -> dict:
    """Scores a round's lists of both splits with the teacher's members and the assistants.

    `drawn` is the manifest of the lists. The manifest's result has the weights of the `teacher`,
    the `scales` of the assistants, the `score_histogram` and the `flatness` of all scores.
    """
    systems = unique([*teacher.members, *pool])
    fitted = read_fitted(run)
    # Logits per unit of score: fitted, or as the config entry gives them.
    scales = {s.name: fitted['scales'].get(s.name, s.scale) for s in pool}

    def build(out):
        drawn_lists = {split: load_lists(run, round_index, split) for split in SPLITS}
        raw, logits = {}, {}
        for split, lists in drawn_lists.items():
            queries = split_queries(run, split)
            raw[split] = scoring.score_with(systems, queries, lists, out, f'{split}.')
        if not distributed.is_primary():
            return None
        for split, lists in drawn_lists.items():
            logits[split] = _logits(raw[split], fitted['teacher'], scales)
            for group, values in logits[split].items():
                scoring.check_finite(group, values, run, split_queries(run, split), lists)
        train, teacher_logits = drawn_lists['train'], logits['train']['teacher']
        num_originals, labelled = train.passages.shape[1], run.train.is_labelled[train.query]
        histogram = score_histogram(
            teacher_logits, labelled, num_originals, run.config.dark.reinforced
        )
        flatness = {s.name: _flatness(s, raw['train'][s.name][:, :num_originals]) for s in systems}
        return {
            'teacher': fitted['teacher'],
            'scales': scales,
            'score_histogram': histogram,
            'flatness': flatness,
        }

    inputs = {
        'candidates': drawn['digest'],
        'teacher': {m.name: m.digest for m in teacher.members},
        'assistants': {s.name: [s.digest, s.scale] for s in pool},
        'fitted': fitted,
    }
    return run.stage(round_path(round_index, 'scores'), inputs, build, resumable=True)


def load_logits(
    run: Run, round_index: int, split: str, assistants: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Logits of a round's lists: `teacher` `[M, N]`, and `assistants` `[M, K, N]` in this order."""
    path = round_path(round_index, 'scores')
    result = run.require_manifest(path)['result']
    weights = result['teacher']
    scales = {name: result['scales'][name] for name in assistants}
    with np.load(run.workdir / round_path(round_index, 'candidates') / f'{split}.npz') as lists:
        count = len(lists['query'])
    raw = {
        name: scoring.read_parts(run.workdir / path, f'{split}.{name}', count)
        for name in weights | scales
    }
    return _logits(raw, weights, scales)


def _logits(
    raw: Mapping[str, np.ndarray], weights: Mapping[str, float], scales: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Logits of teacher and assistants from raw scores by system; see `load_logits`."""
    logits = {'teacher': weighted_sum(weights, raw.__getitem__).astype(np.float32)}
    if scales:
        assistants = np.stack([scale * raw[name] for name, scale in scales.items()], axis=1)
        logits['assistants'] = assistants.astype(np.float32)
    return logits


def _flatness(system: System, originals: np.ndarray) -> dict[str, float]:
    """Shares of constant lists and, where they mean a loss, of saturated scores."""
    starts = np.arange(0, originals.size + 1, originals.shape[1])
    flatness = {'constant_share': diagnostics.constant_share(originals.ravel(), starts)}
    if system.may_saturate:
        flatness['saturated_share'] = diagnostics.saturated_share(originals.ravel())
    return flatness
