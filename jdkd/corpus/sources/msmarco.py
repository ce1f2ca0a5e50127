"""MS MARCO's TSV files (https://microsoft.github.io/msmarco/Datasets), and collections laid out so.

    collection.tsv        passage id, text
    queries.NAME.tsv      query id, text
    qrels.NAME.tsv        query id, 0, passage id, grade, separated by tabs or spaces (TREC); or
                          without the 0

Each file may be gzipped (`.gz` after its name) and begin with a header row. Texts are read as
published; `irds:msmarco-passage` repairs the encoding of some.
"""

import itertools
import pathlib
from collections.abc import Iterator, Mapping

from jdkd.corpus.sources import base, parsing, rows
from jdkd.corpus.sources.base import OnError

LAYOUT = (
    "MS MARCO's layout has collection.tsv, and queries.NAME.tsv and qrels.NAME.tsv for each split"
)


def open_source(
    path: str, *, splits: Mapping[str, str | tuple[str, str]] | None = None
) -> base.Source:
    """Opens a directory of MS MARCO's passage ranking files.

    Args:
        splits: {split: NAME of its files, or (file of queries, file of judgements)}. TREC DL 2019
            is `('msmarco-test2019-queries.tsv', '2019qrels-pass.txt')`. By default every NAME that
            has both files is a split of that name.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A split has other than two files.
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
    for split, pair in pairs.items():
        if len(pair) != 2:
            raise ValueError(
                f'collection.options.splits.{split} has {len(pair)} files; give the NAME of its '
                'files, or two: that of the queries and that of the judgements.'
            )
    files = {s: [parsing.find_file(root, name, LAYOUT) for name in p] for s, p in pairs.items()}

    def passages(on_error: OnError) -> Iterator[base.Passage]:
        columns = 'passage id', 'text'
        for where, (passage, text) in rows.read_fields(corpus, columns, on_error):
            yield where, passage, '', text

    def queries(on_error: OnError) -> Iterator[base.Query]:
        for split, (file, _) in files.items():
            for where, (query, text) in rows.read_fields(file, ('query id', 'text'), on_error):
                yield where, split, query, text

    def qrels(on_error: OnError) -> Iterator[base.Judgement]:
        for split, (_, file) in files.items():
            for where, query, passage, grade in rows.read_judgements(file, on_error):
                yield where, split, query, passage, grade

    all_files = [corpus, *itertools.chain(*zip(*files.values(), strict=True))]
    return base.Source(root.name, all_files, passages, queries, qrels)


def _names(root: pathlib.Path, kind: str) -> list[str]:
    files = (f.name.removesuffix('.gz') for f in parsing.data_files(root, f'{kind}.*.tsv*'))
    return [f.removeprefix(f'{kind}.').removesuffix('.tsv') for f in files if f.endswith('.tsv')]
