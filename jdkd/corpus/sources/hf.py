"""Collections on the Hugging Face hub, and directories as `datasets` writes them.

In the hub's BEIR layout a dataset has the configs `corpus` (`_id` or `id`, `title`, `text`),
`queries` (`_id` or `id`, `text`) and `default`, the judgements (`query-id`, `corpus-id`, `score`),
whose splits are the collection's. Some, such as BeIR/scifact, keep judgements in a dataset of their
own, BeIR/scifact-qrels.

A directory holds one of these, each alike: what `save_to_disk` has written under the config's name,
files of parquet, JSON lines or CSV in a directory of that name, or a download of the dataset, whose
README.md says where the files of its configs are. Nothing that data names is run: datasets with a
loading script are refused.
"""

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jdkd.corpus.sources import base, beir, parsing
from jdkd.corpus.sources.base import OnError, attempt
from jdkd.runtime.messages import brief, shown

_PACKAGED = 'datasets.packaged_modules'
# Readers of `datasets` whose formats hold plain values.
_READERS = tuple(f'{_PACKAGED}.{kind}.{kind}' for kind in ('arrow', 'csv', 'json', 'parquet'))
# The text of columns of CSV as it stands: 007 stays 007, and NA stays NA.
_COLUMNS = ('_id', 'id', 'title', 'text', 'query-id', 'corpus-id', 'score')
_AS_TEXT = {'converters': dict.fromkeys(_COLUMNS, str), 'keep_default_na': False}
_FORMATS = 'parquet, arrow, JSON lines and CSV'
_SAVED = ('dataset_info.json', 'dataset_dict.json')  # Written by `save_to_disk`.


def open_source(
    name: str,
    *,
    revision: str | None = None,
    corpus: str = 'corpus',
    queries: str = 'queries',
    qrels: str = 'default',
    qrels_from: str | None = None,
    unjudged: str | None = None,
) -> base.Source:
    """Opens a dataset by its name on the hub or its directory; each split of judgements is a split.

    Args:
        revision: Commit on the hub, so that the data stay the same.
        corpus, queries, qrels: Configs.
        qrels_from: Another dataset or directory that has the judgements.
        unjudged: As for `beir:PATH`.

    Raises:
        ImportError: `datasets` is missing.
        FileNotFoundError: There is no such dataset or config.
        ValueError: The dataset has a loading script, or files of another format.
    """
    _library()
    tables = {'corpus': _load(name, corpus, revision), 'queries': _load(name, queries, revision)}
    judged = _load(qrels_from or name, qrels, None if qrels_from else revision)
    files = [file for place in (name, qrels_from) if place for file in _files(place)]
    return beir.make_source(
        pathlib.PurePath(name).name,
        files,
        functools.partial(_records, name, tables['corpus']),
        functools.partial(_records, name, tables['queries']),
        {
            split: functools.partial(_judgements, qrels_from or name, split, rows)
            for split, rows in judged.items()
        },
        unjudged,
    )


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise ImportError("sources hf:NAME need datasets: pip install 'jdkd[hub]'.") from None
    return datasets


def _load(name: str, config: str, revision: str | None) -> Mapping[str, Any]:
    """{split: rows} of a config."""
    datasets, root = _library(), pathlib.Path(name).expanduser()
    path, part = name, config
    if root.is_dir():
        _refuse_scripts(root)
        own = root / config
        if any((own / file).is_file() for file in _SAVED):
            with _as_sentences(name, config):
                loaded = datasets.load_from_disk(str(own))
            splits = loaded if isinstance(loaded, Mapping) else {str(loaded.split): loaded}
            return {split: rows.with_format(None) for split, rows in splits.items()}
        if own.is_dir() and not (root / 'README.md').is_file():
            path, part = str(own.resolve()), 'default'
        else:
            path = str(root.resolve())
    with _as_sentences(name, config):
        builder = datasets.load_dataset_builder(path, part, revision=revision)
        readers = [cls.__module__ for cls in type(builder).__mro__]
        if not any(reader in _READERS for reader in readers):
            raise ValueError(f'its files are read by {readers[1]}, and jdkd takes {_FORMATS} alone')
        if f'{_PACKAGED}.csv.csv' in readers:
            builder = datasets.load_dataset_builder(path, part, revision=revision, **_AS_TEXT)
        builder.download_and_prepare()
        return builder.as_dataset()


def _refuse_scripts(root: pathlib.Path) -> None:
    scripts = [file for file in sorted(root.rglob('*.py')) if file.is_file()]
    if scripts:
        raise ValueError(
            f'hf:{brief(root)} has a loading script, {scripts[0].relative_to(root)}; jdkd never '
            'runs what comes with data: convert the dataset to parquet (the hub has such a copy in '
            'its branch refs/convert/parquet), or remove the script if the files can do without.'
        )


@contextlib.contextmanager
def _as_sentences(name: str, config: str) -> Iterator[None]:
    """Turns the errors of `datasets`, which are of many kinds, into one sentence."""
    datasets = _library()
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(
            f'hf:{brief(name)}: config {shown(config)} cannot be found or fetched ({brief(error)});'
            ' give a dataset of the hub or its directory.'
        ) from None
    except Exception as error:  # Whatever is in the files.
        raise ValueError(
            f'hf:{brief(name)}: config {shown(config)} cannot be read ({brief(error)}); '
            'collection.options has corpus, queries and qrels to name others.'
        ) from None
    finally:
        if bars:
            datasets.enable_progress_bars()


def _files(name: str) -> list[pathlib.Path]:
    """The files of a directory; none of a dataset on the hub."""
    root = pathlib.Path(name).expanduser()
    return parsing.data_files(root, '**/*') if root.is_dir() else []


def _records(
    name: str, splits: Mapping[str, Any], on_error: OnError
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for split, rows in splits.items():
        for i, record in enumerate(rows):
            own = (
                record if '_id' in record or 'id' not in record else {**record, '_id': record['id']}
            )
            yield f'hf:{brief(name)}: {split}, row {i + 1}', own


def _judgements(
    name: str, split: str, rows: Any, on_error: OnError
) -> Iterator[tuple[str, str, str, int]]:
    for where, record in _records(name, {split: rows}, on_error):
        judgement = attempt(on_error, 'broken record', _judgement, where, record)
        if judgement:
            yield where, *judgement


def _judgement(where: str, record: Mapping[str, Any]) -> tuple[str, str, int]:
    missing = [field for field in ('query-id', 'corpus-id', 'score') if field not in record]
    if missing:
        raise ValueError(
            f'{where}: there is no field {missing[0]!r}; there are {brief(", ".join(record))}: '
            'name the config of the judgements in collection.options.qrels.'
        )
    query, passage = (
        parsing.check_id(where, field, record[field]) for field in ('query-id', 'corpus-id')
    )
    return query, passage, parsing.parse_grade(where, record['score'])
