"""The fields of a config, each once: type, default, comment, and the range that validation checks.

Those of what is learned are in `method`, those of systems and of the student in `systems`.
"""

from collections.abc import Mapping
from typing import Any

from jdkd.config.method import (
    AlignConfig,
    CandidatesConfig,
    CollectionConfig,
    DarkConfig,
    LossConfig,
    PseudoLabelsConfig,
    SelectionConfig,
    SelfPacedConfig,
    TeacherConfig,
)
from jdkd.config.schema import Section, field
from jdkd.config.systems import (
    DTYPES,
    ON_ERROR,
    EvalEncoderSpec,
    OptimizerConfig,
    StudentSpec,
    SystemSpec,
)

STORES = (*DTYPES, 'int8', 'binary')


class IndexConfig(Section):
    kind: str = field('scann', 'how passages are searched', ('scann', 'exact'))
    mining: str = field(
        'auto',
        'search of train queries: scann, exact, or auto (exact on accelerators, else as kind)',
        ('auto', 'scann', 'exact'),
    )
    recall: float | None = field(
        None,
        "share of the best passages that accelerators find at least when mining exactly (JAX's "
        'approx_max_k); None: all',
        'above 0 and at most 1',
    )
    reorder: int = field(400, 'candidates that ScaNN scores exactly', 'at least 1')
    threshold: float = field(0.2, "ScaNN's threshold of anisotropic quantization")
    leaves: float = field(
        0.1, "share of ScaNN's leaves searched, from 20,000 passages on", 'above 0 and at most 1'
    )
    shard: int = field(250_000, 'most passages of one ScaNN index; bounds memory')
    store: str = field(
        'float32',
        'embeddings on disk; queries stay float32 beside int8 and binary',
        STORES,
    )


class RowsConfig(Section):
    """Rows of tokens that training packs candidates into."""

    lengths: int = field(4, 'different row lengths, at most', 'at least 1')
    shared: int = field(
        0,
        'tokens of a row that several candidates share (fused attention on TPUs: 256 or 512); '
        '0: each has a row of its own',
        'at least 0',
    )
    texts: int = field(8, 'candidates per shared row, at most', 'at least 1')
    chunks: int = field(1, 'chunks of a batch, one after another (gradient caching)', 'at least 1')
    parts: int = field(
        0,
        'parts of a batch, each with its own rows; 0: one per device. Dropout depends on it: fix '
        'it for equal results on any number of devices',
        'at least 0',
    )


class PlanConfig(Section):
    """For --mode plan: the host, and sizes where the collection is not at hand (None: counted)."""

    passages: int | None = field(None, 'passages', 'at least 1')
    train_queries: int | None = field(None, 'train queries, with those of D_eval', 'at least 1')
    test_queries: int | None = field(None, 'test queries', 'at least 1')
    passage_tokens: float | None = field(None, 'mean tokens of a passage', 'at least 3')
    query_tokens: float | None = field(None, 'mean tokens of a query', 'at least 3')
    cores: int | None = field(
        None, "cores of a host; None: a usual host's of the topology", 'at least 1'
    )
    throughputs: str | None = field(
        None,
        "the host's throughputs, a file that benchmarks.rehearsal writes; None: those of the "
        "authors' machine",
    )


class MeshConfig(Section):
    data: int = field(
        -1,
        'devices along the batch; -1: all that model leaves',
        '-1 (all that mesh.model leaves) or at least 1',
    )
    model: int = field(1, 'devices along the parameters', 'at least 1')


SHARDING = (
    (r'embeddings/word/', ('model', None)),
    (r'attention/(position_)?(query|key|value)/', (None, 'model')),
    (r'attention/output/kernel', ('model', None)),
    (r'ffn/(up|gate)/', (None, 'model')),
    (r'ffn/down/kernel', ('model', None)),
    (r'.*', ()),
)


class RetrievalConfig(Section):
    """The fields that training and zero-shot evaluation share."""

    seed: int = field(0, 'seed of every random draw', 'at least 0')
    systems: Mapping[str, SystemSpec] = field({}, 'every retriever and scorer, by name')
    depth: int = field(100, 'passages kept of every ranking', 'at least 1')
    ignore_identical_ids: bool = field(
        True, "whether a passage with the query's own id is no result, as in BEIR"
    )
    index: IndexConfig = field(IndexConfig, 'dense search')
    mesh: MeshConfig = field(MeshConfig, 'devices')


class Config(RetrievalConfig):
    """The config of a training run."""

    collection: CollectionConfig = field(CollectionConfig, 'passages, queries and judgements')
    pseudo_labels: PseudoLabelsConfig = field(
        PseudoLabelsConfig, 'labels that rankers give to unlabelled train queries'
    )
    first_stage: str = field('bm25', 'system whose top passages the teacher re-ranks')
    assistants: tuple[str, ...] = field((), 'systems; the pool of Algorithm 1')
    teacher: TeacherConfig = field(TeacherConfig, 'the teacher')
    student: StudentSpec = field(StudentSpec, 'the student')
    align: AlignConfig = field(AlignConfig, 'alignment with the embeddings of assistants')
    fit_floor: float = field(
        0.1,
        'least cross-entropy (nats) of fitted weights of the teacher and scales of assistants; '
        'lower ones copy the labels',
        'at least 0',
    )
    spread: float = field(
        1.5,
        "where D_eval has no labels: logits that the scores of a query's candidates.stand_ins "
        'differ by (standard deviation), of the teacher and of each assistant without a scale',
        'above 0',
    )
    candidates: CandidatesConfig = field(CandidatesConfig, 'candidate lists')
    dark: DarkConfig = field(DarkConfig, 'dark examples')
    selection: SelectionConfig = field(SelectionConfig, 'selection of the assistant')
    self_paced: SelfPacedConfig = field(SelfPacedConfig, 'the self-paced mask')
    loss: LossConfig = field(LossConfig, 'the terms of the loss')
    twin: bool = field(
        False,
        'whether to train, from the same start and lists, a twin of the student on the labels '
        'alone, which shows what distillation is worth',
    )
    keep_students: bool = field(
        False,
        'whether embeddings, indexes and train rankings of students that nothing reads any more '
        'stay in the workdir',
    )
    rounds: int = field(2, 'rounds of Algorithm 1; 0: the student is only aligned', 'at least 0')
    patience: int = field(
        0,
        'rounds without a better student on D_eval after which no more are trained (with 1 none is '
        'taken back); 0: all are',
        'at least 0',
    )
    backtrack: float = field(
        0.0,
        'factor of the learning rate after a round whose student is not the best on D_eval so far: '
        'the next one begins from that best one; 0: from the last, at the same rate',
        'within 0 and 1',
    )
    final: str = field(
        'best',
        'the student that the run ends with: best (on D_eval, before round 0 or after any), or '
        'last; so the twin',
        ('best', 'last'),
    )
    steps_per_round: int = field(200, 'train steps of a round', 'at least 1')
    batch_size: int = field(32, 'queries, over all devices', 'at least 1')
    topic_size: int = field(
        0,
        'queries of a topic in the mean; batches are drawn from one topic each (TAS-B), as the '
        'student sees them; 0: batches of any queries',
        'at least 0',
    )
    train_passage_length: int = field(
        128,
        'tokens in the rounds and in fine-tuning dual-encoders; alignment reads, and all encode, '
        "longer ones; 0: as the student's, and at most 128 where the collection decides that (of "
        'python_docs: 40)',
        '0 or at least 3',
    )
    hard_queries: str = field(
        'wrong',
        'train queries that all come again in the next round: wrong (no positive at rank 1), or '
        'prod (first positive at rank 2 to 15 where the teacher has one first)',
        ('wrong', 'prod'),
    )
    replay: float = field(0.5, 'share of the other train queries that come again', 'within 0 and 1')
    optimizer: OptimizerConfig = field(OptimizerConfig, "the student's optimizer")
    measures: tuple[str, ...] = field(('MRR@10', 'nDCG@10', 'R@100'), 'names of ir_measures')
    compare: str = field('MRR@10', 'measure on D_eval that decides replacement')
    rows: RowsConfig = field(RowsConfig, 'rows of tokens in training')
    plan: PlanConfig = field(PlanConfig, 'sizes for --mode plan')
    sharding: tuple = field(SHARDING, 'the first rule whose regex matches a parameter path decides')
    log_every: int = field(10, 'steps between log lines', 'at least 1')
    eval_every: int = field(
        0,
        'steps between evaluations of the loss on D_eval within a round; 0: at its end alone',
        'at least 0',
    )
    checkpoint_every: int = field(50, 'steps between checkpoints', 'at least 1')


class EvalConfig(RetrievalConfig):
    """The config of a zero-shot evaluation of a checkpoint over collections."""

    model: str = field('', 'directory of a dual-encoder or cross-encoder, or its hub name')
    collections: tuple[str, ...] = field(
        '',
        'sources, separated by commas: python_docs, beir:PATH; quote one that holds a comma: '
        '\'"beir:a,b",python_docs\'',
    )
    options: Mapping[str, Any] = field({}, '{collection, as in the table: options of its source}')
    on_error: str = field('stop', 'at unusable data: stop, or skip', ON_ERROR)
    splits: tuple[str, ...] = field(('test', 'dev'), 'the first that a collection has is measured')
    encoder: EvalEncoderSpec = field(EvalEncoderSpec, 'overrides of what the checkpoint says')
    measures: tuple[str, ...] = field(('nDCG@10', 'R@100'), 'names of ir_measures')
