"""The plain word on a scheme: negligible, noticeable or severe, and the limits behind it.

Two measures are held to limits, and the worse of them gives the word. The mean KL divergence sees every change of
the prediction and is measured closely, so its value counts. Perplexity is noisier: a rise counts only as far as
the 95 % interval of its ratio shows it, that is, by the interval's lower end. Where an interval's upper end lies in
a worse class than the word, the verdict says that the text was too short to rule that class out.

The limits are conventions. For orientation: eight-bit weights usually stay under 0.01 nats, good four-bit ones lie
between 0.01 and 0.1; a perplexity 5 % higher is about half of what separates neighbouring sizes of a model family.
"""

from enum import IntEnum
from typing import NamedTuple

from service.contracts.report import Estimate, ReferenceFacts, SchemeFacts
from workers.reporting.text import number

INTERVAL = 1.96
"""Standard errors to either side of a value in a 95 % interval."""


class Level(IntEnum):
    """What a scheme does to the model's predictions, from least to most."""

    negligible = 0
    noticeable = 1
    severe = 2
    unjudged = 3
    """The reference itself has no finite prediction, so that there is nothing to compare with."""


class Limit(NamedTuple):
    """A measure, and where its classes begin."""

    measure: str
    judged_by: str
    """Which figure is held to the limits."""
    noticeable: float
    """From here on the effect is noticeable."""
    severe: float
    """From here on it is severe."""

    def level(self, value: float) -> Level:
        """Return the class of `value`; NaN is severe."""
        if value < self.noticeable:
            return Level.negligible
        return Level.noticeable if value < self.severe else Level.severe


KL = Limit("mean KL divergence, nats per token", "its value", 0.01, 0.1)
PERPLEXITY_RATIO = Limit("perplexity ratio to the reference", "the lower end of its 95 % interval", 1.01, 1.05)
LIMITS = (KL, PERPLEXITY_RATIO)
LIMITED = (Level.negligible, Level.noticeable, Level.severe)
"""The classes between the limits, in order."""


class Verdict(NamedTuple):
    """The word, and its grounds in sentences."""

    level: Level
    reasons: tuple[str, ...]
    unsettled: str | None
    """Which worse class cannot be ruled out yet, and why; None when the word is settled."""


def interval(estimate: Estimate) -> tuple[float, float]:
    """Return the 95 % interval of `estimate`; the value twice where it has no standard error."""
    reach = INTERVAL * (estimate.standard_error or 0.0)
    return estimate.value - reach, estimate.value + reach


def mean_kl(scheme: SchemeFacts) -> Estimate | None:
    """Return the mean KL divergence with its standard error; None where no position has a finite prediction."""
    kl = scheme.kl_divergence
    return Estimate(value=kl.mean, standard_error=kl.standard_error) if kl else None


def judge(scheme: SchemeFacts, reference: ReferenceFacts) -> Verdict:
    """Return the verdict on `scheme`; a scheme that leaves no finite prediction is severe."""
    kl, ratio = mean_kl(scheme), scheme.perplexity_ratio
    if kl and ratio:
        return _by_limits(kl, ratio)
    if reference.perplexity:
        return Verdict(Level.severe, ("No position has a finite prediction under the scheme.",), None)
    return Verdict(Level.unjudged, ("No position has a finite prediction under the reference.",), None)


def _by_limits(kl: Estimate, ratio: Estimate) -> Verdict:
    low, high = interval(ratio)
    by_kl, by_ratio = KL.level(kl.value), PERPLEXITY_RATIO.level(low)
    level = max(by_kl, by_ratio)
    reasons = (
        f"Mean KL of {number(kl.value)} nats is {by_kl.name}: {_class_bounds(KL, by_kl)}.",
        f"Perplexity ratio of {number(ratio.value, 4)}, at least {number(low, 4)}, is "
        f"{by_ratio.name}: {_class_bounds(PERPLEXITY_RATIO, by_ratio)}.",
    )
    worst = max(KL.level(interval(kl)[1]), PERPLEXITY_RATIO.level(high))
    unsettled = None
    if worst > level:
        unsettled = (
            f"{worst.name.capitalize()} is not ruled out: the 95 % intervals reach a mean KL of "
            f"{number(interval(kl)[1])} and a perplexity ratio of {number(high, 4)}. "
            "More calibration text would settle it."
        )
    return Verdict(level, reasons, unsettled)


def _class_bounds(limit: Limit, level: Level) -> str:
    if level is Level.negligible:
        return f"under {limit.noticeable:g}"
    if level is Level.noticeable:
        return f"from {limit.noticeable:g} to {limit.severe:g}"
    return f"{limit.severe:g} or more"
