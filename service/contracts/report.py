"""The records of `report.json`. The names are a contract with other programs.

Keys may be added; none changes without a new major `SCHEMA_VERSION`. Figures are defined in the README's
glossary; `DEFINITIONS_VERSION` names the set of definitions.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from service.contracts.harm.facts import HarmFacts
from service.contracts.harm.recommendation import Recommendation
from service.contracts.record import Record
from service.contracts.request import Analysis
from service.contracts.sections.labelled import Labelled
from service.contracts.sections.outliers import HeadFacts, MassiveActivation, Outliers
from service.contracts.sections.provenance import CalibrationFacts, Environment, ModelFacts, Timing
from service.contracts.warnings import Warning

SCHEMA_VERSION = "1.2"
DEFINITIONS_VERSION = "1.1"


class Uncertain(Record):
    """How sure a mean over token positions is, or what follows from one: clustered by sequence (`uncertainty`)."""

    standard_error: float | None
    """None where the positions are too few. In a report of schema 1.1 or earlier it takes tokens as independent,
    which is too small: `restating` gives such a report the errors of today."""
    interval: tuple[float, float] | None = None
    """95% interval by Student's t; None where there is no standard error."""
    degrees_of_freedom: int | None = None
    """Of the interval: one less than `unit_count`."""
    units: Literal["sequences", "blocks"] | None = None
    """What is taken as independent: the sequences, or where they are fewer than 8 the blocks that they are cut into."""
    unit_count: int | None = None


class Estimate(Uncertain):
    """A figure, and how sure it is."""

    value: float


class Perplexity(Estimate):
    """exp(mean negative log likelihood of the true next token)."""

    scored_tokens: int


class ReferenceFacts(Record):
    """The model as it came."""

    perplexity: Perplexity | None
    """None if no position has a finite prediction."""


class KlDivergence(Uncertain):
    """KL(reference || scheme) over scored positions, in nats; how sure it is, is said of the mean."""

    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    p99_9: float
    max: float


class DeltaP(Record):
    """Change in the probability of the true next token."""

    mean: float
    rms: float


class SchemeVerdict(Record):
    """The effect of a scheme on the predictions: one of four levels, and the reasons."""

    level: Literal["negligible", "noticeable", "severe", "unjudged"]
    """`unjudged` where the figures do not determine it."""
    reasons: tuple[str, ...]
    """A sentence for each measure that was judged, and what else the reader must know of it."""
    not_ruled_out: tuple[Literal["negligible", "noticeable", "severe"], ...]
    """Other levels that the 95% intervals reach: the mildest and the worst of them."""


class WorstSite(Record):
    """One of the largest isolated errors."""

    layer: int
    component: str
    relative_l2: float
    sqnr_db: float | None


class LargestShare(Record):
    """Where the most of an input's columns are computed in 16 bits."""

    layer: int
    component: str
    prefill: float


class Fp16ColumnFacts(Record):
    """Share of the input columns that int8 computes in 16 bits: those with abs(x) at or over its threshold in a call,
    of the reference's input. The `fp16_columns` table has every layer and component.
    """

    prefill: float
    """A call is one sequence; mean over layers and components."""
    decode: float
    """A call is one token; mean over layers and components."""
    components: dict[str, float]
    """`prefill` by component, mean over its layers."""
    largest: LargestShare


FP16_COLUMNS_WARNING_SHARE = 0.2
"""From this share of a component's columns on, little of int8's speed is won there: the report warns."""


class SchemeFacts(Record):
    """What a variant of a scheme does to the model. The comparisons are None if no position has a finite prediction."""

    scheme: str = ""
    """The scheme that it is a variant of. In a report that does not say so, the name that the facts stand under."""
    settings: dict[str, bool | float | int | str]
    """`compute_dtype` is a type's name, also where the model's own was asked for."""
    simulated: bool = Field(default_factory=lambda fields: "weight_format" in fields.get("settings", {}))
    """Rounded values in the model's own type stood in for a low-precision kernel. Earlier reports do not say so, but
    only such schemes name a format for their weights."""
    analysis_only: bool = False
    """It ran on bitsandbytes' modules, but BitsAndBytesConfig cannot express its settings: no `from_pretrained` loads
    it."""
    perplexity: Perplexity | None
    perplexity_ratio: Estimate | None
    kl_divergence: KlDivergence | None
    same_top_token: Estimate | None
    delta_p: DeltaP | None
    model_bytes: int
    compression: float
    quantised_share: float | None = None
    """Share of the decoder layers' weights that the scheme replaced, of those in matrices; None in earlier reports."""
    not_quantised: tuple[str, ...]
    """Names of the modules that have a weight matrix and keep it in 16 bits or more."""
    not_quantised_bytes: int | None = None
    """Bytes of their matrices within `model_bytes`, a matrix that modules share counted once; None in earlier
    reports."""
    worst_sites: tuple[WorstSite, ...]
    verdict: SchemeVerdict | None = None
    """None in reports of schema 1.1 or earlier, for which it is worked out on reading."""
    fp16_columns: Fp16ColumnFacts | None = None
    """Of int8 alone; None in earlier reports, and where no module was replaced."""


def _with_names(facts_by_name: Any) -> Any:
    """Name the scheme of facts that do not: variants have a name of their own only since facts name their scheme."""
    if not isinstance(facts_by_name, dict):
        return facts_by_name
    return {
        name: {"scheme": name} | facts if isinstance(facts, dict) and isinstance(name, str) else facts
        for name, facts in facts_by_name.items()
    }


FactsByName = Annotated[dict[str, SchemeFacts], BeforeValidator(_with_names)]
"""What the variants do, by their names."""


class ProfileFacts(Record):
    """Which hidden-state vector the `profile` table holds."""

    layer: int
    sequence: int
    position: int
    token_id: int
    token: str | None
    median_abs: float
    p99_abs: float
    max_to_median: float | None
    kurtosis: float | None


class SurfaceFacts(Record):
    """Which hidden state the `surface` table holds: of block.output, the one that stands out most over all layers."""

    layer: int
    sequence: int
    """The one with the layer's largest magnitude."""
    positions: int
    """Token positions of the sequence."""
    channels: int
    """Hidden dimensions."""
    positions_per_cell: int
    """Neighboring positions in a cell; the last ones may have fewer."""
    channels_per_cell: int
    """Neighboring channels in a cell; the last ones may have fewer."""
    median_abs: float | None
    """Of the layer, over all sequences."""
    max_to_median: float | None
    """Of the layer: its largest magnitude, which lies in this sequence, over `median_abs`."""


class Entry(Record):
    """A figure or a table, and its files relative to the report."""

    name: str
    title: str
    caption: str
    files: tuple[str, ...]


class LeftOut(Record):
    """A figure that the report cannot have."""

    name: str
    reason: str


class Report(Record):
    """The whole of `report.json`."""

    schema_version: str
    definitions_version: str
    headroom_version: str
    job_id: str
    created_at: datetime
    model: ModelFacts
    analysis: Analysis
    """The settings that were asked for."""
    calibration: CalibrationFacts
    environment: Environment
    timing: Timing
    outliers: Outliers
    massive_activations: tuple[MassiveActivation, ...]
    """The largest hundred."""
    heads: HeadFacts
    reference: ReferenceFacts
    schemes: FactsByName
    profile: ProfileFacts
    surface: SurfaceFacts | None = None
    """None in reports that were made before there was such a table."""
    labelled: Labelled | None = None
    """None where no labeled prompts were given."""
    harm: dict[str, HarmFacts] | None = None
    """By scheme; None where it was not asked for."""
    recommendation: dict[str, Recommendation] | None = None
    """By scheme; None where it was not asked for."""
    warnings: tuple[Warning, ...]
    figures: tuple[Entry, ...]
    figures_left_out: tuple[LeftOut, ...] = ()
    """Figures for which the report has no table, such as one that was measured before the table existed."""
    tables: tuple[Entry, ...]
