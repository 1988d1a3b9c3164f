"""What a report says of outliers: dimensions by definition, massive activations, heads."""

from pydantic import Field

from service.contracts.record import Record
from service.contracts.request import (
    HeadThresholds,
    LlmInt8Thresholds,
    MassiveThresholds,
    MedianQuantileThresholds,
    VarianceThresholds,
)


class LlmInt8Dimension(Record):
    """One outlier dimension after LLM.int8()."""

    dimension: int
    layers_fraction: float
    positions_fraction: float
    abs_max: float
    one_sided: bool
    quartiles: tuple[float, float, float]
    """Of the values at or over the magnitude."""


class LlmInt8Outliers(Record):
    """The outlier dimensions after LLM.int8(), and the thresholds used."""

    thresholds: LlmInt8Thresholds
    dimensions: tuple[LlmInt8Dimension, ...]


class LayerwiseDimension(Record):
    """One dimension that a definition flags layer by layer."""

    dimension: int
    layers_fraction: float
    """Share of the layers that flag it."""
    abs_max: float
    """Largest magnitude in the layers that flag it."""


class MassiveOutliers(Record):
    """Dimensions with massive activations, and the thresholds used."""

    thresholds: MassiveThresholds
    dimensions: tuple[LayerwiseDimension, ...]


class MedianQuantileOutliers(Record):
    """Outlier dimensions after Macocco et al., and the threshold used."""

    thresholds: MedianQuantileThresholds
    dimensions: tuple[LayerwiseDimension, ...]


class VarianceOutliers(Record):
    """Outlier dimensions after Rudman et al., and the threshold used."""

    thresholds: VarianceThresholds
    dimensions: tuple[LayerwiseDimension, ...]


class Outliers(Record):
    """Outlier dimensions, one key per definition."""

    llm_int8: LlmInt8Outliers
    massive_tensor: MassiveOutliers
    """The median is over the sequence's whole hidden state."""
    massive_token: MassiveOutliers
    """The median is over the token's own vector."""
    median_quantile: MedianQuantileOutliers
    variance: VarianceOutliers


class MassiveActivation(Record):
    """One massive activation, by either definition."""

    layer: int
    sequence: int
    position: int
    token: str | None
    token_id: int
    dimension: int
    value: float
    ratio_tensor: float | None
    ratio_token: float | None


class HeadDamage(Record):
    """How many heads a scheme damages."""

    damaged: int
    damaged_outliers: int
    """Outlier heads among them."""


class HeadFacts(Record):
    """Outlier heads: thresholds and counts; the `heads` table has each."""

    thresholds: HeadThresholds
    heads: int
    """Heads measured; 0 where the architecture has none that Headroom knows."""
    measured_outliers: int
    schemes: dict[str, HeadDamage] = Field(default_factory=dict)
    """By scheme; empty in reports that were made before damaged heads were counted."""
