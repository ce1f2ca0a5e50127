"""Collections in BEIR layout (https://github.com/beir-cellar/beir).

    corpus.jsonl       {"_id": ..., "title": ..., "text": ...} a line; the title may be missing
    queries.jsonl      {"_id": ..., "text": ...} a line; ours: "answers": [...] may be there
    qrels/SPLIT.tsv    a header row, then: query id, passage id, grade

Each file may be gzipped (`.gz` after its name); where both are there the plain one is read.
"""

import functools
import pathlib
from collections.abc import Iterator

from jdkd.corpus.sources import base, parsing
from jdkd.corpus.sources.base import OnError

LAYOUT = 'a collection in BEIR layout has corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv'


def open_source(
    path: str,
    *,
    unjudged: str | None = None,
    name: str | None = None,
    license: str | None = None,
) -> base.Source:
    """A directory in BEIR layout; a split is a file of judgements.

    A query belongs to the splits that judge it. Ids that are JSON integers become strings.

    Args:
      path: the directory.
      unjudged: the split of the queries that none judges, such as those of a log; by default they
        are not read in.
      name: what reports call the collection; the directory's name by default.
      license: the terms of the texts; the layout has no place for them.

    Raises:
      FileNotFoundError: the directory or one of its files is missing.
    """
    root = pathlib.Path(path).expanduser().resolve()
    corpus = parsing.find_file(root, 'corpus.jsonl', LAYOUT)
    questions = parsing.find_file(root, 'queries.jsonl', LAYOUT)
    splits = _qrels_files(root)
    return base.Source(
        name=name or root.name,
        files=[corpus, questions, *splits.values()],
        passages=functools.partial(_passages, corpus),
        queries=functools.partial(_queries, questions, splits, unjudged),
        qrels=functools.partial(_qrels, splits),
        answers=functools.partial(_answers, questions, splits, unjudged),
        license=license,
    )


def _passages(corpus: pathlib.Path, fault: OnError) -> Iterator[tuple[str, str, str, str]]:
    for where, entry in parsing.read_json_lines(corpus, fault):
        try:
            yield (
                where,
                parsing.get_id(where, entry, '_id'),
                parsing.get_text(where, entry, 'title', optional=True),
                parsing.get_text(where, entry, 'text'),
            )
        except ValueError as error:
            fault('broken line', str(error))


def _queries(
    questions: pathlib.Path, splits: dict[str, pathlib.Path], unjudged: str | None, fault: OnError
) -> Iterator[tuple[str, str, str, str]]:
    for where, split, query, entry in _in_splits(questions, splits, unjudged, fault):
        try:
            yield where, split, query, parsing.get_text(where, entry, 'text')
        except ValueError as error:
            fault('broken line', str(error))


def _answers(
    questions: pathlib.Path, splits: dict[str, pathlib.Path], unjudged: str | None, fault: OnError
) -> Iterator[tuple[str, str, str, str]]:
    for where, split, query, entry in _in_splits(questions, splits, unjudged, fault):
        answers = entry.get('answers', [])
        for answer in answers if isinstance(answers, list) else [answers]:
            yield where, split, query, answer


def _in_splits(
    questions: pathlib.Path, splits: dict[str, pathlib.Path], unjudged: str | None, fault: OnError
) -> Iterator[tuple[str, str, str, dict]]:
    """Each query of each split, in the order of queries.jsonl: qrels may be sorted in any way."""
    judged: dict[str, set[str]] = {split: set() for split in splits}
    for _, split, query, _, _ in _qrels(splits, lambda kind, message: None):
        judged[split].add(query)
    for where, entry in parsing.read_json_lines(questions, fault):
        try:
            query = parsing.get_id(where, entry, '_id')
        except ValueError as error:
            fault('broken line', str(error))
            continue
        found = [split for split, ids in judged.items() if query in ids]
        for split in found or ([unjudged] if unjudged else []):
            yield where, split, query, entry


def _qrels(
    splits: dict[str, pathlib.Path], fault: OnError
) -> Iterator[tuple[str, str, str, str, int]]:
    columns = 'query id', 'passage id', 'grade'
    for split, file in splits.items():
        for row, (where, fields) in enumerate(parsing.read_fields(file, columns, fault)):
            query, passage, grade = (field.strip() for field in fields)
            try:
                grade = parsing.parse_grade(where, grade)
            except ValueError as error:
                if row:  # The first row is the header.
                    fault('broken line', str(error))
                continue
            if row == 0:
                raise ValueError(
                    f'{where}: the first row is a judgement; put a header row '
                    '(query-id, corpus-id, score) before it.'
                )
            yield where, split, query, passage, grade


def _qrels_files(root: pathlib.Path) -> dict[str, pathlib.Path]:
    names = {f.name.removesuffix('.gz') for f in (root / 'qrels').glob('*.tsv*')}
    splits = sorted(n.removesuffix('.tsv') for n in names if n.endswith('.tsv'))
    if not splits:
        raise FileNotFoundError(
            f'{root / "qrels"} has no .tsv file: put the judgements of each split there, as '
            'train.tsv, dev.tsv or test.tsv (or the same with .gz).'
        )
    return {split: parsing.find_file(root, f'qrels/{split}.tsv', LAYOUT) for split in splits}
