"""Formats of run files and of scores: tells them by what the columns hold, and reads lines.

A format is the names of a file's columns, of which `query`, `passage` and `score`, or else `rank`
are read; or `json`. These are told apart:

    query Q0 passage rank score tag               a TREC run file, with or without tag and rank
    query passage rank                            MS MARCO's runs; the score is -rank
    query passage score                           with or without a tag
    query passage rank score                      ColBERT's ranking.tsv; also score before rank
    query passage query_text passage_text         MS MARCO's top 1000, best first, with tabs

The first row may name the columns. Where they may mean either, as whole numbers that may be scores
or ranks, a file is refused unless its format is named.
"""

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from jdkd.corpus.sources import parsing
from jdkd.runtime.messages import shown

JSON = 'json'
TREC = 'query Q0 passage rank score tag'
TEXTS = 'query passage query_text passage_text'
SAMPLE = 10_000  # Lines that tell the format.

_INTEGER = re.compile(r'[+-]?\d+', re.ASCII)
_COLUMNS = {  # Names in header rows.
    'query': parsing.QUERY_COLUMN,
    'passage': parsing.PASSAGE_COLUMN,
    'rank': 'rank(ing)?|position',
    'score': 'scores?|sim|similarity|relevance|rel|logits?',
    'tag': 'tag|run|run(id|name|tag)|system|model',
}
_ID = re.compile('(id|no|num|number)$')
_NAMING = "name the columns in a first row, such as 'query passage score', or systems.NAME.format"


@dataclasses.dataclass(frozen=True)
class Format:
    """How a line is read: the names of its columns, and what separates them."""

    columns: tuple[str, ...]
    separator: str | None  # None: any whitespace.
    has_header: bool = False

    def __str__(self) -> str:
        return ' '.join(self.columns)

    def parse(self, line: str, position: int) -> tuple[str, str, float]:
        """Returns query id, passage id and score of a line, the `position`th of its file.

        Raises:
            ValueError: The line has other columns, or no number where one is read.
        """
        fields = line.split(self.separator)
        needed = len(self.columns) - (self.columns[-1] == 'tag')
        # As for trec_eval, text may follow the tag; but for that there is no other column.
        if len(fields) < needed or (needed == len(self.columns) < len(fields)):
            raise ValueError(f'{len(fields)} fields')
        values = dict(zip(self.columns, fields, strict=False))
        if 'score' in values:
            score = _number(values['score'])
        elif 'rank' in values:
            score = -_number(values['rank'])
            if not score.is_integer():
                raise ValueError(f'rank {shown(values["rank"])} is no whole number')
        else:
            score = -float(position)
        return values['query'].strip(), values['passage'].strip(), score


def named(name: str) -> Format:
    """The format with the columns of a name, such as `query passage score`.

    Raises:
        ValueError: Query or passage is missing, a column is there twice, or one is unknown.
    """
    columns = tuple(name.split())
    known = ('query', 'passage', 'rank', 'score', 'query_text', 'passage_text', 'Q0', 'tag')
    if not {'query', 'passage'} <= set(columns) <= set(known) or len(set(columns)) < len(columns):
        raise ValueError(
            f'{shown(name)} names no format: give json or the names of the columns in order, with '
            f'query and passage among them, out of {", ".join(known)}.'
        )
    return Format(columns, '\t' if {'query_text', 'passage_text'} & set(columns) else None)


def find(where: str, lines: Sequence[str], name: str | None = None) -> Format:
    """Finds the format of a file, by its name or by the file's first lines.

    Args:
        where: Place of the first line.
        lines: Up to `SAMPLE` lines, none of them blank.

    Raises:
        ValueError: The columns are of no known format, or may mean either of two.
    """
    header = _header(lines[0])
    if name:
        return dataclasses.replace(named(name), has_header=bool(header))
    if {'rank', 'score'} & set(header):
        if repeated := [column for column in _COLUMNS if header.count(column) > 1]:
            raise ValueError(
                f'{where}: several columns of {shown(lines[0])} may hold the {repeated[0]}; '
                f'{_NAMING}.'
            )
        # Columns that are not read may hold spaces, such as texts of queries.
        tabs = [line.count('\t') for line in lines[:2]]
        return Format(header, '\t' if tabs[0] and tabs[0] == tabs[-1] else None, True)
    body = lines[bool(header) :]
    tabbed = [line.split('\t') for line in body if line.count('\t') == 3]
    if 2 * len(tabbed) > len(body) and _hold_texts(tabbed):
        return dataclasses.replace(named(TEXTS), has_header=bool(header))
    return Format(_columns(where, [line.split() for line in body]), None, bool(header))


_KNOWN = (
    f"write '{TREC}' (TREC), 'query passage rank' or four fields with tabs (MS MARCO), 'query "
    "passage score', or JSON objects with query_id, passage_id and score."
)


def _header(line: str) -> tuple[str, ...]:
    """The columns that a header row names; () if the line is none."""
    fields = line.split('\t') if '\t' in line else line.split()
    names = list(map(parsing.column_name, fields))
    columns = [
        next((c for c, pattern in _COLUMNS.items() if re.fullmatch(pattern, name)), f'_{i}')
        for i, name in enumerate(names)
    ]
    for i, column in enumerate(columns):
        # Beside `qid` and `docno`, `query` and `passage` are texts.
        others = [n for n, c in zip(names, columns, strict=True) if c == column != 'tag']
        if not _ID.search(names[i]) and any(map(_ID.search, others)):
            columns[i] = f'_{i}'
    is_header = {'query', 'passage'} <= set(columns) and not any(map(_is_number, fields))
    return tuple(columns) if is_header else ()


def _hold_texts(lines: Sequence[Sequence[str]]) -> bool:
    """Whether the third and fourth of four columns are texts, not numbers or a tag."""
    spaces = any(len(fields[3].split()) > 1 for fields in lines)
    return spaces or not any(_is_number(fields[2]) or _is_number(fields[3]) for fields in lines)


def _columns(where: str, sample: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names the columns of a file without header or texts."""
    width = statistics.mode(min(len(fields), 6) for fields in sample) if sample else 0
    same = [fields for fields in sample if min(len(fields), 6) == width]
    unknown = ValueError(f'{where}: not a line of scores; {_KNOWN}')
    if width < 3:
        raise unknown
    leading, is_marked = ['query', 'passage'], {f[1].upper() for f in same} <= {'Q0', '0'}
    if width >= 5 and (is_marked or width == 6) and _share_of_numbers(same, 4) >= 0.5:
        return tuple(TREC.split()[:width])
    if width == 6:
        raise unknown
    if width == 4 and is_marked and _Numbers.read(same, 3).whole:
        raise ValueError(
            f'{where}: {shown(" ".join(same[0]))} reads like a judgement (query, 0, passage, '
            f'grade); if it is of a run, {_NAMING}.'
        )
    if width >= 4 and is_marked:
        leading = ['query', 'Q0', 'passage']
    rest = list(range(len(leading), width))
    tag = []
    if len(rest) > 1 and _share_of_numbers(same, rest[-1]) < 0.5:
        tag = ['tag']
        rest.pop()
    if not 1 <= len(rest) <= 2 or any(_share_of_numbers(same, i) < 0.5 for i in rest):
        raise unknown
    same = [fields for fields in same if all(_is_number(fields[i]) for i in rest)]
    numbers = [_Numbers.read(same, i) for i in rest]
    kinds = _one(*numbers) if len(rest) == 1 else _two(*numbers)
    if kinds is None:
        raise ValueError(
            f'{where}: {shown(" ".join(same[0]))} and the lines after it may hold '
            f'{"ranks or scores" if len(rest) == 1 else "rank and score in either order"}; '
            f'{_NAMING}, or write a TREC run file: {TREC}.'
        )
    return (*leading, *kinds, *tag)


@dataclasses.dataclass(frozen=True)
class _Numbers:
    """A column of numbers."""

    by_query: Mapping[str, np.ndarray]  # In the order of the file.
    whole: bool  # Whether all are written as whole numbers, as ranks are.

    @classmethod
    def read(cls, lines: Sequence[Sequence[str]], column: int) -> '_Numbers':
        values: dict[str, list[float]] = {}
        texts = [(fields[0], fields[column]) for fields in lines if _is_number(fields[column])]
        for query, text in texts:
            values.setdefault(query, []).append(float(text))
        by_query = {query: np.array(numbers) for query, numbers in values.items()}
        whole = all(_INTEGER.fullmatch(text) for _, text in texts)
        return cls(by_query, whole and all((v >= 0).all() for v in by_query.values()))

    def count_up(self) -> bool:
        """Whether each query's numbers count from 1, or each from 0, as the file goes on."""
        starts = {float(v[0]) for v in self.by_query.values()}
        counting = all((np.diff(v) == 1).all() for v in self.by_query.values())
        return counting and starts in ({0.0}, {1.0})

    def are_ranks(self) -> bool:
        """Whether each query's numbers are 1 to n, or 0 to n - 1, in any order."""
        return self.whole and all(
            min(v) <= 1 and (np.sort(v) - min(v) == np.arange(len(v))).all()
            for v in self.by_query.values()
        )

    def fall(self) -> bool:
        """Whether no query's numbers rise as the file goes on, and those of one fall."""
        steps = [np.diff(v) for v in self.by_query.values()]
        return all((d <= 0).all() for d in steps) and any((d < 0).any() for d in steps)

    def order(self, scores: '_Numbers') -> bool:
        """Whether they are ranks, all distinct, that put every query's scores best first."""
        for query, values in self.by_query.items():
            order = np.argsort(values, kind='stable')
            if (np.diff(values[order]) == 0).any():
                return False
            if (np.diff(scores.by_query[query][order]) > 0).any():
                return False
        return self.whole


def _one(column: _Numbers) -> tuple[str, ...] | None:
    """Whether the only numbers are ranks or scores; None if they may be either."""
    if column.count_up() and (column.whole or any(len(v) > 1 for v in column.by_query.values())):
        return ('rank',) if column.whole else None  # pandas writes ranks as 1.0 and 2.0.
    # Whole numbers that fall are scores, unless they are ranks in reverse.
    are_scores = not column.whole or (column.fall() and not column.are_ranks())
    return ('score',) if are_scores else None


def _two(left: _Numbers, right: _Numbers) -> tuple[str, ...] | None:
    """Which of two columns of numbers holds the ranks of the other; None if that is unclear."""
    fitting = {('rank', 'score'): left.order(right), ('score', 'rank'): right.order(left)}
    counting = {('rank', 'score'): left.count_up(), ('score', 'rank'): right.count_up()}
    kinds = [kind for kind, fits in fitting.items() if fits]
    if len(kinds) > 1:
        kinds = [kind for kind in kinds if counting[kind]]
    return kinds[0] if len(kinds) == 1 else None


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True


def _number(text: str) -> float:
    """Reads a number as C does: Python also takes `1_0`, and digits of other scripts."""
    if '_' in text or not text.isascii():
        raise ValueError(f'{shown(text)} is no number')
    return float(text)


def _share_of_numbers(lines: Sequence[Sequence[str]], column: int) -> float:
    return sum(_is_number(fields[column]) for fields in lines) / len(lines)
