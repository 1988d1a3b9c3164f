"""The plain word on a scheme: negligible, noticeable or severe. Page, summary and command line take it from here.

Two measures are held to limits, and the worse of them gives the word. The mean KL divergence sees every change of
the prediction and is measured closely, so its value counts. Perplexity is noisier: a rise counts only as far as
the 95 % interval of its ratio shows it, that is, by the interval's lower end. Where an interval's upper end lies in
a worse class than the word, the text was too short to rule that class out.
"""

from enum import IntEnum
from typing import NamedTuple

from service.contracts.report import Estimate, KlDivergence
from service.contracts.request import VerdictLimits

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
    """Where the classes of one measure begin."""

    noticeable: float
    """From here on the effect is noticeable."""
    severe: float
    """From here on it is severe."""

    def level(self, value: float) -> Level:
        """Return the class of `value`; NaN is severe."""
        if value < self.noticeable:
            return Level.negligible
        return Level.noticeable if value < self.severe else Level.severe


class Judgement(NamedTuple):
    """The word, and how it came about."""

    level: Level
    by_kl: Level | None
    """What the mean KL divergence says by itself; None where there is none."""
    by_ratio: Level | None
    """What the perplexity ratio says by itself; None where there is none."""
    possible: Level
    """The worst class that the 95 % intervals reach; `level` where none is worse."""


def kl_limit(limits: VerdictLimits) -> Limit:
    """Return the limit of the mean KL divergence, nats per token."""
    return Limit(limits.kl_noticeable, limits.kl_severe)


def ratio_limit(limits: VerdictLimits) -> Limit:
    """Return the limit of the perplexity's ratio to the reference."""
    return Limit(limits.ratio_noticeable, limits.ratio_severe)


def interval(estimate: Estimate) -> tuple[float, float]:
    """Return the 95 % interval of `estimate`; the value twice where it has no standard error."""
    reach = INTERVAL * (estimate.standard_error or 0.0)
    return estimate.value - reach, estimate.value + reach


def mean_kl(kl: KlDivergence | None) -> Estimate | None:
    """Return the mean KL divergence with its standard error; None where no position has a finite prediction."""
    return Estimate(value=kl.mean, standard_error=kl.standard_error) if kl else None


def judge(kl: Estimate | None, ratio: Estimate | None, limits: VerdictLimits, *, reference_predicts: bool) -> Judgement:
    """Return the word on a scheme.

    Args:
        kl: Its mean KL divergence from the reference; None if no position has a finite prediction under both.
        ratio: Its perplexity over the reference's; None likewise.
        limits: Where the classes begin.
        reference_predicts: The reference has a finite prediction somewhere. A scheme that leaves none of them is
            severe; if there was none to begin with, it cannot be judged.
    """
    if kl is None or ratio is None:
        level = Level.severe if reference_predicts else Level.unjudged
        return Judgement(level, None, None, level)
    low, high = interval(ratio)
    by_kl, by_ratio = kl_limit(limits).level(kl.value), ratio_limit(limits).level(low)
    level = max(by_kl, by_ratio)
    reached = max(kl_limit(limits).level(interval(kl)[1]), ratio_limit(limits).level(high))
    return Judgement(level, by_kl, by_ratio, max(level, reached))
