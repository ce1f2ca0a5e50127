"""Mines passages for a round's queries, and draws their candidate lists, with dark examples."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jdkd.algorithm import coverage, scored_pool
from jdkd.algorithm.round_files import (
    PART_LISTS,
    RUNS,
    SPLITS,
    best_positives,
    load_mined,
    num_lists,
    positives,
    read_stand_ins,
    round_path,
    split_queries,
    without_positive,
)
from jdkd.lists import candidates, dark
from jdkd.lists.candidates import Lists
from jdkd.run import Queries, Run
from jdkd.runtime import distributed
from jdkd.runtime.parts import join_rows, write_parts
from jdkd.systems.encoders import Encoder
from jdkd.systems.ranking import PART_QUERIES, ranking_inputs
from jdkd.systems.system import System


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
    return run.stage(round_path(round_index, RUNS), inputs, build, resumable=True)


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
        np.save(file, candidates.mined_passages(covered, own, run.collection.group, depth))

    parts = write_parts(out, f'{split}-{{}}.npy', -(-len(queries) // PART_QUERIES), write)
    if not distributed.is_primary():
        return
    join_rows(out / f'{split}.npy', map(np.load, parts), len(queries))
    for part in parts:
        part.unlink()
    if partial:
        scored = coverage.covered_rows(partial, queries, queries.best)
        np.save(out / f'{split}.best.npy', scored)


def draw(
    run: Run,
    split: str,
    round_index: int,
    rows: np.ndarray,
    *,
    scored: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a round's lists for some queries from its mined passages, or from the scored pool.

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
    if scored:
        pool, ranked = scored_pool.load(run, round_index, split)
    else:
        pool, ranked = load_mined(run, round_index, split), None
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
    scored: Mapping[str, Any] | None,
) -> dict:
    """Keeps the lists of both splits with their dark examples, as a resumable stage.

    `mined` is the manifest of `mine`; `active` are rows of the train queries of this round. The
    encoder is the student's: dark examples are made of its words, and their tokens are kept too,
    cut as in training, since training reads them many times. Hard negatives come from the scored
    pool if there is one; `scored` are its inputs.
    """
    config = run.config

    def build(out):
        for split in SPLITS:
            rows = active if split == 'train' else run.eval_rows
            rows, copies, passages = draw(run, split, round_index, rows, scored=scored is not None)
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
        'scored': scored,
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
