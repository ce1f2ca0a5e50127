"""Topics of train queries, for batches of related ones.

Batches of one topic are the topic-aware sampling of TAS-B (Hofstaetter et al., 2021,
https://arxiv.org/abs/2104.06967): the passages of the batch are then harder to tell apart, and the
assistants' distributions over them say more. What is clustered are the student's own embeddings, as
it enters round 0 (ours).
"""

import numpy as np
from scipy.cluster import vq

from jdkd.run import Run
from jdkd.runtime import stages
from jdkd.systems.dual import DualEncoderSystem

STAGE = 'topics'
_SAMPLE = 50_000  # Queries that topics are found from, at most.
_ITERATIONS = 10


def keep(run: Run, student: DualEncoderSystem) -> None:
    """Finds the topic of each train query, as a stage; `student` is the one that enters round 0."""
    size, seed = run.config.topic_size, run.config.seed

    def build(out):
        np.save(out / 'topics.npy', find(student.queries(run.train)[:], size, seed=seed))

    inputs = {
        'student': student.digest,
        'store': run.config.index.store,  # What embeddings are rounded to.
        'collection': run.collection.fingerprint,
        'queries': stages.digest(list(run.train.ids)),
        'size': size,
        'seed': seed,
    }
    run.stage(STAGE, inputs, build)


def load(run: Run, queries: np.ndarray) -> np.ndarray:
    """Topics of train queries, by their rows; see `find`."""
    return np.load(run.workdir / STAGE / 'topics.npy')[queries]


def find(vectors: np.ndarray, size: int, *, seed: int) -> np.ndarray:
    """Topics of `[n, D]` vectors, `[n]` int32, of `size` vectors in the mean: their k-means."""
    vectors = np.asarray(vectors, np.float32)
    count = -(-len(vectors) // size)
    rng = np.random.default_rng(seed)
    sample = vectors
    if len(vectors) > _SAMPLE:
        sample = vectors[np.sort(rng.choice(len(vectors), _SAMPLE, replace=False))]
    # Some of the vectors begin as centres: k-means++ takes long and seeds outliers.
    centres = sample[rng.choice(len(sample), min(count, len(sample)), replace=False)]
    centres, _ = vq.kmeans2(sample, centres, iter=_ITERATIONS, minit='matrix', missing='warn')
    return vq.vq(vectors, centres)[0].astype(np.int32)
