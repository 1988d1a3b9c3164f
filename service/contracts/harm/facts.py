"""The part of a report on harm: what replacing modules, layers and dimensions alone does to the predictions."""

from typing import Literal

from service.contracts.record import Record


class HarmFigure(Record):
    """A mean over scored positions, or a share, with its standard error by sequence."""

    value: float
    standard_error: float | None
    """None where the sequences are too few."""


class ModuleHarm(Record):
    """One of the most harmful modules or, where only layers were measured, layers: a row of the table `harm`."""

    layer: int
    component: str
    module: str
    harm: float | None
    standard_error: float | None
    estimated_harm: float | None
    noise_floor: float | None


class DimensionHarm(Record):
    """One of the dimensions with the largest shares that Holm's method leaves: a row of `dimension_harm`."""

    dimension: int
    share: float
    standard_error: float | None
    definitions: tuple[str, ...]


class DimensionShares(Record):
    """How the estimated harm of a weight-only scheme divides among what its modules read."""

    flagged: HarmFigure
    """Dimensions of the residual stream that a definition of outliers flags."""
    flagged_dimensions: int
    """How many these are."""
    unflagged: HarmFigure
    """The other dimensions of the residual stream."""
    other_inputs: HarmFigure
    """Modules that do not read the residual stream."""
    dimensions: tuple[DimensionHarm, ...]
    """At most ten, the largest shares first; none where no single dimension is significant."""


class EstimateCheck(Record):
    """How estimated harms agree with measured ones, less the noise floor."""

    of: Literal["modules", "layers"]
    swaps: int
    """How many have both."""
    spearman: float | None
    """Rank correlation; None with fewer than 3, or where either side is constant."""
    measured_over_estimated: float | None
    """Sum of the measured over the sum of the estimated ones; of those drawn at random, where there are any. None
    where the estimates are all 0."""


class HarmFacts(Record):
    """The harm of one scheme."""

    whole: HarmFigure | None
    """Measured mean KL divergence of the whole scheme, nats; None if no position has a finite prediction."""
    predicted_whole: HarmFigure | None
    """The same as the gradients predict it, with interactions; None without an estimate."""
    scale_factor: float | None
    """`whole` over `predicted_whole`: what predictions are multiplied by."""
    additivity: float | None
    """`whole` over the sum of the parts' harms, each less its noise floor and at least 0."""
    additivity_of: Literal["modules", "layers", "estimates"] | None
    """The parts: every module or every layer, measured; or the modules' estimates, scaled by `measured_over_estimated`
    of those that were measured too."""
    noise_floor: tuple[float | None, ...] | None
    """By layer: what any change of its output costs by rounding alone, nats; None where no harm was measured."""
    check: EstimateCheck | None
    """None where nothing has both an estimate and a measurement."""
    modules: tuple[ModuleHarm, ...]
    """The ten most harmful, by the measured harm less its noise floor where there is one, else by the estimate."""
    dimensions: DimensionShares | None
    """None where it was not asked for, or the scheme also rounds inputs."""
    no_estimate: str | None = None
    """Why harm could not be estimated; None where it was, or was not asked for."""
