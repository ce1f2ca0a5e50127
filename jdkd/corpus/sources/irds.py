"""Collections that ir_datasets (https://ir-datasets.com) downloads, by their names there."""

import datetime
import difflib
import enum
import io
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import ir_datasets

from jdkd.corpus.sources import base, parsing
from jdkd.corpus.sources.base import OnError, attempt
from jdkd.runtime.messages import shown


class _Unpickler(pickle.Unpickler):
    """Reads the records that ir_datasets keeps pickled: plain values and its own record types."""

    def find_class(self, module: str, name: str) -> Any:
        cls = vars(sys.modules[module]).get(name) if module in sys.modules else None
        is_own = module.startswith('ir_datasets.')
        if isinstance(cls, type) and (
            cls in (datetime.datetime, datetime.date)
            or (is_own and issubclass(cls, (tuple, enum.Enum)))
        ):
            return cls
        raise ValueError(
            f'a file of ir_datasets names {shown(f"{module}.{name}")}; jdkd never imports what '
            'data names: remove the directory of this dataset in ~/.ir_datasets to fetch it again.'
        )


_PICKLE = types.SimpleNamespace(
    load=lambda file: _Unpickler(file).load(),
    loads=lambda data: _Unpickler(io.BytesIO(data)).load(),
    dump=pickle.dump,
    dumps=pickle.dumps,
)
for _module in [m for name, m in sys.modules.items() if name.startswith('ir_datasets.')]:
    if getattr(_module, 'pickle', None) is pickle:
        setattr(_module, 'pickle', _PICKLE)  # noqa: B010


def open_source(dataset: str, *, splits: Mapping[str, str] | None = None) -> base.Source:
    """Opens a dataset of ir_datasets, and the datasets of its queries and judgements.

    Includes answers where the queries have them (`dpr-w100`). No files are compared on a second
    start: what a name stands for in ir_datasets does not change.

    Args:
        dataset: The dataset whose documents are the passages, such as `msmarco-passage`, or the
            common prefix of its splits, such as `dpr-w100/natural-questions`.
        splits: {split: name of a dataset of queries and judgements}; by default those of `train`,
            `dev` and `test` that exist below `dataset`, or else `dataset` itself as `test`.

    Raises:
        ValueError: A dataset is unknown or lacks passages or queries, or there is no split.
    """
    known = set(ir_datasets.registry)
    if splits is None:
        below = {split: f'{dataset}/{split}' for split in ('train', 'dev', 'test')}
        splits = {split: d for split, d in below.items() if d in known} or {'test': dataset}
    documents = _load(dataset if dataset in known else next(iter(splits.values())), 'docs')
    loaded = {split: (name, _load(name, 'queries')) for split, name in splits.items()}

    # ir_datasets itself rejects what it cannot read, but for grades.
    def passages(on_error: OnError) -> Iterator[base.Passage]:
        has_title = {'title', 'text'} <= set(documents.docs_cls()._fields)
        for i, document in enumerate(documents.docs_iter(), 1):
            title, text = (document.title, document.text) if has_title else ('', _text(document))
            yield f'irds:{dataset}, document {i}', document.doc_id, title, text

    def read_queries(field: str) -> Iterator[tuple[str, str, Any]]:
        for split, (name, part) in loaded.items():
            has_field = field in part.queries_cls()._fields
            for i, query in enumerate(part.queries_iter() if has_field else (), 1):
                yield f'irds:{name}, query {i}', split, query

    def queries(on_error: OnError) -> Iterator[base.Query]:
        for where, split, query in read_queries('query_id'):
            yield where, split, query.query_id, _text(query)

    def answers(on_error: OnError) -> Iterator[base.Answer]:
        for where, split, query in read_queries('answers'):
            for answer in query.answers:
                yield where, split, query.query_id, answer

    def qrels(on_error: OnError) -> Iterator[base.Judgement]:
        for split, (name, part) in loaded.items():
            # A split may be queries alone.
            for i, qrel in enumerate(part.qrels_iter() if part.has('qrels') else (), 1):
                where = f'irds:{name}, judgement {i}'
                grade = attempt(
                    on_error, 'broken judgement', parsing.parse_grade, where, qrel.relevance
                )
                if grade is not None:
                    yield where, split, qrel.query_id, qrel.doc_id, grade

    return base.Source(dataset, (), passages, queries, qrels, answers)


def _load(name: str, part: str) -> Any:
    try:
        dataset = ir_datasets.load(name)
    except KeyError:
        near = difflib.get_close_matches(name, list(ir_datasets.registry), n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else 'see https://ir-datasets.com.'
        raise ValueError(f"ir_datasets has no dataset '{name}'; {hint}") from None
    if not dataset.has(part):
        raise ValueError(
            f"ir_datasets' '{name}' has no {part}; name one that has in the option splits, or "
            'another collection.'
        )
    return dataset


def _text(item) -> str:
    return item.default_text() if hasattr(item, 'default_text') else item.text
