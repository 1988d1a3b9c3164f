"""The options of `headroom analyze`, which `headroom recommend` also takes."""

from dataclasses import dataclass

from service.cli.options import (
    BatchSequences,
    Bos,
    Calibration,
    Device,
    FailOn,
    Harm,
    Int8Threshold,
    Keep,
    LabelDepth,
    LabelDimensions,
    Labelled,
    LabelThreshold,
    MaxBytes,
    MaxKl,
    Memory,
    Model,
    ModelUnlessReport,
    OfReport,
    Out,
    OutUnlessPlan,
    Plan,
    RetentionDays,
    Schemes,
    Score,
    Seed,
    SequenceLength,
    Sequences,
    SplitGroups,
    TextField,
    Thresholds,
)


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions:
    """What was typed; None leaves a setting to the service."""

    model: Model
    out: Out
    scheme: Schemes = None
    keep: Keep = None
    int8_threshold: Int8Threshold = None
    calibration: Calibration = None
    labelled: Labelled = None
    sequences: Sequences = None
    sequence_length: SequenceLength = None
    batch_sequences: BatchSequences = None
    seed: Seed = None
    score: Score = None
    bos: Bos = None
    text_field: TextField = None
    label_threshold: LabelThreshold = None
    label_depth: LabelDepth = None
    label_dimensions: LabelDimensions = None
    thresholds: Thresholds = None
    """NAME=VALUE each."""
    harm: Harm = None
    """Keys of `inputs.HARM`."""
    retention_days: RetentionDays = None
    memory: Memory = None
    """For the worker, as is `device`, where the command starts it."""
    device: Device = None
    fail_on: FailOn = None


@dataclass(frozen=True, kw_only=True)
class RecommendOptions(AnalyzeOptions):
    """The same, and the target of the recommendation."""

    model: ModelUnlessReport = ""
    out: OutUnlessPlan = None  # type: ignore[assignment]  # the command asks for it unless it only plans
    plan: Plan = False
    report: OfReport = None
    """Id of a report for whose model a mix is recommended, with its settings; `model` is empty then."""
    max_bytes: MaxBytes = None
    max_kl: MaxKl = None
    split_groups: SplitGroups = False
