"""Collections by their names in ir_datasets (https://ir-datasets.com), which fetches them."""

import difflib
import functools
from collections.abc import Iterator, Mapping

import ir_datasets

from jdkd.corpus.sources import base, parsing
from jdkd.corpus.sources.base import OnError


def open_source(
    dataset: str,
    *,
    splits: Mapping[str, str] | None = None,
    name: str | None = None,
    license: str | None = None,
) -> base.Source:
    """A dataset of ir_datasets, and the datasets of its queries and judgements.

    Answers come along where the queries have them (`dpr-w100`). What a name of ir_datasets stands
    for does not change, so no file is compared on a second start.

    Args:
        dataset: Name of the one whose documents are the passages, such as `msmarco-passage`, or
            what the names of its splits begin with, such as `dpr-w100/natural-questions`.
        splits: {split: name of a dataset of queries and judgements}; by default those of `train`,
            `dev` and `test` that are there below `dataset`, or `dataset` itself as `test`.
        name: What reports call the collection; `dataset` by default.
        license: The terms of the texts.

    Raises:
        ValueError: a dataset is unknown or lacks passages or queries, or there is no split.
    """
    if splits is None:
        below = {split: f'{dataset}/{split}' for split in ('train', 'dev', 'test')}
        splits = {split: d for split, d in below.items() if d in set(ir_datasets.registry)}
        splits = splits or {'test': dataset}
    known = dataset in set(ir_datasets.registry)
    documents = _load(dataset if known else next(iter(splits.values())), 'docs')
    loaded = {split: (d, _load(d, 'queries')) for split, d in splits.items()}
    return base.Source(
        name=name or dataset,
        files=(),
        passages=functools.partial(_passages, dataset, documents),
        queries=functools.partial(_queries, loaded),
        qrels=functools.partial(_qrels, loaded),
        answers=functools.partial(_answers, loaded),
        license=license,
    )


def _load(name: str, part: str) -> ir_datasets.Dataset:
    try:
        found = ir_datasets.load(name)
    except KeyError:
        near = difflib.get_close_matches(name, list(ir_datasets.registry), n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else 'see https://ir-datasets.com.'
        raise ValueError(f"ir_datasets has no dataset '{name}'; {hint}") from None
    if not found.has(part):
        raise ValueError(
            f"ir_datasets' '{name}' has no {part}; name one that has in the option splits, or "
            'another collection.'
        )
    return found


def _text(item) -> str:
    return item.default_text() if hasattr(item, 'default_text') else item.text


def _passages(
    name: str, documents: ir_datasets.Dataset, fault: OnError
) -> Iterator[tuple[str, str, str, str]]:
    del fault  # What ir_datasets cannot read, it refuses itself.
    parted = {'title', 'text'} <= set(documents.docs_cls()._fields)
    for i, document in enumerate(documents.docs_iter(), 1):
        title, text = (document.title, document.text) if parted else ('', _text(document))
        yield f'irds:{name}, document {i}', document.doc_id, title, text


def _queries(
    splits: Mapping[str, tuple[str, ir_datasets.Dataset]], fault: OnError
) -> Iterator[tuple[str, str, str, str]]:
    del fault
    for split, (name, dataset) in splits.items():
        for i, query in enumerate(dataset.queries_iter(), 1):
            yield f'irds:{name}, query {i}', split, query.query_id, _text(query)


def _qrels(
    splits: Mapping[str, tuple[str, ir_datasets.Dataset]], fault: OnError
) -> Iterator[tuple[str, str, str, str, int]]:
    for split, (name, dataset) in splits.items():
        if not dataset.has('qrels'):
            continue  # A split of queries alone.
        for i, qrel in enumerate(dataset.qrels_iter(), 1):
            where = f'irds:{name}, judgement {i}'
            try:
                grade = parsing.parse_grade(where, str(qrel.relevance))
            except ValueError as error:
                fault('broken judgement', str(error))
            else:
                yield where, split, qrel.query_id, qrel.doc_id, grade


def _answers(
    splits: Mapping[str, tuple[str, ir_datasets.Dataset]], fault: OnError
) -> Iterator[tuple[str, str, str, str]]:
    del fault
    for split, (name, dataset) in splits.items():
        if 'answers' in dataset.queries_cls()._fields:
            for i, query in enumerate(dataset.queries_iter(), 1):
                for answer in query.answers:
                    yield f'irds:{name}, query {i}', split, query.query_id, answer
