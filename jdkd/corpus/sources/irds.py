"""Collections that ir_datasets (https://ir-datasets.com) downloads, by their names there."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import ir_datasets

from jdkd.corpus.sources import base, parsing
from jdkd.corpus.sources.base import OnError, attempt


def open_source(
    dataset: str,
    *,
    splits: Mapping[str, str] | None = None,
) -> base.Source:
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
    loaded = {split: (d, _load(d, 'queries')) for split, d in splits.items()}
    reader = _Reader(dataset, documents, loaded)
    streams = reader.passages, reader.queries, reader.qrels, reader.answers
    return base.Source(dataset, (), *streams)


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


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Streams the items of a dataset; ir_datasets itself rejects what it cannot read."""

    name: str
    documents: Any  # `ir_datasets.Dataset` gets its attributes when it is made.
    splits: Mapping[str, tuple[str, Any]]

    def passages(self, on_error: OnError) -> Iterator[base.Passage]:
        del on_error
        has_title = {'title', 'text'} <= set(self.documents.docs_cls()._fields)
        for i, document in enumerate(self.documents.docs_iter(), 1):
            title, text = (document.title, document.text) if has_title else ('', _text(document))
            yield f'irds:{self.name}, document {i}', document.doc_id, title, text

    def queries(self, on_error: OnError) -> Iterator[base.Query]:
        del on_error
        for split, (name, dataset) in self.splits.items():
            for i, query in enumerate(dataset.queries_iter(), 1):
                yield f'irds:{name}, query {i}', split, query.query_id, _text(query)

    def qrels(self, on_error: OnError) -> Iterator[base.Judgement]:
        for split, (name, dataset) in self.splits.items():
            if not dataset.has('qrels'):
                continue  # A split of queries alone.
            for i, qrel in enumerate(dataset.qrels_iter(), 1):
                where, value = f'irds:{name}, judgement {i}', str(qrel.relevance)
                grade = attempt(on_error, 'broken judgement', parsing.parse_grade, where, value)
                if grade is not None:
                    yield where, split, qrel.query_id, qrel.doc_id, grade

    def answers(self, on_error: OnError) -> Iterator[base.Answer]:
        del on_error
        for split, (name, dataset) in self.splits.items():
            if 'answers' in dataset.queries_cls()._fields:
                for i, query in enumerate(dataset.queries_iter(), 1):
                    for answer in query.answers:
                        yield f'irds:{name}, query {i}', split, query.query_id, answer


def _text(item) -> str:
    return item.default_text() if hasattr(item, 'default_text') else item.text
