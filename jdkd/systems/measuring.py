"""Measures of a system's rankings on a split."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

from jdkd.retrieval import answers, measures, trec
from jdkd.retrieval.index import Ranking
from jdkd.retrieval.measures import Measured
from jdkd.run import Queries, Run


def measure(run: Run, ranking: Ranking, queries: Queries) -> Measured:
    """The config's measures of a ranking."""
    found = measures.to_run(ranking, queries.ids, run.collection.passage_ids)
    return _measure(run, found, queries)


def measure_file(run: Run, path: pathlib.Path, queries: Queries) -> Measured:
    """The config's measures of a run made elsewhere; see `jdkd.retrieval.trec` for its formats.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is not of this collection, or has none of the queries.
    """
    scores = trec.read(path, run.collection)
    ids = run.collection.passage_ids
    found = {}
    for query_id in scores.queries.keys() & set(queries.ids):
        rows, values = scores.of(query_id)
        found[query_id] = measures.in_order(dict(zip(ids.take(rows), values, strict=True)))
    if not found:
        raise ValueError(
            f'{path} has none of the {len(queries)} queries of split {queries.split!r}; give a '
            'run of that split.'
        )
    return _measure(run, found, queries)


def _measure(run: Run, found: Mapping[str, Mapping[str, float]], queries: Queries) -> Measured:
    qrels = run.collection.qrels.get(queries.split, {})
    strings = run.collection.answers.get(queries.split, {})
    return measures.measure(
        found,
        {i: qrels.get(i, {}) for i in queries.ids},
        run.config.measures,
        {i: _has_answer(run, strings[i]) for i in queries.ids if i in strings},
    )


def _has_answer(run: Run, strings: Sequence[str]) -> Callable[[str], bool]:
    """Whether a passage, by its id, holds an answer; titles do not count, as in DPR."""
    row, texts = run.collection.id_index, run.collection.passages.texts
    return lambda passage_id: answers.has_answer(texts[row[passage_id]], strings)
