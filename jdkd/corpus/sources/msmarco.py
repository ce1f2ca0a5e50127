"""MS MARCO's TSV files (https://microsoft.github.io/msmarco/Datasets), and what is laid out so.

    collection.tsv        passage id, text
    queries.NAME.tsv      query id, text
    qrels.NAME.tsv        query id, 0, passage id, grade, with tabs or spaces between them (TREC)

Each file may be gzipped (`.gz` after its name). Texts are taken as they are published;
`irds:msmarco-passage` mends the encoding of some.
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping

from jdkd.corpus.sources import base, parsing
from jdkd.corpus.sources.base import OnError

LAYOUT = (
    "MS MARCO's layout has collection.tsv, and queries.NAME.tsv and qrels.NAME.tsv for each split"
)


def open_source(
    path: str,
    *,
    splits: Mapping[str, str | tuple[str, str]] | None = None,
    name: str | None = None,
    license: str | None = None,
) -> base.Source:
    """A directory of MS MARCO's passage ranking files.

    Args:
        path: The directory.
        splits: {split: NAME of its files, or the file of queries and that of judgements}. TREC DL
            2019 is `('msmarco-test2019-queries.tsv', '2019qrels-pass.txt')`. By default every NAME
            that has both files is a split of that name.
        name: What reports call the collection; the directory's name by default.
        license: The terms of the texts.

    Raises:
        FileNotFoundError: a file is missing.
    """
    root = pathlib.Path(path).expanduser().resolve()
    corpus = parsing.find_file(root, 'collection.tsv', LAYOUT)
    splits = splits or {n: n for n in _names(root, 'queries') if n in _names(root, 'qrels')}
    if not splits:
        raise FileNotFoundError(f'{root} has no split: {LAYOUT} (or the same with .gz).')
    pairs = {
        split: (f'queries.{files}.tsv', f'qrels.{files}.tsv') if isinstance(files, str) else files
        for split, files in splits.items()
    }
    questions = {split: parsing.find_file(root, pair[0], LAYOUT) for split, pair in pairs.items()}
    qrels = {split: parsing.find_file(root, pair[1], LAYOUT) for split, pair in pairs.items()}
    return base.Source(
        name=name or root.name,
        files=[corpus, *questions.values(), *qrels.values()],
        passages=functools.partial(_passages, corpus),
        queries=functools.partial(_queries, questions),
        qrels=functools.partial(_qrels, qrels),
        license=license,
    )


def _names(root: pathlib.Path, kind: str) -> list[str]:
    files = (f.name.removesuffix('.gz') for f in sorted(root.glob(f'{kind}.*.tsv*')))
    return [f.removeprefix(f'{kind}.').removesuffix('.tsv') for f in files if f.endswith('.tsv')]


def _passages(corpus: pathlib.Path, fault: OnError) -> Iterator[tuple[str, str, str, str]]:
    for where, (passage, text) in parsing.read_fields(corpus, ('passage id', 'text'), fault):
        yield where, passage, '', text


def _queries(
    files: Mapping[str, pathlib.Path], fault: OnError
) -> Iterator[tuple[str, str, str, str]]:
    for split, file in files.items():
        for where, (query, text) in parsing.read_fields(file, ('query id', 'text'), fault):
            yield where, split, query, text


def _qrels(
    files: Mapping[str, pathlib.Path], fault: OnError
) -> Iterator[tuple[str, str, str, str, int]]:
    columns = 'query id', '0', 'passage id', 'grade'
    for split, file in files.items():
        for where, (query, _, passage, grade) in parsing.read_fields(
            file, columns, fault, sep=None
        ):
            try:
                yield where, split, query, passage, parsing.parse_grade(where, grade)
            except ValueError as error:
                fault('broken line', str(error))
