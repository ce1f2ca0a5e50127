"""What the rounds keep in the workdir: where it lies, and how later stages read it."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from jdkd.algorithm import coverage
from jdkd.lists import candidates
from jdkd.lists.candidates import Lists
from jdkd.lists.slices import SlicedTexts
from jdkd.run import Queries, Run
from jdkd.runtime import files

SPLITS = ('train', 'eval')  # D_train and D_eval.
STAND_INS = 'rounds/00/stand_ins'
FITTED = 'rounds/00/fitted'
RUNS = 'runs'  # Of a round: the mined passages.
PART_LISTS = 4096  # Lists whose dark examples are drawn, and records written, at once.


def round_path(round_index: int, stage: str) -> str:
    """Path of a round's stage in the workdir."""
    return f'rounds/{round_index:02d}/{stage}'


def split_queries(run: Run, split: str) -> Queries:
    """The queries of `train` or `eval`."""
    return run.train if split == 'train' else run.held_out


def without_positive(run: Run, split: str) -> np.ndarray:
    """Rows int32 of the queries in whose lists a passage stands in for a positive.

    Those are the unlabelled train queries, and those of D_eval if none there has a label; lists of
    D_eval are of its labelled queries otherwise.
    """
    if split == 'eval' and run.eval_has_labels:
        return np.zeros(0, np.int32)
    return np.flatnonzero(~split_queries(run, split).is_labelled).astype(np.int32)


def has_stand_ins(run: Run) -> bool:
    """Whether passages stand in for positives."""
    return any(len(without_positive(run, split)) for split in SPLITS)


def read_stand_ins(run: Run) -> dict | None:
    """Manifest of the passages that stand in for positives; None if all queries have one."""
    return run.read_manifest(STAND_INS) if has_stand_ins(run) else None


def positives(run: Run, split: str = 'train') -> list[np.ndarray]:
    """Rows of each query's positives, or of the passage that stands in for them."""
    queries = split_queries(run, split)
    rows = list(queries.positives)
    if len(unlabelled := without_positive(run, split)):
        stand_ins = np.load(run.workdir / STAND_INS / f'{split}.npy')
        for query, passage in zip(unlabelled, stand_ins, strict=True):
            rows[query] = np.array([passage] if passage >= 0 else [], np.int32)
    return rows


def eval_qrels(run: Run) -> dict[str, Mapping[str, int]]:
    """The judgements of D_eval, {query id: {passage id: grade}}; without any, of the stand-ins."""
    queries = run.held_out
    if run.eval_has_labels:
        return dict(run.collection.qrels[queries.split])
    ids, stand_ins = run.collection.passage_ids, positives(run, 'eval')
    return {
        query: dict.fromkeys(ids.take(rows), 1)
        for query, rows in zip(queries.ids, stand_ins, strict=True)
    }


def eval_inputs(run: Run) -> dict[str, str]:
    """What decides `eval_qrels` beside the collection, as an input of stages that measure."""
    stand_ins = None if run.eval_has_labels else read_stand_ins(run)
    return {'stand_ins': stand_ins['digest']} if stand_ins else {}


def best_positives(run: Run, split: str) -> list[np.ndarray]:
    """Rows of each query's positives of the highest grade, or of the passage that stands in.

    Where scores are imported, only those that have one: a query may be without any.
    """
    best, relevant = split_queries(run, split).best, positives(run, split)
    if coverage.partial_names(run.config):
        path = run.workdir / round_path(0, RUNS) / f'{split}.best.npy'
        kept = np.split(np.load(path), np.cumsum([len(own) for own in best])[:-1])
        best = [own[scored] for own, scored in zip(best, kept, strict=True)]
    labelled = split_queries(run, split).is_labelled
    return [b if own else r for b, r, own in zip(best, relevant, labelled, strict=True)]


def num_lists(run: Run) -> dict[str, int]:
    """Lists of a round for each split."""
    return candidates.count_lists(run.config, len(run.eval_rows))


def read_fitted(run: Run) -> dict:
    """`teacher` {member: weight} and `scales` {assistant: scale} as fitted in the first round."""
    return run.require_manifest(FITTED)['result']


def load_mined(run: Run, round_index: int, split: str) -> np.ndarray:
    """The passages that a round mined, `[Q, U]`, memory-mapped; what is written stays in memory."""
    path = run.workdir / round_path(round_index, RUNS) / f'{split}.npy'
    return files.map_array(path, 'c')


def load_originals(run: Run, round_index: int, split: str) -> Lists:
    """The candidate lists of a round, without dark examples."""
    with np.load(run.workdir / round_path(round_index, 'candidates') / f'{split}.npz') as f:
        return Lists.from_originals(f['query'], f['passages'])


def load_lists(run: Run, round_index: int, split: str) -> Lists:
    """The candidate lists of a round."""
    lists = load_originals(run, round_index, split)
    examples = [
        SlicedTexts(*arrays) for arrays in _read_dark(run, round_index, split, 'slices', 'counts')
    ]
    return dataclasses.replace(lists, dark=SlicedTexts.join(examples)) if examples else lists


def load_dark_tokens(run: Run, round_index: int, split: str) -> np.ndarray | None:
    """The student's tokens of a round's dark examples, as in training; None if there are none.

    Returns `[M, N_d, train_passage_length]` ids, padded.
    """
    count = len(load_originals(run, round_index, split))
    out, start = None, 0
    for tokens in read_dark_tokens(run, round_index, split):
        if out is None:
            out = np.empty((count, *tokens.shape[1:]), tokens.dtype)
        out[start : start + len(tokens)] = tokens
        start += len(tokens)
    return out


def read_dark_tokens(run: Run, round_index: int, split: str) -> Iterator[np.ndarray]:
    """Yields `load_dark_tokens` of `PART_LISTS` lists at a time."""
    return (tokens for (tokens,) in _read_dark(run, round_index, split, 'tokens'))


def _read_dark(
    run: Run, round_index: int, split: str, *names: str
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields arrays of each part that `_write_dark` wrote."""
    directory = run.workdir / round_path(round_index, 'candidates')
    for path in sorted(directory.glob(f'{split}-dark-*.npz')):
        with np.load(path) as f:
            yield tuple(f[name] for name in names)
