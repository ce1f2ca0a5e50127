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
    RowsConfig,
    ScoresSpec,
    SelectionConfig,
    SelfPacedConfig,
    SystemSpec,
    TeacherConfig,
)
from jdkd.config.files import (
    FILE,
    check_overrides,
    differences,
    digest,
    load,
    resolve,
    run_file,
    save,
)
from jdkd.config.schema import Schedule, Section
