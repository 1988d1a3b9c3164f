"""The part of a report on outliers: dimensions by definition, massive activations, heads."""

from pydantic import Field

from service.contracts.record import Record
from service.contracts.thresholds import (
    HeadThresholds,
    LlmInt8RelativeThresholds,
    LlmInt8Thresholds,
    MassiveThresholds,
    MedianQuantileThresholds,
    VarianceThresholds,
)


def discriminating(flagged: int, dimensions: int) -> bool:
    """Whether a definition separates outlier dimensions from others: it flags no more than half of them."""
    return 2 * flagged <= dimensions


class FlaggedDimensions(Record):
    """The dimensions that a definition flags; base of the definitions' records."""

    discriminates: bool = True
    """False where the definition flags more than half of the dimensions. Earlier reports do not say it."""


class LlmInt8Dimension(Record):
    """One outlier dimension by the definition of LLM.int8()."""

    dimension: int
    layers_fraction: float
    positions_fraction: float
    abs_max: float
    one_sided: bool
    quartiles: tuple[float, float, float]
    """Of the values at or over the magnitude."""


class LlmInt8Outliers(FlaggedDimensions):
    """The outlier dimensions by the definition of LLM.int8(), and the thresholds used."""

    thresholds: LlmInt8Thresholds
    dimensions: tuple[LlmInt8Dimension, ...]


class LlmInt8RelativeOutliers(FlaggedDimensions):
    """The outlier dimensions by LLM.int8()'s definition on magnitudes relative to their token's, and the thresholds."""

    thresholds: LlmInt8RelativeThresholds
    dimensions: tuple[LlmInt8Dimension, ...]


class LayerwiseDimension(Record):
    """One dimension that a definition flags layer by layer."""

    dimension: int
    layers_fraction: float
    """Share of the layers that flag it."""
    abs_max: float
    """Largest magnitude in the layers that flag it."""


class MassiveOutliers(FlaggedDimensions):
    """Dimensions with massive activations, and the thresholds used."""

    thresholds: MassiveThresholds
    dimensions: tuple[LayerwiseDimension, ...]


class MedianQuantileOutliers(FlaggedDimensions):
    """Outlier dimensions by the definition of Macocco et al., and the threshold used."""

    thresholds: MedianQuantileThresholds
    dimensions: tuple[LayerwiseDimension, ...]


class VarianceOutliers(FlaggedDimensions):
    """Outlier dimensions by the definition of Rudman et al., and the threshold used."""

    thresholds: VarianceThresholds
    dimensions: tuple[LayerwiseDimension, ...]


Definition = LlmInt8Outliers | LlmInt8RelativeOutliers | MassiveOutliers | MedianQuantileOutliers | VarianceOutliers
DEFINITIONS = ("llm_int8", "llm_int8_relative", "massive_tensor", "massive_token", "median_quantile", "variance")
"""The names of the definitions, in the order in which reports list them."""


class Outliers(Record):
    """Outlier dimensions, one key per definition."""

    llm_int8: LlmInt8Outliers
    llm_int8_relative: LlmInt8RelativeOutliers | None = None
    """None in earlier reports."""
    massive_tensor: MassiveOutliers
    """The median is over the sequence's whole hidden state."""
    massive_token: MassiveOutliers
    """The median is over the token's own vector."""
    median_quantile: MedianQuantileOutliers
    variance: VarianceOutliers

    def present(self) -> dict[str, Definition]:
        """Return what each definition says, by its name; those that the report has."""
        definitions = {name: getattr(self, name) for name in DEFINITIONS}
        return {name: of for name, of in definitions.items() if of is not None}

    def named(self, hidden_size: int) -> dict[str, Definition]:
        """Return the definitions that discriminate among `hidden_size` dimensions, which reports name."""
        return {
            name: of
            for name, of in self.present().items()
            if of.discriminates and discriminating(len(of.dimensions), hidden_size)
        }

    def unnamed(self, hidden_size: int) -> dict[str, int]:
        """Return by the other definitions how many dimensions they flag."""
        named = self.named(hidden_size)
        return {name: len(of.dimensions) for name, of in self.present().items() if name not in named}

    def massive_dimensions(self) -> frozenset[int]:
        """Return the dimensions that either definition of massive activations flags."""
        return frozenset(one.dimension for of in (self.massive_tensor, self.massive_token) for one in of.dimensions)


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
