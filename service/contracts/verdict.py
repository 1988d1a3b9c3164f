"""The plain word on a scheme: negligible, noticeable or severe. Page, summary and command line take it from here.

Two measures are held to limits, and the worse of them gives the word. The mean KL divergence sees every change of
the prediction and is measured closely. Perplexity is noisier: its ratio counts once the 95 % interval excludes that
nothing rose at all. Where an interval's end lies in another class than the word, the text was too short to rule that
class out. Where the figures cannot show what the scheme does to the model, there is no word.
"""

from enum import IntEnum
from typing import NamedTuple

from service.contracts.report import Estimate, KlDivergence
from service.contracts.request import VerdictLimits

INTERVAL = 1.96
"""Standard errors to either side of a value in a 95 % interval."""

MOST = 0.9
"""Where a scheme replaces a smaller share of the layers' weights, its reader is told."""


class Level(IntEnum):
    """What a scheme does to the model's predictions, from least to most."""

    negligible = 0
    noticeable = 1
    severe = 2
    unjudged = 3
    """The figures cannot tell; `Grounds` says why."""


class Grounds(NamedTuple):
    """What must hold for the figures to say anything."""

    perplexity: float | None
    """The reference's; None if no position has a finite prediction."""
    vocabulary: int
    """Tokens that it chooses among."""
    quantised_share: float | None
    """Share of the decoder layers' weights that the scheme replaced; None where a report does not tell."""

    def lacking(self) -> str | None:
        """Say in a sentence why the figures cannot tell; None where they can."""
        if self.perplexity is None:
            return "No position has a finite prediction under the reference."
        if self.quantised_share == 0:
            return "The scheme replaces none of the decoder layers' weights: these figures say nothing about it."
        if self.perplexity >= self.vocabulary:
            return (
                f"The reference predicts the text no better than a guess among its {self.vocabulary:,} tokens, so "
                "these figures do not show what the scheme does to a model that knows the text."
            )
        return None


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
    mildest: Level
    """The mildest class that they reach; `level` where none is milder."""

    @property
    def doubtful(self) -> tuple[Level, ...]:
        """The mildest and the worst class that the intervals reach, where they are others than `level`."""
        return tuple(level for level in (self.mildest, self.possible) if level is not self.level)


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


def risen(ratio: Estimate) -> bool:
    """Whether the 95 % interval of a perplexity ratio excludes that nothing rose; NaN excludes it."""
    return not interval(ratio)[0] <= 1


def judge(kl: Estimate | None, ratio: Estimate | None, limits: VerdictLimits, grounds: Grounds) -> Judgement:
    """Return the word on a scheme.

    Args:
        kl: Its mean KL divergence from the reference; None if no position has a finite prediction under both.
        ratio: Its perplexity over the reference's; None likewise.
        limits: Where the classes begin.
        grounds: Whether the figures can tell. A scheme that leaves none of the reference's predictions is severe.
    """
    destroyed = grounds.perplexity is not None and (kl is None or ratio is None)
    if destroyed or grounds.lacking() or kl is None or ratio is None:
        level = Level.severe if destroyed else Level.unjudged
        return Judgement(level, None, None, level, level)
    by_kl = kl_limit(limits).level(kl.value)
    by_ratio = ratio_limit(limits).level(ratio.value) if risen(ratio) else Level.negligible
    level = max(by_kl, by_ratio)
    ends = zip(interval(kl), interval(ratio), strict=True)
    mildest, worst = (max(kl_limit(limits).level(a), ratio_limit(limits).level(b)) for a, b in ends)
    return Judgement(level, by_kl, by_ratio, max(level, worst), min(level, mildest))
