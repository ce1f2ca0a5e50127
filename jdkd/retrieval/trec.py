"""Rankings and scores made elsewhere, as arrays: 12 bytes a pair of query and passage.

What is read, told apart by the first line; each file may be gzipped (`.gz` after its name):

    query Q0 passage rank score tag                      a TREC run
    query<TAB>passage<TAB>rank                           MS MARCO's runs; the score is -rank
    query<TAB>passage<TAB>query text<TAB>passage text    MS MARCO's top 1000; in the file's order
    {"query_id": ..., "passage_id": ..., "score": ...}
    {"query_id": ..., "passage_ids": [...], "scores": [...]}
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jdkd.corpus.collection import Collection
from jdkd.corpus.sources import base, parsing
from jdkd.corpus.sources.base import OnError
from jdkd.runtime import stages
from jdkd.runtime.messages import brief, shown

_CHUNK = 2**16  # Pairs that are looked up at a time.


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of passages for queries.

    Attributes:
        queries: {query id: i}.
        starts: `[Q + 1]` int64; query i has the pairs `starts[i]:starts[i + 1]`.
        rows: `[N]` int32 rows of passages, rising for each query.
        values: `[N]` float64 scores.
    """

    queries: Mapping[str, int]
    starts: np.ndarray
    rows: np.ndarray
    values: np.ndarray

    def of(self, query_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores of a query, both empty if it is not there."""
        i = self.queries.get(query_id)
        part = slice(0) if i is None else slice(self.starts[i], self.starts[i + 1])
        return self.rows[part], self.values[part]

    def look_up(self, query_id: str, passages: np.ndarray) -> np.ndarray:
        """`[C]` float64 scores of passages for a query, NaN where there is none.

        Args:
            query_id: Of the query.
            passages: `[C]` rows.
        """
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
    """What `Scores.save` wrote, memory-mapped."""
    queries = {query: i for i, query in enumerate(stages.read_json(directory / 'queries.json'))}
    arrays = {
        name: np.asarray(np.load(directory / f'{name}.npy', mmap_mode='r'))
        for name in ('starts', 'rows', 'values')
    }
    return Scores(queries, **arrays)


def read(path: pathlib.Path, collection: Collection, fault: OnError = base.raise_error) -> Scores:
    """Reads a file in one of the formats above.

    Args:
        path: The file.
        collection: Whose queries and passages it must name.
        fault: Told of lines that are not of the format, name an unknown query or passage, have a
            score that is not finite, or give a pair a second score; the first one stays.

    Raises:
        ValueError: for a first line of no known format, or an empty file.
    """
    known = dict.fromkeys(q for split in collection.queries.values() for q in split)
    known = {query: i for i, query in enumerate(known)}
    pairs = _pairs(pathlib.Path(path), fault)
    chunks = []
    while chunk := list(itertools.islice(pairs, _CHUNK)):
        lines, queries, passages, values = zip(*chunk, strict=True)
        rows = collection.id_index.find(passages)
        numbers = np.array([known.get(q, -1) for q in queries], np.int32)
        values = np.array(values, np.float64)
        # Scores are computed with in float32.
        finite = np.abs(values) <= np.finfo(np.float32).max
        good = (rows >= 0) & (numbers >= 0) & finite
        for i in np.flatnonzero(~good):
            fault(*_pair_fault(f'{path}:{lines[i]}', chunk[i], rows[i], numbers[i], collection))
        chunks.append([x[good] for x in (numbers, rows, values, np.array(lines))])
    if not chunks:
        raise ValueError(f'{path} holds no scores; give a run or a file of scores.')
    numbers, rows, values, lines = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    order = np.lexsort((rows, numbers))  # Stable: of a pair's scores the file's first comes first.
    numbers, rows, values, lines = (x[order] for x in (numbers, rows, values, lines))
    again = np.zeros(len(rows), bool)
    again[1:] = (numbers[1:] == numbers[:-1]) & (rows[1:] == rows[:-1])
    names = list(known)
    for i in np.flatnonzero(again & (values != np.roll(values, 1))):
        fault(
            'second score',
            f"{path}:{lines[i]}: passage '{collection.passage_ids[rows[i]]}' has two scores for "
            f"query '{names[numbers[i]]}'; keep one.",
        )
    numbers, rows, values = (x[~again] for x in (numbers, rows, values))
    found, starts = np.unique(numbers, return_index=True)
    return Scores(
        {names[number]: i for i, number in enumerate(found)},
        np.append(starts, len(rows)).astype(np.int64),
        rows,
        values,
    )


def _pair_fault(
    where: str, pair: tuple, row: int, query: int, collection: Collection
) -> tuple[str, str]:
    _, query_id, passage_id, value = pair
    if query < 0:
        unknown = 'query', query_id
    elif row < 0:
        unknown = 'passage', passage_id
    else:
        return (
            'score that is not finite',
            f'{where}: the score is {value}; give a finite number of float32.',
        )
    return (
        f'unknown {unknown[0]}',
        f'{where}: {unknown[0]} {shown(unknown[1])} is not in collection '
        f'{collection.name!r}; the file must be of this collection, or be read with on_error=skip.',
    )


def _pairs(path: pathlib.Path, fault: OnError) -> Iterator[tuple[int, str, str, float]]:
    """(line, query id, passage id, score) of each pair."""
    parse = None
    for position, (where, line) in enumerate(parsing.read_lines(path, fault)):
        parse = parse or _format(where, line)
        try:
            parsed = parse(line, position)
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            fault('broken line', f'{where}: {_EXPECTED[parse]} ({brief(error)}).')
            continue
        number = int(where.rpartition(':')[2])
        for query_id, passage_id, score in parsed:
            yield number, query_id, passage_id, score


def _format(where: str, line: str) -> Callable[[str, int], Sequence[tuple[str, str, float]]]:
    if line.startswith('{'):
        return _parse_json
    if line.count('\t') == 3:
        return _parse_texts
    if len(line.split()) in (3, 6):
        return _parse_ranks if len(line.split()) == 3 else _parse_trec
    raise ValueError(
        f"{where}: not a line of scores; write 'query Q0 passage rank score tag' (TREC), "
        "'query passage rank' or four fields with tabs (MS MARCO), or JSON objects with query_id, "
        'passage_id and score.'
    )


def _parse_trec(line: str, position: int) -> Sequence[tuple[str, str, float]]:
    del position
    query_id, _, passage_id, _, score, _ = line.split()
    return [(query_id, passage_id, float(score))]


def _parse_ranks(line: str, position: int) -> Sequence[tuple[str, str, float]]:
    del position
    query_id, passage_id, rank = line.split()
    return [(query_id, passage_id, -float(int(rank)))]


def _parse_texts(line: str, position: int) -> Sequence[tuple[str, str, float]]:
    query_id, passage_id, _, _ = line.split('\t')
    return [(query_id, passage_id, -float(position))]


def _parse_json(line: str, position: int) -> Sequence[tuple[str, str, float]]:
    del position
    entry = parsing.parse_json_object(line)
    query_id = parsing.check_id('line', 'query_id', entry.get('query_id'))
    if 'passage_id' in entry:
        ids = [parsing.check_id('line', 'passage_id', entry['passage_id'])]
        scores = [entry['score']]
    else:
        ids = [parsing.check_id('line', 'passage_id', i) for i in entry['passage_ids']]
        scores = entry['scores']
        if len(ids) != len(scores):
            raise ValueError(f'{len(ids)} passage_ids and {len(scores)} scores')
    return [(query_id, i, _number(score)) for i, score in zip(ids, scores, strict=True)]


def _number(value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'score {shown(value)} is no number')
    return float(value)


_EXPECTED = {
    _parse_trec: "not a run line; it must read 'query Q0 passage rank score tag'",
    _parse_ranks: "not a run line; it must read 'query passage rank'",
    _parse_texts: 'not a line of four fields with tabs: query, passage and their texts',
    _parse_json: 'not an object with query_id, and passage_id and score or passage_ids and scores',
}
