"""What Algorithm 1 asks of a system, and what all systems share."""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from absl import logging

from jdkd.data import answers, runs
from jdkd.data.candidates import Lists
from jdkd.retrieval import evaluate, index
from jdkd.retrieval.evaluate import Measured
from jdkd.retrieval.index import Ranking
from jdkd.run import Queries, Run
from jdkd.runtime import stages

_LISTS = 4096  # Scored at once: what a restart may have to do again.

# (rows of queries [B], rows of passages [C]) -> raw scores [B, C] float32.
Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]
# lists -> raw scores [M, N_o + N_d] float32.
ListScorer = Callable[[Lists], np.ndarray]
# depth -> that many passages a query, and facts such as the index' recall.
Search = Callable[[int], tuple[Ranking, dict[str, float]]]


class System(Protocol):
    """What Algorithm 1 needs of a retriever or a scorer.

    Attributes:
        name: As in the config and the report.
        digest: Of all that decides its scores.
        scale: Logits per unit of score; None to fit it to the labels.
    """

    name: str
    digest: str
    scale: float | None

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        """The collection ranked for each query, and facts such as the index' recall."""
        ...

    def list_scorer(self, queries: Queries) -> ListScorer:
        """Scores candidate lists of a split's queries: originals, then dark examples.

        The stages that it reads are built here: what is returned can be called by one process.
        """
        ...

    def scorer(self, queries: Queries) -> Scorer:
        """Scores every query of a batch against every passage of it, cheaply, while training.

        Raises:
            ValueError: if the system cannot; `jdkd.validation` says so beforehand.
        """
        ...


def score_in_parts(
    system: System, queries: Queries, lists: Lists, directory: pathlib.Path, name: str
) -> np.ndarray:
    """A system's scores of many lists, `[M, N_o + N_d]` float32, of which each process does some.

    Args:
        system: The scorer.
        queries: Of the lists.
        lists: What is scored.
        directory: Of a resumable stage: a restart does not score again what is there.
        name: Of the files there, one for 4,096 lists.

    Raises:
        FloatingPointError: if a score is not finite, naming system, query and passage.
    """
    scorer = system.list_scorer(queries)

    def write(i, file):
        part = lists[i * _LISTS : (i + 1) * _LISTS]
        scores = scorer(part)
        check_finite(system.name, scores, system.run, queries, part)
        np.save(file, scores)

    paths = stages.parts(directory, f'{name}.{{}}.npy', -(-len(lists) // _LISTS), write)
    return np.concatenate([np.load(path) for path in paths])


def check_finite(name: str, scores: np.ndarray, run: Run, queries: Queries, lists: Lists) -> None:
    """Checks scores of candidate lists.

    Args:
        name: What gave them.
        scores: `[M, ..., N]`.
        run: The run.
        queries: Of the lists.
        lists: What was scored.

    Raises:
        FloatingPointError: if a score is not finite, naming system, query and passage.
    """
    bad = np.argwhere(~np.isfinite(scores))
    if not len(bad):
        return
    row, column = bad[0][0], bad[0][-1]
    dark = column - lists.passages.shape[1]
    passage = f'dark example {dark}'
    if dark < 0:
        passage = f"passage '{run.collection.passage_ids[lists.passages[row, column]]}'"
    raise FloatingPointError(
        f"'{name}' gives query '{queries.ids[lists.query[row]]}' and {passage} the score "
        f'{scores[tuple(bad[0])]}, and {len(bad)} of {scores.size} scores of split '
        f"'{queries.split}' are not finite; look at its weights or its file, or take it out of the "
        'config.'
    )


def measure(run: Run, ranking: Ranking, queries: Queries) -> Measured:
    """The config's measures of a ranking."""
    found = evaluate.to_run(ranking, queries.ids, run.collection.passage_ids)
    return _measure(run, found, queries)


def measure_file(run: Run, path: pathlib.Path, queries: Queries) -> Measured:
    """The config's measures of a run made elsewhere; see `jdkd.data.runs` for its formats.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is not of this collection, or has none of the queries.
    """
    scores = runs.read(path, run.collection)
    ids = run.collection.passage_ids
    found = {}
    for query_id in scores.queries.keys() & set(queries.ids):
        rows, values = scores.of(query_id)
        found[query_id] = evaluate.in_order(dict(zip(ids.take(rows), values, strict=True)))
    if not found:
        raise ValueError(
            f'{path} has none of the {len(queries)} queries of split {queries.split!r}; give a '
            'run of that split.'
        )
    return _measure(run, found, queries)


def _measure(run: Run, found: Mapping[str, Mapping[str, float]], queries: Queries) -> Measured:
    qrels = run.collection.qrels.get(queries.split, {})
    strings = run.collection.answers.get(queries.split, {})
    return evaluate.measure(
        found,
        {i: qrels.get(i, {}) for i in queries.ids},
        run.config.measures,
        {i: _has_answer(run, strings[i]) for i in queries.ids if i in strings},
    )


def _has_answer(run: Run, strings: Sequence[str]) -> Callable[[str], bool]:
    """Whether a passage, by its id, holds an answer; titles do not count, as in DPR."""
    row, texts = run.collection.row, run.collection.texts
    return lambda passage_id: answers.has_answer(texts[row[passage_id]], strings)


def own_passages(run: Run, queries: Queries) -> np.ndarray:
    """`[Q]` int32: for each query the passage that is no result of it; -1 for none.

    With `ignore_identical_ids` that is the passage with the query's id, as in BEIR: in some
    collections (ArguAna, Quora) the query itself is a passage and would come first.
    """
    if not run.config.ignore_identical_ids:
        return np.full(len(queries), -1, np.int32)
    return run.collection.row.find(queries.ids)


def ranked(
    run: Run, name: str, queries: Queries, search: Search
) -> tuple[Ranking, dict[str, float]]:
    """What a search finds for queries less their own passages, to the config's full depth.

    Args:
        run: The run.
        name: Of the system that searches.
        queries: What is searched for.
        search: The search.

    Raises:
        FloatingPointError: if a score is not finite, naming system, query and passage.
    """
    depth = min(run.config.depth, len(run.collection))
    own = own_passages(run, queries)
    if (own < 0).all():
        return _checked(run, name, queries, *search(depth))
    # Where the id is the passage's by chance, a judged passage may go: BEIR's figures miss it too.
    lost = sum(row in rows for row, rows in zip(own, queries.positives, strict=True))
    if lost:
        logging.warning(
            '%s: %d queries of split %r have the id of a passage that is judged relevant to them, '
            'and lose it, as in BEIR; where ids coincide by chance, set '
            'ignore_identical_ids=False.',
            run.collection.name,
            lost,
            queries.split,
        )
    ranking, facts = _checked(run, name, queries, *search(depth + 1))
    return index.without(ranking, own, depth), facts


def _checked(run: Run, name: str, queries: Queries, ranking: Ranking, facts: dict):
    found = Lists.originals(np.arange(len(queries)), ranking.passages)
    known = np.where(ranking.passages < 0, 0, ranking.scores)
    check_finite(name, known, run, queries, found)
    return ranking, facts


def retrieval(run: Run, systems: Iterable[System], *, depth: int | None = None) -> dict:
    """All that decides what systems find, as inputs of the stages that are made from it.

    Args:
        run: The run.
        systems: Which; their digests are named.
        depth: How much of the rankings is used; None for all.
    """
    config, systems = run.config, list(systems)
    return {
        'systems': {s.name: s.digest for s in systems},
        'collection': run.collection.fingerprint,
        'depth': config.depth if depth is None else depth,
        'ignore_identical_ids': config.ignore_identical_ids,
        # BM25 and imported scores have none.
        'index': config.index.to_dict() if any(hasattr(s, 'encoder') for s in systems) else None,
    }


def measuring(run: Run, systems: Iterable[System]) -> dict:
    """The same for stages that measure systems."""
    return {**retrieval(run, systems), 'measures': run.config.measures}


def keep_ranking(
    system: 'System', queries: Queries, search: Search
) -> tuple[Ranking, dict[str, float]]:
    """A system's ranking of a split, see `ranked`, kept as a stage."""
    run = system.run
    path = f'systems/{system.name}/ranking-{queries.split}'

    def build(out):
        ranking, facts = ranked(run, system.name, queries, search)
        ranking.save(out, 'ranking')
        return facts

    manifest = run.stage(path, retrieval(run, [system]), build)
    return index.load_ranking(run.workdir / path, 'ranking'), manifest['result']
