"""Measures rankings on a split."""

import functools
import pathlib
from collections.abc import Mapping

from absl import logging

from jdkd.corpus.sources import base
from jdkd.retrieval import answers, measures, trec
from jdkd.retrieval.measures import Measurements
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Queries, Run
from jdkd.systems.ranking import own_passages

Qrels = Mapping[str, Mapping[str, int]]  # {query id: {passage id: grade}}


def measure(
    run: Run, ranking: Ranking, queries: Queries, qrels: Qrels | None = None
) -> Measurements:
    """The config's measures of a ranking, by judgements or else by the collection's own."""
    scores = trec.from_ranking(ranking, queries.ids, run.collection.passage_ids)
    return _measure(run, scores, queries, qrels)


def measure_all(
    run: Run,
    rankings: Mapping[str, Ranking],
    queries: Queries,
    directory: pathlib.Path,
    qrels: Qrels | None = None,
) -> dict[str, Measurements]:
    """As `measure`, of rankings by name; saves the measures of each query into a directory."""
    measured = {name: measure(run, ranking, queries, qrels) for name, ranking in rankings.items()}
    for name, measurements in measured.items():
        measurements.save(directory, name)
    return measured


def write_run_file(
    path: pathlib.Path, run: Run, ranking: Ranking, queries: Queries, name: str
) -> None:
    """Writes the TREC run file of a system's ranking."""
    trec.write(path, trec.from_ranking(ranking, queries.ids, run.collection.passage_ids), name)


def measure_file(run: Run, path: pathlib.Path, queries: Queries) -> Measurements:
    """The config's measures of a run file made elsewhere; `jdkd.retrieval.trec` lists the formats.

    As in rankings of our own, a query's own passage is left out; see `ranking.own_passages`.
    Queries that the collection lacks are passed over: a run may answer more topics than are judged.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is not of this collection, or has none of the queries.
    """
    unknown: dict[str, dict] = {}
    count = base.count_errors(unknown)

    def on_error(kind: str, message: str) -> None:
        (count if kind == trec.UNKNOWN_QUERY else base.raise_error)(kind, message)

    read, ids = trec.read(path, run.collection, on_error), run.collection.passage_ids
    base.log_skipped(str(path), unknown)
    scores = {}
    for query_id, own in zip(queries.ids, own_passages(run, queries), strict=True):
        if query_id in read.queries:
            rows, values = read.of(query_id)
            pairs = zip(ids.take(rows[rows != own]), values[rows != own], strict=True)
            scores[query_id] = trec.sort_scores(dict(pairs))
    if not scores:
        raise ValueError(
            f'{path} has none of the {len(queries)} queries of split {queries.split!r}; give a '
            'run of that split.'
        )
    if len(scores) < len(queries):
        logging.warning(
            '%s has %d of the %d queries of split %r; the others count as 0.',
            path,
            len(scores),
            len(queries),
            queries.split,
        )
    return _measure(run, scores, queries)


def _measure(
    run: Run,
    scores: Mapping[str, Mapping[str, float]],
    queries: Queries,
    qrels: Qrels | None = None,
) -> Measurements:
    if qrels is None:
        qrels = run.collection.qrels.get(queries.split, {})
    strings = run.collection.answers.get(queries.split, {})
    rows, texts = run.collection.id_index, run.passages.texts

    def has_answer(strings, passage_id):  # As in DPR, titles do not count.
        return answers.has_answer(texts[rows[passage_id]], strings)

    tests = {i: functools.partial(has_answer, strings[i]) for i in queries.ids if i in strings}
    judged = {i: qrels.get(i, {}) for i in queries.ids}
    return measures.measure(scores, judged, run.config.measures, tests)
