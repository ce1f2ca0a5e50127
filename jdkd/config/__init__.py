"""Configs: what their fields are, and how they are read, checked and kept in a workdir."""

from jdkd.config.fields import (
    AlignConfig,
    CandidatesConfig,
    CollectionConfig,
    Config,
    DarkConfig,
    EvalConfig,
    IndexConfig,
    LossConfig,
    MeshConfig,
    PlanConfig,
    PseudoLabelsConfig,
    PseudoQueriesConfig,
    RowsConfig,
    SelectionConfig,
    SelfPacedConfig,
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
from jdkd.config.systems import (
    BM25Spec,
    EncoderSpec,
    EvalEncoderSpec,
    FineTuningConfig,
    LLMSpec,
    OptimizerConfig,
    ScoresSpec,
    StudentSpec,
    SystemSpec,
)
