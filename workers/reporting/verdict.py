"""The verdict on a scheme for a reader: the level, its reasons, and which other levels are possible."""

from typing import NamedTuple

from service.contracts.report import Report, SchemeFacts
from service.contracts.thresholds import VerdictLimits
from service.evaluation.verdict import SHARE_STATED_BELOW, Level, kl_limit, ratio_limit, share_in_words, verdict_of


class Verdict(NamedTuple):
    """The level, and its reasons in sentences."""

    level: Level
    doubtful: tuple[Level, ...]
    """The mildest and the worst level that the 95% intervals reach, if they differ from `level`."""
    reasons: tuple[str, ...]
    unsettled: str | None
    """Which other levels the intervals allow, and what to do; None if they allow none."""
    partial: str | None
    """The share of the weights that the scheme quantizes, in a few words; None if it is most of them."""


def limits_in_words(limits: VerdictLimits) -> str:
    """Return the limits of the levels in sentences."""
    kl, ratio = kl_limit(limits), ratio_limit(limits)
    return (
        f"Noticeable begins at a mean KL divergence of {kl.noticeable:g} nats per token or a perplexity ratio of "
        f"{ratio.noticeable:g}; severe begins at {kl.severe:g} nats or {ratio.severe:g}. The worse measure decides. "
        "The ratio counts only if its 95% interval excludes 1."
    )


def verdict(report: Report, scheme: SchemeFacts) -> Verdict:
    """Return the verdict on a scheme: the report's own, or for earlier reports, one by its figures and limits."""
    recorded = scheme.verdict or verdict_of(report, scheme)
    doubtful = tuple(Level[name] for name in recorded.not_ruled_out)
    exhausted = report.calibration.sequences < report.analysis.sequences
    unsettled = _unsettled(doubtful, exhausted=exhausted)
    return Verdict(Level[recorded.level], doubtful, recorded.reasons, unsettled, _partial(scheme.quantised_share))


def _partial(share: float | None) -> str | None:
    if share is None or share >= SHARE_STATED_BELOW:
        return None
    return f"{f'only {share_in_words(share)}' if share else 'none'} of the layers' weights quantized"


def _unsettled(doubtful: tuple[Level, ...], *, exhausted: bool) -> str | None:
    if not doubtful:
        return None
    more = "a longer text (--calibration FILE)" if exhausted else "more --sequences"
    return f"The 95% intervals also allow {allowed(doubtful)}; rerun with {more}."


def allowed(doubtful: tuple[Level, ...]) -> str:
    """Return the names of levels as a sentence has them: `negligible and severe`."""
    return " and ".join(level.name for level in doubtful)
