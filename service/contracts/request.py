"""The requests: the job that a user submits, and the request file that a measurement reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    ByteSize,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from service.contracts.files import FileFormat, StoredFile, Upload, format_of
from service.contracts.harm.earlier import EarlierReport
from service.contracts.harm.recommendation import RecommendSettings
from service.contracts.harm.settings import HarmSettings
from service.contracts.record import Frozen, NoBoolean, WholeBytes, allowing, at_most
from service.contracts.schemes import SCHEMES, Scheme
from service.contracts.thresholds import (
    HeadThresholds,
    LlmInt8RelativeThresholds,
    LlmInt8Thresholds,
    MassiveThresholds,
    MedianQuantileThresholds,
    VarianceThresholds,
    VerdictLimits,
)
from service.contracts.variants import MOST_VARIANTS, Asked, Kept, Variant, check_names

SAMPLE = "sample"
"""The model name of the bundled sample checkpoint."""
JOB_ID = r"[0-9A-Za-z_-]{1,64}"
"""Pattern of the id of a job, which is also its report's."""
SizeClass = Literal["small", "large"]
"""Class of a job by the size of its model, so that small ones need not wait behind large ones: `small` until a worker
that takes only small ones finds the model to be larger than that."""
SIZE_CLASSES: tuple[SizeClass, ...] = ("small", "large")


MemorySize = Annotated[
    ByteSize,
    Field(ge=0),
    WholeBytes,
    allowing("allowed: 0 or more bytes, or a number with a unit, such as 512MiB or 4GiB"),
]
"""Bytes, as a number or with a unit: 2147483648, "2GiB"."""
FEWEST_CHOOSING = 2
"""Sequences that select a mix, and as many that it is measured on."""
DEFAULT_MEMORY = ByteSize(2 * 2**30)
DEFAULT_CHECKPOINT_SECONDS = 60.0
Device = Annotated[
    str,
    Field(pattern=r"^(auto|cpu|cuda(:(0|[1-9][0-9]?))?)$"),
    allowing("allowed: auto, cpu, cuda, or cuda:N with N from 0 to 99"),
]
"""Where to compute: `auto` is the first CUDA device, else the CPU; `cuda` is the first CUDA device."""
RetentionDays = Annotated[int, Field(ge=1, le=36_500), NoBoolean]
CheckpointSeconds = Annotated[float, Field(ge=0, allow_inf_nan=False), NoBoolean]


class Analysis(Frozen):
    """The settings of an analysis, the same in a job and in a measurement."""

    schemes: Annotated[tuple[Asked, ...], Field(max_length=MOST_VARIANTS), at_most(MOST_VARIANTS)] = (
        Variant(scheme="int8"),
        Variant(scheme="nf4"),
    )
    """Variants of schemes, `[LABEL=]SCHEME[:KEY=VALUE,...]` or objects, with different names; empty: measure only the
    reference."""
    keep: Kept = ()
    """Modules that no scheme quantizes, besides those that a variant keeps: patterns as a variant's."""
    int8_threshold: Annotated[float, Field(ge=0, allow_inf_nan=False), NoBoolean] = 6.0
    """Default `threshold` of int8: input columns with abs(x) at or above this stay in 16 bits; 0: none."""
    sequences: Annotated[int, Field(ge=1, le=1_000_000), NoBoolean] = 16
    """Calibration sequences."""
    sequence_length: Annotated[int, Field(ge=2, le=1_048_576), NoBoolean] = 256
    """Tokens in each."""
    batch_sequences: Annotated[int, Field(ge=1, le=1_000_000), NoBoolean] | None = None
    """Sequences in one forward pass; default: as many as have 2^21 values where a layer is widest (on CUDA 2^28, or
    what fits). It determines the memory needed, the last digits, and what covers a whole batch: the columns that `int8`
    keeps in 16 bits, and some input scales."""
    seed: Annotated[int, Field(ge=0, lt=2**63), NoBoolean] = 0
    """Seed of the choice of sequences from the calibration text."""
    score: Literal["all", "second_half"] = "all"
    """Positions whose next token is scored: all, or the second half of each sequence, as in llama.cpp."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether every sequence begins with the BOS token: as the tokenizer does (`auto`), always, or never."""
    text_field: Annotated[
        str,
        Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$"),
        allowing("allowed: 1 to 255 characters without control characters"),
    ] = "text"
    """Field of a JSON Lines record, or column of a Parquet file, with the text of a document."""
    label_threshold: Annotated[float, Field(allow_inf_nan=False), NoBoolean] | None = None
    """Labeled prompts with scores: a record is true if its score is larger. Required for scores."""
    label_depth: Annotated[int, Field(ge=0), NoBoolean] | None = None
    """Decoder layer after which the labeled prompts' vectors are taken; default: after the final norm."""
    label_dimensions: Annotated[int, Field(ge=1, le=64), NoBoolean] = 4
    """Number of dimensions reported for the labeled prompts, best first."""
    llm_int8: LlmInt8Thresholds = LlmInt8Thresholds()
    llm_int8_relative: LlmInt8RelativeThresholds = LlmInt8RelativeThresholds()
    massive: MassiveThresholds = MassiveThresholds()
    median_quantile: MedianQuantileThresholds = MedianQuantileThresholds()
    variance: VarianceThresholds = VarianceThresholds()
    heads: HeadThresholds = HeadThresholds()
    verdict: VerdictLimits = VerdictLimits()
    harm: HarmSettings = HarmSettings()
    """With `recommend`, some modules are measured by default."""
    recommend: RecommendSettings = RecommendSettings()

    @model_validator(mode="before")
    @classmethod
    def _harm_for_recommending(cls, fields: Any) -> Any:
        """Estimate harm and measure that of some modules where a mix is to be recommended and nothing else is said."""
        if not isinstance(fields, Mapping):
            return fields
        recommend, harm = fields.get("recommend"), fields.get("harm", {})
        enabled = recommend.get("enabled") if isinstance(recommend, Mapping) else getattr(recommend, "enabled", False)
        if enabled is not True or not isinstance(harm, Mapping):
            return fields
        return {**fields, "harm": {"estimate": True, "exact": "modules", **harm}}

    @field_validator("recommend")
    @classmethod
    def _needs_estimates(cls, recommend: RecommendSettings, info: ValidationInfo) -> RecommendSettings:
        harm = info.data.get("harm")
        if recommend.enabled and harm is not None and not harm.estimates:
            raise ValueError("a recommendation needs harm.estimate to be true")
        if recommend.enabled and info.data.get("sequences", FEWEST_CHOOSING) < FEWEST_CHOOSING:
            raise ValueError(
                f"a recommendation needs {FEWEST_CHOOSING} sequences or more to select mixes, and as many to measure "
                f"them; sequences is {info.data['sequences']}"
            )
        return recommend

    @field_validator("schemes")
    @classmethod
    def _different_names(cls, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        check_names(variants)
        return variants

    @field_validator("harm")
    @classmethod
    def _has_parts(cls, harm: HarmSettings, info: ValidationInfo) -> HarmSettings:
        if harm.measures and info.data.get("schemes") == ():
            raise ValueError("without a scheme there is no harm; give schemes, or leave harm out")
        if harm.component is not None and harm.exact != "modules":
            raise ValueError(f"component {harm.component!r} needs exact to be 'modules', which is {harm.exact!r}")
        return harm

    @property
    def scheme_names(self) -> tuple[str, ...]:
        """The names of the variants."""
        return tuple(variant.name for variant in self.schemes)


def variants_for(analysis: Analysis) -> tuple[Variant, ...]:
    """Return the variants of an analysis, each with all modules that it keeps."""
    return tuple(v.model_copy(update={"keep": (*v.keep, *analysis.keep)}) for v in analysis.schemes)


def schemes_for(analysis: Analysis) -> tuple[Scheme, ...]:
    """Return the variants of an analysis as schemes with the variants' names and settings."""
    common = {"threshold": analysis.int8_threshold}
    schemes = []
    for variant in analysis.schemes:
        scheme = SCHEMES[variant.scheme]
        own = {key: common.get(key, value) for key, value in scheme.settings.items()}
        schemes.append(scheme.model_copy(update={"name": variant.name, "settings": own | variant.settings}))
    return tuple(schemes)


class JobRequest(Analysis):
    """One request to analyze one model; frozen at submission."""

    model: Annotated[str, Field(min_length=1, max_length=1024)]
    """`sample`, an absolute path of a local directory, or a hub id `org/name`, `org/name@revision`."""
    calibration: StoredFile | None = None
    """Calibration text or token ids; default: the text bundled with the sample model."""
    labelled: StoredFile | None = None
    """Labeled prompts, JSON Lines; default: for the model `sample` its bundled prompts, else none."""
    retention_days: RetentionDays | None = None
    """Days after its end for which the report is kept; default: the service's (`HEADROOM_RETENTION_DAYS`)."""
    earlier: EarlierReport | None = None
    """The report for which a mix is recommended; None for a job that stands for itself."""


class JobSubmission(Analysis):
    """The body of `POST /v1/jobs`: a job request with its files."""

    model: Annotated[str, Field(min_length=1, max_length=1024)]
    calibration: Upload | None = None
    labelled: Upload | None = None
    """Labeled prompts; default: for the model `sample` its bundled prompts, else none."""
    retention_days: RetentionDays | None = None
    """Days after its end for which the report is kept; default: the service's (`HEADROOM_RETENTION_DAYS`)."""


class ModelFiles(Frozen):
    """A checkpoint on this machine."""

    path: Path
    """Directory with config.json, safetensors and a tokenizer."""
    source: str = Field(default_factory=lambda fields: str(fields.get("path")))
    """Name in the report; default: the path."""
    revision: str | None = None
    """Commit on the hub; None for a local model."""
    fingerprint: str | None = None
    """The weights that must be there, as in report.json; None: whichever."""


class CalibrationFile(Frozen):
    """A calibration text, or token ids, on this machine."""

    path: Path
    source: str = Field(default_factory=lambda fields: Path(fields.get("path", "")).name)
    """Name in the report; default: the file's name."""
    format: FileFormat = Field(default_factory=lambda fields: format_of(Path(fields.get("path", "")).name))
    """Default: the format that the file's name states."""


class LabelledFile(Frozen):
    """Labeled prompts on this machine."""

    path: Path
    """JSON Lines: {"prompt", "label"} or {"prompt", "score"}."""
    source: str = Field(default_factory=lambda fields: Path(fields.get("path", "")).name)
    """Name in the report; default: the file's name."""


class MeasurementRequest(Analysis):
    """The request file of `python -m workers.measurement REQUEST.json OUT`."""

    job_id: str | None = None
    """For the report; default: a new id."""
    model: ModelFiles
    calibration: CalibrationFile
    labelled: LabelledFile | None = None
    device: Device = "auto"
    any_model_type: bool = True
    """False: refuse model types that the layer-by-layer computation has not been shown to run exactly."""
    memory_bytes: MemorySize = DEFAULT_MEMORY
    """Hidden states that need more than this are kept in memory-mapped files."""
    checkpoint_seconds: CheckpointSeconds = DEFAULT_CHECKPOINT_SECONDS
    """Seconds between checkpoints: the work that a kill may cost. Checkpoints are made at layer boundaries."""
