"""What quality costs: speeds on this machine, and the student's measures at each size (ours).

Nothing reads this stage but the report: speeds differ from call to call.
"""

import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jdkd.algorithm.teacher import Teacher
from jdkd.config.fields import STORES
from jdkd.models import dual_encoder
from jdkd.report.run_report import TEACHER
from jdkd.retrieval import encode, vectors
from jdkd.retrieval.exact import ExactIndex
from jdkd.retrieval.quantization import Binary, Int8
from jdkd.retrieval.vectors import FILE_ROWS, Vectors
from jdkd.run import STUDENT, Queries, Run
from jdkd.runtime import distributed, stages
from jdkd.systems import measuring
from jdkd.systems.dual import AsymmetricSystem, DualEncoderSystem
from jdkd.systems.ranking import checked_ranking, measure_inputs
from jdkd.systems.system import System
from jdkd.tokens.store import TokenStore

STAGE = 'costs'
_TEXTS = 128  # Texts of each kind that are embedded to time an encoder, at most.
_QUESTIONS = 20  # Questions that are answered one by one, at most.
_SECONDS = 5.0  # For the questions of one system, after the first two.


def measure(
    run: Run,
    student: DualEncoderSystem,
    systems: Mapping[str, System],
    teacher: Teacher | None,
) -> dict[str, Any]:
    """Times the systems, and measures the student at each width and precision, as a stage.

    `systems` are the first stage and the assistants; the teacher, if there is one, re-ranks the
    first stage's top passages.

    Returns:
        `machine`, what computed; `systems`, {name: costs} as far as they are known: `parameters`,
        `queries_per_second` and `passages_per_second` encoded, `bytes_per_passage` on disk and
        `milliseconds_per_search` of one question by exact search, its encoding included; `sizes`,
        of the student's embeddings: `width`, `store`, `bytes_per_passage` and `test` {measure:
        value} by exact search. No `sizes` without test queries; those of D_eval are timed then.
    """
    config = run.config
    # Imported scores have none for questions; answers of language models are kept.
    untimed = {n for n, spec in config.systems.items() if spec.kind in ('scores', 'llm')}
    timed = {name: s for name, s in systems.items() if name not in untimed}
    first, depth = systems[config.first_stage], config.depth

    def build(_) -> dict[str, Any]:
        costs = {name: _costs(run, s) for name, s in {**timed, STUDENT: student}.items()}
        if teacher and not untimed & {first.name, *(m.name for m in teacher.members)}:
            parameters = sum(_parameters(m) or 0 for m in teacher.members)
            search = functools.partial(teacher.search, first, depth, k=depth)
            milliseconds = _milliseconds(search, _questions(run).texts)
            for used in (first, *teacher.members):
                if isinstance(used, DualEncoderSystem):
                    used.release()
            costs[TEACHER] = {'parameters': parameters, 'milliseconds_per_search': milliseconds}
        sizes = list(_sizes(run, student)) if len(run.test) else []
        return {'machine': _machine(run), 'systems': costs, 'sizes': sizes}

    inputs = {
        **measure_inputs(run, [*systems.values(), student], run.test),
        'teacher': teacher and teacher.inputs,
        'dims': config.student.dims,
    }
    return run.stage(STAGE, inputs, build)['result']


def _questions(run: Run) -> Queries:
    """The queries that are timed."""
    return run.test if len(run.test) else run.held_out


def _machine(run: Run) -> dict[str, Any]:
    devices = list(run.mesh.local_mesh.devices.flat)
    return {'device': devices[0].device_kind, 'devices': len(devices), 'cpus': os.cpu_count()}


def _costs(run: Run, system: System) -> dict[str, float]:
    texts = _questions(run).texts
    search = _milliseconds(lambda text: system.search(text, run.config.depth), texts)
    costs = {'milliseconds_per_search': search}
    owner = system.passage_side if isinstance(system, AsymmetricSystem) else system
    home = run.workdir / 'systems' / owner.name
    manifests = [stages.peek(home / kind) for kind in ('embeddings-passages', 'index')]
    files = [file for manifest in manifests if manifest for file in manifest['outputs'].values()]
    if size := sum(file['size'] for file in files):
        costs['bytes_per_passage'] = size / len(run.collection)
    if (parameters := _parameters(system)) is not None:
        costs['parameters'] = parameters
    if isinstance(system, DualEncoderSystem):
        system.release()
        encoder = system.encoder
        kinds = {'query': encoder.query_tokens(run, _questions(run))}
        kinds['passage'] = encoder.passage_tokens(run)
        names = {'query': 'queries_per_second', 'passage': 'passages_per_second'}
        for tower, tokens in kinds.items():
            costs[names[tower]] = _texts_per_second(run, system, tokens, tower)
    return costs


def _parameters(system: System) -> int | None:
    encoder = getattr(system, 'encoder', None)
    return None if encoder is None else sum(x.size for x in jax.tree.leaves(encoder.params))


def _texts_per_second(run: Run, system: DualEncoderSystem, tokens: TokenStore, tower: str) -> float:
    """Tokenised texts that an encoder embeds in a second, of those amid the store."""
    count = min(_TEXTS, len(tokens))
    start = (len(tokens) - count) // 2
    model, params = system.encoder.model, dual_encoder.tower(system.encoder.params, tower)
    seconds = 0.0
    for _ in range(2):  # The first may compile.
        begun = time.perf_counter()
        rows = range(start, start + count)
        encode.embed(model, params, tokens, rows=rows, mesh=run.mesh, desc=f'{system.name}: time')
        seconds = time.perf_counter() - begun
    return count / seconds


def _milliseconds(answer: Callable[[str], Any], questions: Sequence[str]) -> float:
    """Median time of an answer; the first of each length may compile and is not timed.

    Answers may hold collectives, so that processes must give as many: the first says when to end.
    """
    questions = questions[:_QUESTIONS]
    for question in (min(questions, key=len), max(questions, key=len)):
        answer(question)
    seconds, end = [], time.perf_counter() + _SECONDS
    for question in questions:
        begun = time.perf_counter()
        answer(question)
        seconds.append(time.perf_counter() - begun)
        if distributed.from_primary(lambda: time.perf_counter() > end, 'costs: enough'):
            break
    return 1000 * statistics.median(seconds)


def _sizes(run: Run, student: DualEncoderSystem) -> Iterator[dict[str, Any]]:
    """Measures of the student on the test queries at each width and precision."""
    model, store = student.encoder.model, run.config.index.store
    full = dual_encoder.embedding_width(model)
    # What is rounded on disk already cannot be had more precisely.
    stores = [s for s in (store, 'int8', 'binary') if STORES.index(s) >= STORES.index(store)]
    queries, passages = student.queries(run.test)[:], student.passages
    for width in sorted({full, *run.config.student.dims}, reverse=True):
        for name in dict.fromkeys(stores):
            # Signs alone are of use where embeddings are compared by their angle.
            if name == 'binary' and (width % 8 or not model.normalize):
                continue
            part = _Sized(passages, width, name, width < full and model.normalize)
            exact = ExactIndex(part, run.mesh)

            def search(rows, depth, part=part, exact=exact):
                return exact.search(part.cut(queries[rows]), depth)

            ranking = checked_ranking(run, STUDENT, run.test, search)
            yield {
                'width': width,
                'store': name,
                'bytes_per_passage': vectors.bytes_per_vector(width, name),
                'test': measuring.measure(run, ranking, run.test).means,
            }


class _Sized:
    """Embeddings cut to a width and rounded as a store does, file by file."""

    def __init__(self, passages: Vectors, width: int, store: str, normalize: bool):
        self._passages, self._width, self._store = passages, width, store
        self._normalize = normalize
        self._kept: tuple[int, np.ndarray] | None = None  # First row and rows of the last file.

    def __len__(self) -> int:
        return len(self._passages)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self._width

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        out = np.empty((stop - start, self._width), np.float32)
        for first in range(start - start % FILE_ROWS, stop, FILE_ROWS):
            begin, end = max(start, first), min(stop, first + FILE_ROWS)
            out[begin - start : end - start] = self._file(first)[begin - first : end - first]
        return out

    def _file(self, first: int) -> np.ndarray:
        """The rows of a file, whose ranges those of int8 are."""
        if self._kept is None or self._kept[0] != first:
            part = self.cut(self._passages[first : first + FILE_ROWS])
            if self._store in vectors.QUANTISED:
                part = {'int8': Int8, 'binary': Binary}[self._store].of(part)[:]
            self._kept = first, part
        return self._kept[1]

    def cut(self, embeddings: np.ndarray) -> np.ndarray:
        return np.asarray(dual_encoder.prefix(embeddings, self._width, normalize=self._normalize))
