"""The verdict on a scheme in sentences: the word, its grounds, and what the text was too short to settle."""

from typing import NamedTuple

from service.contracts.report import Report, SchemeFacts
from service.contracts.request import VerdictLimits
from service.contracts.verdict import MOST, Level, Limit, kl_limit, ratio_limit, share_in_words, verdict_of

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
    """The mildest and the worst class that the 95% intervals reach, where they are others than `level`."""
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
            "its value, once the 95% interval excludes 1",
            ratio_limit(limits),
        ),
    )


def limits_in_words(limits: VerdictLimits) -> str:
    """Return the limits as a sentence."""
    kl, ratio = kl_limit(limits), ratio_limit(limits)
    return (
        f"An effect is noticeable from a mean KL of {kl.noticeable:g} nats or a perplexity ratio of "
        f"{ratio.noticeable:g} on, and severe from {kl.severe:g} or {ratio.severe:g} on; the ratio counts once its "
        "95% interval excludes 1."
    )


def verdict(report: Report, scheme: SchemeFacts) -> Verdict:
    """Return the verdict on a scheme: the report's own, or where it has none, by its figures and limits."""
    found = scheme.verdict or verdict_of(report, scheme)
    doubtful = tuple(Level[name] for name in found.not_ruled_out)
    return Verdict(Level[found.level], doubtful, found.reasons, _unsettled(doubtful), _partial(scheme.quantised_share))


def _partial(share: float | None) -> str | None:
    if share is None or share >= MOST:
        return None
    return f"{f'only {share_in_words(share)}' if share else 'none'} of the layers' weights replaced"


def _unsettled(doubtful: tuple[Level, ...]) -> str | None:
    if not doubtful:
        return None
    names = " and ".join(level.name for level in doubtful)
    return f"The 95% intervals also allow {names}; rerun with more --sequences."
