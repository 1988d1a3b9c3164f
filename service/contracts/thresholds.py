"""The thresholds of the outlier definitions, and the limits of the verdict: settings of an analysis."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from service.contracts.record import Frozen, NoBoolean


class Thresholds(Frozen):
    """Base of the thresholds of a definition; all are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class LlmInt8Thresholds(Thresholds):
    """When a hidden dimension is an outlier by LLM.int8() (arXiv 2208.07339, section 4.1)."""

    magnitude: Annotated[float, Field(gt=0), NoBoolean] = 6.0
    """abs(x) at or above this counts."""
    layers_fraction: Annotated[float, Field(ge=0, le=1), NoBoolean] = 0.25
    """Share of the layers in which it must occur."""
    positions_fraction: Annotated[float, Field(ge=0, le=1), NoBoolean] = 0.06
    """Share of the token positions that must have it in one layer or more."""


class LlmInt8RelativeThresholds(LlmInt8Thresholds):
    """The same with magnitudes relative to each token's own, so that the scale of a norm's gain does not matter."""

    magnitude: Annotated[float, Field(gt=0), NoBoolean] = 6.0
    """abs(x) counts from this multiple of the root mean square of its token's channels."""


class MassiveThresholds(Thresholds):
    """When a value of the residual stream is a massive activation (arXiv 2402.17762)."""

    magnitude: Annotated[float, Field(ge=0), NoBoolean] = 100.0
    """abs(x) must be larger."""
    ratio: Annotated[float, Field(gt=0), NoBoolean] = 1000.0
    """abs(x) must be at least this multiple of the median magnitude."""


class MedianQuantileThresholds(Thresholds):
    """When a hidden dimension is an outlier by Macocco et al."""

    quantile: Annotated[float, Field(ge=0, le=1), NoBoolean] = 0.99
    """The dimension's median magnitude over tokens must be above this quantile of all magnitudes of the layer."""


class VarianceThresholds(Thresholds):
    """When a hidden dimension is an outlier by Rudman et al."""

    ratio: Annotated[float, Field(gt=0), NoBoolean] = 5.0
    """The dimension's variance must be at least this multiple of the mean variance of the layer's dimensions."""


class HeadThresholds(Thresholds):
    """When an attention head is an outlier, and when a scheme damages it."""

    relative_peak: Annotated[float, Field(gt=0), NoBoolean] = 20.0
    """An outlier: max abs(z_h) over the layer's rms(z), at or above this."""
    damaged_sqnr_db: Annotated[float, Field(gt=0), NoBoolean] = 20.0
    """Damaged: sqnr_db of z_h in the scheme's own stream, below this."""

    @model_validator(mode="before")
    @classmethod
    def _without_prediction(cls, thresholds: object) -> object:
        """Drop `predicted_peak`, a key of older requests and reports: outlier heads are no longer predicted."""
        if not isinstance(thresholds, Mapping):
            return thresholds
        return {name: value for name, value in thresholds.items() if name != "predicted_peak"}


class VerdictLimits(Frozen):
    """Limits from which a scheme's effect on the predictions is noticeable, or severe.

    The defaults are conventions. Eight-bit weights usually stay under 0.01 nats and good four-bit ones lie between
    0.01 and 0.1; a perplexity 5 % higher is about half of what separates neighboring sizes of a model family.
    """

    kl_noticeable: Annotated[float, Field(gt=0, allow_inf_nan=False), NoBoolean] = 0.01
    """Mean KL divergence, nats per token."""
    kl_severe: Annotated[float, Field(gt=0, allow_inf_nan=False), NoBoolean] = 0.1
    """Must be larger than `kl_noticeable`."""
    ratio_noticeable: Annotated[float, Field(ge=1, allow_inf_nan=False), NoBoolean] = 1.01
    """Perplexity over the reference's, which counts once its 95% interval excludes 1."""
    ratio_severe: Annotated[float, Field(ge=1, allow_inf_nan=False), NoBoolean] = 1.05
    """Must be larger than `ratio_noticeable`."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        for measure in ("kl", "ratio"):
            noticeable, severe = getattr(self, f"{measure}_noticeable"), getattr(self, f"{measure}_severe")
            if not noticeable < severe:
                raise ValueError(
                    f"{measure}_severe ({severe:g}) must be larger than {measure}_noticeable ({noticeable:g})"
                )
        return self
