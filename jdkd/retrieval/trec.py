"""Reads rankings and scores of other systems, as arrays of 12 bytes per pair, and writes run files.

Files hold lines in one of the formats of `jdkd.retrieval.run_formats`, or JSON lines, and may be
gzipped (`.gz` after their name):

    {"query_id": ..., "passage_id": ..., "score": ...}
    {"query_id": ..., "passage_ids": [...], "scores": [...]}
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Column
from jdkd.corpus.sources import base, parsing, rows
from jdkd.corpus.sources.base import OnError
from jdkd.retrieval import run_formats
from jdkd.retrieval.ranking import Ranking
from jdkd.runtime import distributed, files, stages
from jdkd.runtime.messages import brief, shown

UNKNOWN_QUERY, UNKNOWN_PASSAGE = 'unknown query', 'unknown passage'  # Kinds of errors.
_CHUNK = 2**16  # Pairs looked up at a time.


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of passages for queries."""

    queries: Mapping[str, int]  # {query id: i}
    starts: np.ndarray  # `[Q + 1]` int64; query i has the pairs `starts[i]:starts[i + 1]`.
    rows: np.ndarray  # `[N]` int32 rows of passages, rising within a query.
    values: np.ndarray  # `[N]` float64 scores.

    def of(self, query_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows and scores of a query, both empty for an unknown query."""
        i = self.queries.get(query_id)
        part = slice(0) if i is None else slice(self.starts[i], self.starts[i + 1])
        return self.rows[part], self.values[part]

    def look_up(self, query_id: str, passages: np.ndarray) -> np.ndarray:
        """Returns float64 scores of passages, `[C]` rows, for a query; NaN where there is none."""
        rows, values = self.of(query_id)
        if not len(rows):
            return np.full(len(passages), np.nan)
        at = np.minimum(np.searchsorted(rows, passages), len(rows) - 1)
        return np.where(rows[at] == passages, values[at], np.nan)

    def save(self, directory: pathlib.Path) -> None:
        """Writes the arrays and queries.json."""
        for name in ('starts', 'rows', 'values'):
            np.save(directory / f'{name}.npy', getattr(self, name))
        stages.write_json(directory / 'queries.json', list(self.queries))


def load(directory: pathlib.Path) -> Scores:
    """Loads scores that `Scores.save` wrote, memory-mapped."""
    queries = {query: i for i, query in enumerate(stages.read_json(directory / 'queries.json'))}
    names = 'starts', 'rows', 'values'
    return Scores(queries, *(files.map_array(directory / f'{name}.npy') for name in names))


def read(
    path: pathlib.Path,
    collection: Collection,
    on_error: OnError = base.raise_error,
    *,
    format: str | None = None,
) -> Scores:
    """Reads a run file or a file of scores.

    Args:
        format: A name of `run_formats.named`, or json; None to tell it by the file's first lines.
        on_error: Receives lines that do not have the format, name an unknown query or passage,
            have a score that is not finite, or score a pair again; the first score is kept.

    Raises:
        ValueError: if the format is unknown or may be either of two, or no line can be used.
    """
    errors: dict[str, dict] = {}
    on_error = _counting(on_error, errors)
    queries = dict.fromkeys(q for split in collection.queries.values() for q in split)
    query_index = {query: i for i, query in enumerate(queries)}
    pairs = _pairs(pathlib.Path(path), on_error, format)
    chunks = []
    while chunk := list(itertools.islice(pairs, _CHUNK)):
        lines, query_ids, passage_ids, scores = zip(*chunk, strict=True)
        rows = collection.id_index.find(passage_ids)
        numbers = np.array([query_index.get(q, -1) for q in query_ids], np.int32)
        values = np.array(scores, np.float64)
        finite = np.abs(values) <= np.finfo(np.float32).max  # Later computations are in float32.
        valid = (rows >= 0) & (numbers >= 0) & finite
        for i in np.flatnonzero(~valid):
            on_error(*_pair_error(f'{path}:{lines[i]}', chunk[i], rows[i], numbers[i], collection))
        chunks.append([x[valid] for x in (numbers, rows, values, np.array(lines))])
    if not any(len(chunk[0]) for chunk in chunks):
        first = ''.join(f' The first error: {e["first"]}' for e in [*errors.values()][:1])
        raise ValueError(f'{path} holds no scores; give a run file or a file of scores.{first}')
    numbers, rows, values, lines = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    order = np.lexsort((rows, numbers))  # Stable: a pair's first score in the file stays first.
    numbers, rows, values, lines = (x[order] for x in (numbers, rows, values, lines))
    repeated = np.zeros(len(rows), bool)
    repeated[1:] = (numbers[1:] == numbers[:-1]) & (rows[1:] == rows[:-1])
    names = list(queries)
    for i in np.flatnonzero(repeated & (values != np.roll(values, 1))):
        on_error(
            'second score',
            f"{path}:{lines[i]}: passage '{collection.passage_ids[rows[i]]}' has two scores for "
            f"query '{names[numbers[i]]}'; keep one.",
        )
    numbers, rows, values = (x[~repeated] for x in (numbers, rows, values))
    scored, starts = np.unique(numbers, return_index=True)
    return Scores(
        {names[number]: i for i, number in enumerate(scored)},
        np.append(starts, len(rows)).astype(np.int64),
        rows,
        values,
    )


def _pair_error(
    where: str, pair: tuple, row: int, query: int, collection: Collection
) -> tuple[str, str]:
    """Returns kind and message of the error in a pair."""
    _, query_id, passage_id, value = pair
    if query >= 0 and row >= 0:
        message = f'{where}: the score is {value}; give a finite number of float32.'
        return 'score that is not finite', message
    kind, unknown_id = (UNKNOWN_QUERY, query_id) if query < 0 else (UNKNOWN_PASSAGE, passage_id)
    return (
        kind,
        f'{where}: {kind.split()[1]} {shown(unknown_id)} is not in collection {collection.name!r}; '
        'give a file of this collection (with on_error=skip, a system of scores leaves such lines '
        'out).',
    )


def _counting(on_error: OnError, errors: dict[str, dict]) -> OnError:
    """Makes a handler that counts errors before it passes them on."""
    count = base.count_errors(errors)

    def handle(kind: str, message: str) -> None:
        count(kind, message)
        on_error(kind, message)

    return handle


def _pairs(
    path: pathlib.Path, on_error: OnError, format: str | None
) -> Iterator[tuple[int, str, str, float]]:
    """Yields line number, query id, passage id and score of each pair."""
    lines = parsing.read_lines(path, on_error)
    sample = list(itertools.islice(lines, run_formats.SAMPLE))
    if not sample:
        return
    # A file of JSON that is one array is refused as such.
    is_json = format == run_formats.JSON or (
        not format and re.match(r'\s*(\{|\[\s*(\{|$))', sample[0][1])
    )
    layout = None
    if not is_json:
        layout = run_formats.find(sample[0][0], [line for _, line in sample], format)
    for position, (where, line) in enumerate(itertools.chain(sample, lines)):
        if layout and layout.has_header and not position:
            rows.log_header(where, line.split())
            continue
        try:
            parsed = [layout.parse(line, position)] if layout else _parse_json(line)
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            expected = f"not a run line; it must read '{layout}'" if layout else _EXPECTED_JSON
            on_error('broken line', f'{where}: {expected} ({brief(error)}).')
            continue
        number = int(where.rpartition(':')[2])
        for query_id, passage_id, score in parsed:
            yield number, query_id, passage_id, score


def _parse_json(line: str) -> Sequence[tuple[str, str, float]]:
    """Returns query id, passage id and score of each pair in a JSON line."""
    entry = parsing.parse_json_object(line)
    query_id = parsing.check_id('line', 'query_id', entry.get('query_id'))
    if 'passage_id' in entry:
        ids = [parsing.check_id('line', 'passage_id', entry['passage_id'])]
        scores = [entry['score']]
    else:
        listed, scores = (parsing.check_once('line', entry[f]) for f in ('passage_ids', 'scores'))
        if not (isinstance(listed, list) and isinstance(scores, list)):
            raise ValueError(f'passage_ids is {shown(listed)} and scores {shown(scores)}, no lists')
        ids = [parsing.check_id('line', 'passage_id', i) for i in listed]
        if len(ids) != len(scores):
            raise ValueError(f'{len(ids)} passage_ids and {len(scores)} scores')
    for score in scores:
        parsing.check_once('line', score)
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise ValueError(f'score {shown(score)} is no number')
    return [(query_id, i, float(score)) for i, score in zip(ids, scores, strict=True)]


_CONVERTED = 256  # Queries whose passages get their ids at once.
_EXPECTED_JSON = 'not an object with query_id, and passage_id and score or passage_ids and scores'


def from_ranking(
    ranking: Ranking, query_ids: Sequence[str], passage_ids: Column
) -> dict[str, dict[str, float]]:
    """Converts a ranking to {query id: {passage id: score}}, each query's passages best first.

    Like trec_eval it orders equal scores by falling passage id, so that every measure and every
    reader of a run file sees the same order.
    """
    run = {}
    for start in range(0, len(query_ids), _CONVERTED):
        part = slice(start, start + _CONVERTED)
        rows, scores = ranking.passages[part], ranking.scores[part].tolist()
        ids = iter(passage_ids.take(rows[rows >= 0]))
        for query_id, there, own in zip(query_ids[part], rows >= 0, scores, strict=True):
            found = itertools.compress(own, there)
            run[query_id] = sort_scores({next(ids): score for score in found})
    return run


def sort_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Sorts the passages of one query best first as trec_eval does, whose scores are float32."""
    pairs = [(float(np.float32(score)), pid) for pid, score in scores.items()]
    return {pid: score for score, pid in sorted(pairs, reverse=True)}


def write(path: pathlib.Path, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Writes a TREC run file; of several processes, only the primary one writes."""
    if not distributed.is_primary():
        return
    with files.atomic_write(path) as f:
        for query_id, ranked in run.items():
            for rank, (passage_id, score) in enumerate(ranked.items(), start=1):
                f.write(f'{query_id} Q0 {passage_id} {rank} {score:.9g} {tag}\n')
