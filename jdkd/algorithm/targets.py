"""Targets: the embeddings by assistants that the student's are drawn to (ours).

The target of a text is its embedding by `align.to`: of several, their concatenation, whose inner
products are the sums of theirs. Where that is wider than the student, its projection onto principal
axes takes its place, the linear map that keeps inner products best (Eckart and Young, 1936); where
it is narrower, zeros fill it up. A student of several widths (`student.dims`) is drawn to principal
axes in any case, so that a target's first dimensions are its best projection onto so many.

The systems read no more of a passage than the student does: it cannot learn what it does not see.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from jdkd.corpus.lengths import evenly_spaced
from jdkd.lists import loader
from jdkd.models.dual_encoder import embedding_width
from jdkd.retrieval.vectors import Vectors
from jdkd.run import Queries, Run
from jdkd.systems import roles
from jdkd.systems.build import build
from jdkd.systems.dual import DualEncoderSystem, as_dual
from jdkd.systems.encoders import Encoder

_SAMPLE = 20_000  # Passages that principal axes are fitted to, at most.


@dataclasses.dataclass(frozen=True)
class EmbeddingTargets:
    """The targets of a student's embeddings."""

    run: Run
    encoder: Encoder  # The student's; whether it normalises, and its width, decide.
    systems: Sequence[DualEncoderSystem]  # Those of `align.to`.

    @classmethod
    def build(cls, run: Run, encoder: Encoder) -> Self:
        """Builds the systems of `align.to`."""
        systems = [as_dual(build(run, name)) for name in roles.aligned_with(run.config)]
        return cls(run, encoder, systems)

    @property
    def inputs(self) -> dict[str, Any]:
        """Everything that decides the targets, as inputs of the stages that read them."""
        systems = [[system.name, system.digest] for system in self.systems]
        return {'systems': systems, 'store': self.run.config.index.store}

    @property
    def shared(self) -> DualEncoderSystem | None:
        """The system whose space the student's becomes; None where targets are not its embeddings.

        The student's queries may then search that system's index.
        """
        if len(self.systems) != 1 or self.run.config.student.dims:
            return None
        model, own = self.systems[0].encoder.model, self.encoder.model
        same = embedding_width(model) == embedding_width(own) and model.normalize == own.normalize
        return self.systems[0] if same else None

    def of(self, queries: Queries, length: int) -> loader.Targets:
        """Functions from rows of a split's queries, and of passages, to targets `[..., D]`.

        Passages are cut to `length` tokens.
        """
        _ = self._axes  # All stages that targets read exist before threads of readers ask.
        of_queries = [system.queries(queries) for system in self.systems]
        of_passages = [system.cut_passages(length) for system in self.systems]
        return (
            functools.partial(self._project, of_queries),
            functools.partial(self._project, of_passages),
        )

    def fit_projection(self, start: DualEncoderSystem) -> np.ndarray:
        """`[hidden, width]` kernel that brings a student's start nearest to its targets.

        By least squares over a sample of passages; `start` projects by the identity.
        """
        sample = evenly_spaced(len(self.run.collection), _SAMPLE)
        hidden = start.encoder.model.transformer.hidden_size
        embeddings = start.passages[sample][:, :hidden].astype(np.float64)
        targets = self._project([system.passages for system in self.systems], sample)
        # Directions that are rounding alone would get huge weights.
        kernel, *_ = np.linalg.lstsq(embeddings, targets, rcond=1e-4)
        return kernel.astype(np.float32)

    def _project(self, stores: Sequence[Vectors], rows: np.ndarray) -> np.ndarray:
        return self._unit(self._concatenate(stores, rows) @ self._axes)

    def _concatenate(self, stores: Sequence[Vectors], rows: np.ndarray) -> np.ndarray:
        return np.concatenate([self._unit(store[rows]) for store in stores], axis=-1)

    @functools.cached_property
    def _axes(self) -> np.ndarray:
        """`[width of the systems, width of the student]`."""
        stores = [system.passages for system in self.systems]
        width, own = sum(s.shape[1] for s in stores), embedding_width(self.encoder.model)
        if width <= own and not self.run.config.student.dims:
            return np.eye(width, own, dtype=np.float32)
        sample = evenly_spaced(len(self.run.collection), _SAMPLE)
        axes = principal_axes(self._concatenate(stores, sample), own)
        return np.pad(axes, [(0, 0), (0, own - axes.shape[1])])

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        """Scales to unit length if the student does so; zero stays zero."""
        if not self.encoder.model.normalize:
            return vectors
        norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return vectors / np.where(norms > 0, norms, 1)


def principal_axes(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Orthonormal axes `[D, dim]` float32 whose projection of vectors keeps inner products best.

    They are the leading right singular vectors of `[n, D]` vectors, each with its largest entry
    positive.

    >>> principal_axes(np.array([[0.0, 2.0], [1.0, 0.0]]), 1).tolist()
    [[0.0], [1.0]]
    """
    vectors = vectors.astype(np.float64)
    _, axes = np.linalg.eigh(vectors.T @ vectors)  # Eigenvalues rise.
    axes = axes[:, ::-1][:, :dim]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return (axes * np.sign(largest)).astype(np.float32)
