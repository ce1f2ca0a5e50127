"""What a server serves: an index, or the systems of a run side by side."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging

from jdkd.algorithm import final, round_files, student
from jdkd.algorithm.teacher import Teacher
from jdkd.config import LLMSpec, ScoresSpec
from jdkd.indexing.index import Found, Index, read
from jdkd.retrieval.exact import ExactIndex
from jdkd.retrieval.ranking import Ranking
from jdkd.retriever import Kind, Retriever
from jdkd.run import Run
from jdkd.serving.engine import Engine
from jdkd.systems.build import build
from jdkd.systems.llm import client
from jdkd.validation.errors import catch

# (question, k) -> the best passages, `[1, k]`.
Searcher = Callable[[str, int], Ranking]


@dataclasses.dataclass(frozen=True)
class Search:
    """A request for the k best passages."""

    query: str
    k: int


@dataclasses.dataclass(frozen=True)
class Encode:
    """A request for the embeddings of texts."""

    texts: Sequence[str]
    kind: Kind


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """`[n, dim]` float32 of an `Encode`, and the number of its tokens."""

    vectors: np.ndarray
    tokens: int


@dataclasses.dataclass(frozen=True, eq=False)
class Service:
    """What a server serves.

    Attributes:
        name: Names the model in answers.
        passages: Number of passages.
        width: Dimensions of embeddings.
        student: Answers a batch of requests.
        others: {name: the same for searches alone} of the systems beside the student, each on a
            thread of its own.
        warm_up: Compiles what requests need.
    """

    name: str
    passages: int
    width: int
    student: Callable[[list[Search | Encode]], Sequence[list[Found] | Embeddings]]
    others: Mapping[str, Callable[[list[Search]], list[list[Found]]]]
    warm_up: Callable[[], None]


# Rows and scores of passages -> the passages.
Read = Callable[[np.ndarray, np.ndarray], list[Found]]


def of_index(index: Index) -> Service:
    """Serves an index."""
    engine = Engine(index.retriever, index.exact)
    return Service(
        name=_name(index.contents.student),
        passages=len(index),
        width=index.vectors.shape[1],
        student=functools.partial(answer, engine, functools.partial(read, index)),
        others={},
        warm_up=engine.warm_up,
    )


def _name(student: str) -> str:
    """Names a student without where it lay."""
    path = pathlib.PurePath(student)
    is_path = path.is_absolute() or student.startswith(('.', '~'))
    return path.name if is_path and path.name else student


def of_run(run: Run) -> Service:
    """Serves the student of a finished run, with its first stage and teacher to compare.

    Raises:
        FileNotFoundError: if the run has not been trained to its end.
    """
    best = final.load(student.load(run))
    engine = Engine(Retriever(best.encoder, run.mesh), ExactIndex(best.passages, run.mesh))
    shown, left_out = searchers(run)
    for reason in left_out:
        logging.warning('not served: %s', reason)
    own = run.collection.passages

    read_own = functools.partial(read, own)

    def search(find: Searcher, requests: list[Search]) -> list[list[Found]]:
        rankings = [find(request.query, request.k) for request in requests]
        return [read_own(ranking.passages[0], ranking.scores[0]) for ranking in rankings]

    others = {name: functools.partial(search, find) for name, find in shown.items()}

    def warm_up() -> None:
        engine.warm_up()
        for find in others.values():
            for length in (1, run.config.student.query_length):
                find([Search('a ' * length, 1)])

    return Service(
        name=run.workdir.name,
        passages=len(own),
        width=best.passages.shape[1],
        student=functools.partial(answer, engine, read_own),
        others=others,
        warm_up=warm_up,
    )


def answer(
    engine: Engine, read: Read, requests: list[Search | Encode]
) -> list[list[Found] | Embeddings]:
    """Answers a batch: texts of a kind are embedded together, and queries searched together."""
    texts: dict[Kind, list[str]] = {'query': [], 'passage': []}
    spans: list[tuple[Kind, slice]] = []
    for request in requests:
        kind: Kind = 'query' if isinstance(request, Search) else request.kind
        own = [request.query] if isinstance(request, Search) else request.texts
        spans.append((kind, slice(len(texts[kind]), len(texts[kind]) + len(own))))
        texts[kind] += own
    encoded = {kind: engine.encode(own, kind) for kind, own in texts.items() if own}
    searches = {i: r.k for i, r in enumerate(requests) if isinstance(r, Search)}
    ranked = {}
    if searches:
        rows = [spans[i][1].start for i in searches]
        ranking = engine.search(encoded['query'][0][rows], max(searches.values()))
        ranked = dict(
            zip(searches, zip(ranking.passages, ranking.scores, strict=True), strict=True)
        )
    answers: list[list[Found] | Embeddings] = []
    for i, (kind, span) in enumerate(spans):
        if i in ranked:
            passages, scores = ranked[i]
            answers.append(read(passages[: searches[i]], scores[: searches[i]]))
        else:
            vectors, tokens = encoded[kind]
            answers.append(Embeddings(vectors[span], int(tokens[span].sum())))
    return answers


def searchers(run: Run) -> tuple[dict[str, Searcher], list[str]]:
    """{name as shown: function} for a run's first stage and teacher; for those left out the reason.

    Raises:
        FileNotFoundError: if the run has not been trained to its end.
    """
    config = run.config
    # Without rounds there is no teacher.
    weights = round_files.read_fitted(run)['teacher'] if run.num_rounds else {}
    reasons = {name: _cannot_answer(run, name) for name in (config.first_stage, *weights)}
    shown: dict[str, Searcher] = {}
    if not reasons[config.first_stage]:
        first = build(run, config.first_stage)
        shown[first.name] = first.search
        if weights and not any(reasons.values()):
            teacher = Teacher([build(run, name) for name in weights], weights)
            search = functools.partial(teacher.search, first, config.depth)
            shown[f'teacher on {first.name}'] = search
    return shown, sorted(filter(None, reasons.values()))


def _cannot_answer(run: Run, name: str) -> str:
    """Why a system has nothing to say to a new question; '' if it has."""
    spec = run.config.systems[name]
    if isinstance(spec, ScoresSpec):
        return f'{name}: imported scores; none for a new question.'
    if isinstance(spec, LLMSpec):
        return next(catch(client.check, name, spec), '')
    return ''
