"""Configs: what their fields are, and how they are read, checked and kept in a workdir."""

from jdkd.config.fields import (
    BM25Spec,
    CandidatesConfig,
    CollectionConfig,
    Config,
    DarkConfig,
    EncoderSpec,
    EvalConfig,
    EvalEncoderSpec,
    FineTuningConfig,
    IndexConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    PlanConfig,
    PseudoQueriesConfig,
    RowsConfig,
    ScoresSpec,
    SelectionConfig,
    SelfPacedConfig,
    StudentSpec,
    SystemSpec,
    TeacherConfig,
)
from jdkd.config.files import (
    FILE,
    differences,
    digest,
    load,
    resolve,
    save,
)
from jdkd.config.overrides import check_overrides, register_parsers, run_file
from jdkd.config.schema import Schedule, Section
