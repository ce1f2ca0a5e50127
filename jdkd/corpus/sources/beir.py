"""Collections in BEIR layout (https://github.com/beir-cellar/beir).

    corpus.jsonl       {"_id": ..., "title": ..., "text": ...} a line; the title is optional
    queries.jsonl      {"_id": ..., "text": ...} a line; optionally "answers": [...] (ours)
    qrels/SPLIT.tsv    query id, passage id, grade, after a header row; or TREC's four columns

Each file may be gzipped (`.gz` after its name); a plain file takes precedence. With the option
`unjudged`, a log of queries needs no judgements, and a corpus alone no queries.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from jdkd.corpus.sources import base, parsing, rows
from jdkd.corpus.sources.base import OnError, attempt

LAYOUT = 'a collection in BEIR layout has corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv'
_BROKEN = 'broken line'

ReadRecords = Callable[[OnError], Iterable[tuple[str, Mapping[str, Any]]]]
ReadJudgements = Callable[[OnError], Iterable[tuple[str, str, str, int]]]


def open_source(path: str, *, unjudged: str | None = None) -> base.Source:
    """Opens a directory in BEIR layout; each file of judgements is a split.

    A query belongs to the splits that judge it. Ids that are JSON integers become strings.

    Args:
        unjudged: Split for queries that no file judges, such as those of a query log; by default
            they are left out, and there must be judgements.

    Raises:
        FileNotFoundError: The directory or one of its files is missing.
    """
    root = pathlib.Path(path).expanduser().resolve()
    corpus = parsing.find_file(root, 'corpus.jsonl', LAYOUT)
    qrels = _find_qrels(root, is_needed=unjudged is None)
    if not qrels and not parsing.data_files(root, 'queries.jsonl*'):
        logging.warning('%s has no queries.jsonl, but passages alone', root)
        queries = None
    else:
        queries = parsing.find_file(root, 'queries.jsonl', LAYOUT)
    files = [corpus, *([queries] if queries else []), *qrels.values()]
    return make_source(
        root.name,
        files,
        functools.partial(parsing.read_json_lines, corpus),
        functools.partial(parsing.read_json_lines, queries) if queries else lambda on_error: (),
        {split: functools.partial(rows.read_judgements, file) for split, file in qrels.items()},
        unjudged,
    )


def make_source(
    name: str,
    files: Sequence[pathlib.Path],
    read_corpus: ReadRecords,
    read_queries: ReadRecords,
    read_qrels: Mapping[str, ReadJudgements],
    unjudged: str | None,
) -> base.Source:
    """Makes the source of a collection in this layout, wherever its records are.

    Args:
        name: In reports.
        files: When one of them changes, the collection is stale.
        read_corpus, read_queries: Stream (where, record); see the layout.
        read_qrels: {split: streams (where, query id, passage id, grade)}.
        unjudged: See `open_source`.
    """
    reader = _Reader(read_corpus, read_queries, read_qrels, unjudged)
    streams = reader.passages, reader.queries, reader.qrels, reader.answers
    return base.Source(name, files, *streams, needs_queries=unjudged is None)


@dataclasses.dataclass(frozen=True)
class _Reader:
    read_corpus: ReadRecords
    read_queries: ReadRecords
    read_qrels: Mapping[str, ReadJudgements]
    unjudged: str | None

    def passages(self, on_error: OnError) -> Iterator[base.Passage]:
        for where, entry in self.read_corpus(on_error):
            if passage := attempt(on_error, _BROKEN, _passage, where, entry):
                yield passage

    def queries(self, on_error: OnError) -> Iterator[base.Query]:
        unjudged = 0
        for where, split, query, entry in self._entries(on_error):
            if split is None:
                unjudged += 1
                continue
            text = attempt(on_error, _BROKEN, parsing.check_text, where, 'text', entry.get('text'))
            if text is not None:
                yield where, split, query, text
        if unjudged:
            logging.info(
                '%d queries are left out, which no split judges; the option unjudged names a split '
                'for them, such as train',
                unjudged,
            )

    def answers(self, on_error: OnError) -> Iterator[base.Answer]:
        ignore = base.count_errors({})  # `queries` has reported the errors of these lines.
        for where, split, query, entry in self._entries(ignore):
            if split is None:
                continue
            answers = attempt(
                on_error, _BROKEN, parsing.check_once, where, entry.get('answers', [])
            )
            if answers is None:
                continue
            for answer in answers if isinstance(answers, list) else [answers]:
                yield where, split, query, answer

    def _entries(
        self, on_error: OnError
    ) -> Iterator[tuple[str, str | None, str, Mapping[str, Any]]]:
        """Yields the queries of each split in the order of the queries, not of the judgements.

        The split of a query that none judges is `unjudged`.
        """
        judged: dict[str, set[str]] = {split: set() for split in self.read_qrels}
        for _, split, query, _, _ in self.qrels(base.count_errors({})):
            judged[split].add(query)
        for where, entry in self.read_queries(on_error):
            query = attempt(on_error, _BROKEN, parsing.check_id, where, '_id', entry.get('_id'))
            splits = [split for split, ids in judged.items() if query in ids]
            for split in splits or [self.unjudged]:
                if query is not None:
                    yield where, split, query, entry

    def qrels(self, on_error: OnError) -> Iterator[base.Judgement]:
        for split, read in self.read_qrels.items():
            for where, query, passage, grade in read(on_error):
                yield where, split, query, passage, grade


def _passage(where: str, entry: Mapping[str, Any]) -> base.Passage:
    passage_id = parsing.check_id(where, '_id', entry.get('_id'))
    title = entry.get('title')
    title = '' if title is None else parsing.check_text(where, 'title', title)
    text = entry.get('text', '' if title else None)
    return where, passage_id, title, parsing.check_text(where, 'text', text)


def _find_qrels(root: pathlib.Path, *, is_needed: bool) -> dict[str, pathlib.Path]:
    names = {f.name.removesuffix('.gz') for f in parsing.data_files(root / 'qrels', '*.tsv*')}
    splits = sorted(n.removesuffix('.tsv') for n in names if n.endswith('.tsv'))
    if not splits and is_needed:
        raise FileNotFoundError(
            f'{root / "qrels"} has no .tsv file: put the judgements of each split there, as '
            'train.tsv, dev.tsv or test.tsv (or the same with .gz). If nothing is judged, train '
            'with configs/unlabelled.py:beir=PATH, which sets the option unjudged.'
        )
    return {split: parsing.find_file(root, f'qrels/{split}.tsv', LAYOUT) for split in splits}
