"""The verdict on a scheme in sentences: the word, its grounds, and what the text was too short to settle."""

from typing import NamedTuple

from service.contracts.report import Estimate, Report, SchemeFacts
from service.contracts.request import VerdictLimits
from service.contracts.verdict import (
    MOST,
    Grounds,
    Judgement,
    Level,
    Limit,
    interval,
    judge,
    kl_limit,
    mean_kl,
    ratio_limit,
    risen,
)
from workers.reporting.text import number, percent

LIMITED = (Level.negligible, Level.noticeable, Level.severe)
"""The classes between the limits, in order."""


class PrintedLimit(NamedTuple):
    """A row of the table of limits."""

    measure: str
    setting: str
    """Which settings of the job hold the limits."""
    judged_by: str
    """Which figure is held to the limits."""
    limit: Limit


class Verdict(NamedTuple):
    """The word, and its grounds in sentences."""

    level: Level
    doubtful: tuple[Level, ...]
    """The mildest and the worst class that the 95 % intervals reach, where they are others than `level`."""
    reasons: tuple[str, ...]
    unsettled: str | None
    """Which other classes cannot be ruled out yet, and why; None when the word is settled."""
    partial: str | None
    """How little of the layers the scheme replaces, in a few words; None where it is most of them."""


def printed_limits(limits: VerdictLimits) -> tuple[PrintedLimit, ...]:
    """Return the limits as the page prints them."""
    return (
        PrintedLimit("Mean KL divergence, nats per token", "verdict.kl_*", "its value", kl_limit(limits)),
        PrintedLimit(
            "Perplexity over the reference's",
            "verdict.ratio_*",
            "its value, once the 95 % interval excludes 1",
            ratio_limit(limits),
        ),
    )


def limits_in_words(limits: VerdictLimits) -> str:
    """Return the limits as a sentence."""
    kl, ratio = kl_limit(limits), ratio_limit(limits)
    return (
        f"An effect is noticeable from a mean KL of {kl.noticeable:g} nats or a perplexity ratio of "
        f"{ratio.noticeable:g} on, and severe from {kl.severe:g} or {ratio.severe:g} on; the ratio counts once its "
        "95 % interval excludes 1."
    )


def verdict(report: Report, scheme: SchemeFacts) -> Verdict:
    """Return the verdict on a scheme of `report`, by the report's own limits."""
    limits, perplexity = report.analysis.verdict, report.reference.perplexity
    grounds = Grounds(perplexity.value if perplexity else None, report.model.vocabulary, scheme.quantised_share)
    kl, ratio = mean_kl(scheme.kl_divergence), scheme.perplexity_ratio
    judged = judge(kl, ratio, limits, grounds)
    share, doubtful = scheme.quantised_share, judged.doubtful
    if kl is None or ratio is None or judged.level is Level.unjudged:
        reason = grounds.lacking() if judged.level is Level.unjudged else None
        reason = reason or "No position has a finite prediction under the scheme."
        return Verdict(judged.level, doubtful, (reason,), None, _partial(share))
    reasons = _reasons(judged, limits, kl, ratio)
    if share is not None and share < MOST:
        reasons += (f"It replaces {_share(share)} of the layers' weights; the figures show the effect of these alone.",)
    return Verdict(judged.level, doubtful, reasons, _unsettled(doubtful, kl, ratio), _partial(share))


def _partial(share: float | None) -> str | None:
    if share is None or share >= MOST:
        return None
    return f"{f'only {_share(share)}' if share else 'none'} of the layers' weights replaced"


def _share(share: float) -> str:
    return percent(share) if share >= 0.001 else "0.1 % or less"


def _reasons(judged: Judgement, limits: VerdictLimits, kl: Estimate, ratio: Estimate) -> tuple[str, ...]:
    by_kl, by_ratio = judged.by_kl or Level.negligible, judged.by_ratio or Level.negligible
    told = f"Perplexity ratio of {number(ratio.value, 5)}"
    if risen(ratio) or ratio.value < ratio_limit(limits).noticeable:
        told += f" is {by_ratio.name}: {_class_bounds(ratio_limit(limits), by_ratio)}."
    else:
        told += f" does not show that it rose at all: its 95 % interval begins at {number(interval(ratio)[0], 5)}."
    return (f"Mean KL of {number(kl.value)} nats is {by_kl.name}: {_class_bounds(kl_limit(limits), by_kl)}.", told)


def _unsettled(doubtful: tuple[Level, ...], kl: Estimate, ratio: Estimate) -> str | None:
    if not doubtful:
        return None
    (kl_low, kl_high), (ratio_low, ratio_high) = interval(kl), interval(ratio)
    names = " and ".join(level.name for level in doubtful).capitalize()
    return (
        f"{names} {'is' if len(doubtful) == 1 else 'are'} not ruled out: the 95 % intervals are a mean KL of "
        f"{number(kl_low)} to {number(kl_high)} and a perplexity ratio of {number(ratio_low, 5)} to "
        f"{number(ratio_high, 5)}. More calibration text would settle it."
    )


def _class_bounds(limit: Limit, level: Level) -> str:
    if level is Level.negligible:
        return f"under {limit.noticeable:g}"
    if level is Level.noticeable:
        return f"from {limit.noticeable:g} to {limit.severe:g}"
    return f"{limit.severe:g} or more"
