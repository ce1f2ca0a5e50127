"""Draws the candidate lists of a round: from mined passages, with dark examples."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jdkd.algorithm import coverage
from jdkd.lists import candidates, dark
from jdkd.lists.candidates import Lists
from jdkd.lists.slices import SlicedTexts
from jdkd.run import Queries, Run
from jdkd.runtime import distributed, files
from jdkd.runtime.parts import join_rows, write_parts
from jdkd.systems.encoders import Encoder
from jdkd.systems.ranking import PART_QUERIES, ranking_inputs
from jdkd.systems.system import System

SPLITS = ('train', 'eval')  # D_train and D_eval.
STAND_INS = 'rounds/00/stand_ins'
PART_LISTS = 4096  # Lists whose dark examples are drawn, and records written, at once.
_RUNS = 'runs'


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
        path = run.workdir / round_path(0, _RUNS) / f'{split}.best.npy'
        kept = np.split(np.load(path), np.cumsum([len(own) for own in best])[:-1])
        best = [own[scored] for own, scored in zip(best, kept, strict=True)]
    labelled = split_queries(run, split).is_labelled
    return [b if own else r for b, r, own in zip(best, relevant, labelled, strict=True)]


def num_lists(run: Run) -> dict[str, int]:
    """Lists of a round for each split."""
    return candidates.count_lists(run.config, len(run.eval_rows))


def best_passages(
    run: Run,
    queries: Queries,
    rows: np.ndarray,
    retrievers: Sequence[System],
    partial: Sequence[System] = (),
) -> Lists:
    """Lists of the retrievers' `candidates.stand_ins` best passages for rows of queries.

    Of passages that all `partial` systems have scores for; padded with -1.
    """
    rankings = [
        coverage.covered_first(partial, queries, r.rank(queries)[0].passages)[rows]
        for r in retrievers
    ]
    depth = run.config.candidates.stand_ins
    return Lists.from_originals(rows, candidates.interleave(rankings, run.collection.group, depth))


def mine(
    run: Run, round_index: int, retrievers: Sequence[System], scorers: Sequence[System]
) -> dict:
    """Keeps the passages that each query's hard negatives are drawn from, as a stage.

    Passages that some of the `scorers` (the teacher's members and the assistants) have no score for
    are left out, and so are such positives; see `coverage`.
    """
    depth, partial = run.config.candidates.depth, coverage.partial(scorers)

    def build(out):
        for split in SPLITS:
            _mine_split(run, split, retrievers, partial, out)

    inputs = ranking_inputs(run, retrievers, run.train, run.held_out, depth=depth)
    inputs['partial'] = {s.name: s.digest for s in partial} or None
    return run.stage(round_path(round_index, _RUNS), inputs, build, resumable=True)


def _mine_split(
    run: Run,
    split: str,
    retrievers: Sequence[System],
    partial: Sequence[System],
    out: pathlib.Path,
) -> None:
    """Writes the pool of a split, in parts: rankings of all queries may be larger than memory."""
    queries = split_queries(run, split)
    rankings = [r.rank(queries)[0].passages for r in retrievers]  # Memory-mapped.

    def write(i, file):
        start, end = i * PART_QUERIES, (i + 1) * PART_QUERIES
        covered = [
            coverage.covered_first(partial, queries, ranking[start:end], start)
            for ranking in rankings
        ]
        own, depth = queries.positives[start:end], run.config.candidates.depth
        np.save(file, candidates.mining_pool(covered, own, run.collection.group, depth))

    parts = write_parts(out, f'{split}-{{}}.npy', -(-len(queries) // PART_QUERIES), write)
    if not distributed.is_primary():
        return
    join_rows(out / f'{split}.npy', map(np.load, parts), len(queries))
    for part in parts:
        part.unlink()
    if partial:
        scored = coverage.covered_rows(partial, queries, queries.best)
        np.save(out / f'{split}.best.npy', scored)


def load_pool(run: Run, round_index: int, split: str) -> np.ndarray:
    """The passages that a round mined, `[Q, U]`, memory-mapped; what is written stays in memory."""
    path = run.workdir / round_path(round_index, _RUNS) / f'{split}.npy'
    return files.map_array(path, 'c')


@dataclasses.dataclass(frozen=True)
class ScoredPool:
    """Passages with the teacher's logits, to draw hard negatives from; see `scored_pool`."""

    inputs: Mapping[str, Any]  # Everything that decides it, as inputs of stages.
    load: Callable[[str], tuple[np.ndarray, candidates.Ranked]]  # Of a split.


def draw(
    run: Run,
    split: str,
    round_index: int,
    rows: np.ndarray,
    scored: ScoredPool | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a round's lists for some queries from its mined passages, or from the `scored` pool.

    Returns `[M]` rows of queries, `[M]` their copies and `[M, N_o]` rows of the originals. Where
    scores are imported, queries without enough of them are left out; if that leaves none of `rows`,
    the others take their place.

    Raises:
        ValueError: if imported scores leave no query.
    """
    config, queries = run.config, split_queries(run, split)
    relevant, group = positives(run, split), run.collection.group
    best, partial = best_positives(run, split), coverage.partial_names(run.config)
    seeds = {'seed': config.seed, 'round_index': round_index}
    if scored is None:
        ranked = None
        pool = load_pool(run, round_index, split)
    else:
        pool, ranked = scored.load(split)
    # Mining has left out judged positives only.
    for row in without_positive(run, split):
        pool[row][np.isin(group[pool[row]], group[relevant[row]])] = -1
    if partial:
        usable = coverage.usable(config, queries.split, partial, best, pool, rows)
        rows = rows[usable[rows]] if usable[rows].any() else np.flatnonzero(usable)
    rows, copies = candidates.choose_labelled(
        rows, queries.is_labelled, num_lists(run)[split], share=config.candidates.labelled, **seeds
    )
    passages = candidates.sample_lists(
        rows,
        copies,
        query_ids=queries.ids,
        positives=relevant,
        best=best,
        pool=pool,
        group=group,
        num_negatives=config.candidates.hard_negatives,
        ranked=ranked,
        closed=bool(partial),
        **seeds,
    )
    return rows, copies, passages


def keep_lists(
    run: Run,
    round_index: int,
    mined: dict,
    encoder: Encoder,
    active: np.ndarray,
    scored: ScoredPool | None,
) -> dict:
    """Keeps the lists of both splits with their dark examples, as a resumable stage.

    `mined` is the manifest of `mine`; `active` are rows of the train queries of this round. The
    encoder is the student's: dark examples are made of its words, and their tokens are kept too,
    cut as in training, since training reads them many times. Hard negatives come from the `scored`
    pool if there is one.
    """
    config = run.config

    def build(out):
        for split in SPLITS:
            rows = active if split == 'train' else run.eval_rows
            rows, copies, passages = draw(run, split, round_index, rows, scored)
            if distributed.is_primary():
                np.savez(out / f'{split}.npz', query=rows, passages=passages)
            if config.dark.reinforced + config.dark.noisy:
                lists = Lists.from_originals(rows, passages)
                _write_dark(run, out, split, round_index, lists, copies, encoder)

    stand_ins = read_stand_ins(run)
    inputs = {
        'runs': mined['digest'],
        'stand_ins': stand_ins and stand_ins['digest'],
        'active': candidates.array_digest(active),
        'lists': num_lists(run),
        'labelled': stand_ins and config.candidates.labelled,
        'hard_negatives': config.candidates.hard_negatives,
        'scored': scored and scored.inputs,
        'dark': config.dark.to_dict(),
        'length': config.train_passage_length,
        'passage_length': encoder.spec.passage_length,
        'layout': dataclasses.asdict(encoder.layout),
        'tokenizer': encoder.tokenizer.fingerprint,
        'seed': config.seed,
    }
    return run.stage(round_path(round_index, 'candidates'), inputs, build, resumable=True)


def _write_dark(
    run: Run,
    out: pathlib.Path,
    split: str,
    round_index: int,
    lists: Lists,
    copies: np.ndarray,
    encoder: Encoder,
) -> None:
    """Draws the dark examples of lists and writes them, and their tokens, in parts."""
    config, ids = run.config, split_queries(run, split).ids
    length = config.train_passage_length

    def write(i, file):
        span = slice(i * PART_LISTS, (i + 1) * PART_LISTS)
        part = lists[span]
        examples = dark.generate(
            part.passages,
            run.passages,
            encoder.tokenizer,
            query_ids=[ids[int(row)] for row in part.query],
            copies=copies[span],
            room=encoder.text_room(length),
            config=config.dark,
            seed=config.seed,
            round_index=round_index,
        )
        tokens = encoder.dark_tokens(run, Lists(part.query, part.passages, examples))
        rows = np.arange(len(tokens)).reshape(examples.counts.shape)
        tokens = tokens.rows(rows, length, end=encoder.passage_end)
        np.savez(file, slices=examples.slices, counts=examples.counts, tokens=tokens)

    write_parts(out, f'{split}-dark-{{}}.npz', -(-len(lists) // PART_LISTS), write)


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
