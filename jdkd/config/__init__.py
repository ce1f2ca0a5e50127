"""Configs: what their fields are, and how they are read, checked and kept in a workdir."""

from jdkd.config.fields import (
    Config,
    EvalConfig,
    IndexConfig,
    MeshConfig,
    PlanConfig,
    RowsConfig,
)
from jdkd.config.files import (
    FILE,
    differences,
    digest,
    load,
    resolve,
    save,
)
from jdkd.config.method import (
    AlignConfig,
    CandidatesConfig,
    CollectionConfig,
    DarkConfig,
    LossConfig,
    PseudoLabelsConfig,
    PseudoQueriesConfig,
    SelectionConfig,
    SelfPacedConfig,
    TeacherConfig,
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
