"""Judges the effect of a scheme on the predictions: negligible, noticeable or severe, with the reasons.

Two measures are compared with limits, and the worse one decides. The mean KL divergence responds to every change of
the predictions and has a narrow interval. The perplexity ratio is noisier: it counts once its 95% interval excludes 1.
If an interval reaches into another level, more text is needed to exclude that level. If the figures cannot show the
effect of quantization, the level is `unjudged`.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from service.contracts.report import Estimate, Fp16ColumnFacts, KlDivergence, Report, SchemeFacts, SchemeVerdict
from service.contracts.thresholds import VerdictLimits
from service.evaluation.numbers import claim, short_percent

SHARE_STATED_BELOW = 0.9
"""If a scheme quantizes a smaller share of the layers' weights, the reasons state the share."""


class Level(IntEnum):
    """The effect of a scheme on the model's predictions, from least to most."""

    negligible = 0
    noticeable = 1
    severe = 2
    unjudged = 3
    """The figures do not determine it; `Grounds` says why."""


class Grounds(NamedTuple):
    """Conditions under which the figures determine a level."""

    perplexity: float | None
    """The reference's; None if no position has a finite prediction."""
    vocabulary: int
    """Tokens that it chooses among."""
    quantised_share: float | None
    """Share of the decoder layers' weights that the scheme quantized; None in earlier reports."""

    def lacking(self) -> str | None:
        """Return in a sentence why the figures do not determine a level; None where they do."""
        if self.perplexity is None:
            return "The reference has no finite prediction at any position."
        if self.quantised_share == 0:
            return "The scheme quantizes none of the decoder layers' weights, so these figures say nothing about it."
        if self.perplexity >= self.vocabulary * (1 - _ROUNDING):
            return (
                f"The reference predicts this text no better than a random guess among its {self.vocabulary:,} tokens, "
                "so these figures cannot show the effect of quantization."
            )
        return None


_ROUNDING = 1e-9
"""Relative: a guess among equals gives the number of tokens up to this."""


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


class Judgment(NamedTuple):
    """The level of a scheme, and the levels that its two measures give."""

    level: Level
    by_kl: Level | None
    """What the mean KL divergence says by itself; None where there is none."""
    by_ratio: Level | None
    """What the perplexity ratio says by itself; None where there is none."""
    possible: Level
    """The worst class that the 95% intervals reach; `level` where none is worse."""
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
    """Return the 95% interval of `estimate`; the value twice where it has none."""
    return estimate.interval or (estimate.value, estimate.value)


def mean_kl(kl: KlDivergence | None) -> Estimate | None:
    """Return the mean KL divergence and how sure it is; None where no position has a finite prediction."""
    if kl is None:
        return None
    return Estimate(
        value=kl.mean,
        standard_error=kl.standard_error,
        interval=kl.interval,
        degrees_of_freedom=kl.degrees_of_freedom,
        units=kl.units,
        unit_count=kl.unit_count,
    )


def risen(ratio: Estimate) -> bool:
    """Whether the 95% interval of a perplexity ratio excludes that nothing rose; NaN excludes it."""
    return not interval(ratio)[0] <= 1


def judge(kl: Estimate | None, ratio: Estimate | None, limits: VerdictLimits, grounds: Grounds) -> Judgment:
    """Return the level of a scheme, and how certain it is.

    Args:
        kl: Its mean KL divergence from the reference; None if no position has a finite prediction under both.
        ratio: Its perplexity over the reference's; None likewise.
        limits: Where the classes begin.
        grounds: Whether the figures determine a level. A scheme without finite predictions is severe where the
            reference has some.
    """
    destroyed = grounds.perplexity is not None and (kl is None or ratio is None)
    if destroyed or grounds.lacking() or kl is None or ratio is None:
        level = Level.severe if destroyed else Level.unjudged
        return Judgment(level, None, None, level, level)
    by_kl = kl_limit(limits).level(kl.value)
    by_ratio = ratio_limit(limits).level(ratio.value) if risen(ratio) else Level.negligible
    level = max(by_kl, by_ratio)
    ends = zip(interval(kl), interval(ratio), strict=True)
    mildest, worst = (max(kl_limit(limits).level(a), ratio_limit(limits).level(b)) for a, b in ends)
    return Judgment(level, by_kl, by_ratio, max(level, worst), min(level, mildest))


def with_verdicts(report: Report) -> Report:
    """Return the report with a verdict on every scheme; those that it has already stay."""
    schemes = {
        name: facts if facts.verdict else facts.model_copy(update={"verdict": verdict_of(report, facts)})
        for name, facts in report.schemes.items()
    }
    return report.model_copy(update={"schemes": schemes})


def verdict_of(report: Report, scheme: SchemeFacts) -> SchemeVerdict:
    """Return the verdict on a scheme of `report` as a record, by the report's own limits."""
    perplexity = report.reference.perplexity
    grounds = Grounds(perplexity.value if perplexity else None, report.model.vocabulary, scheme.quantised_share)
    verdict = recorded(mean_kl(scheme.kl_divergence), scheme.perplexity_ratio, report.analysis.verdict, grounds)
    if scheme.fp16_columns is None:
        return verdict
    return verdict.model_copy(update={"reasons": (*verdict.reasons, fp16_column_sentence(scheme.fp16_columns))})


def fp16_column_sentence(columns: Fp16ColumnFacts) -> str:
    """Return how many input columns int8 computes in 16 bits, as a sentence."""
    most = columns.largest
    if most.prefill == 0:
        return "No input column is computed in 16 bits."
    return (
        f"On average, {short_percent(columns.prefill)} of the input columns are computed in 16 bits when a call is one "
        f"sequence, and {short_percent(columns.decode)} when it is one token. The largest share is "
        f"{short_percent(most.prefill)}, at layer {most.layer} {most.component}."
    )


def recorded(kl: Estimate | None, ratio: Estimate | None, limits: VerdictLimits, grounds: Grounds) -> SchemeVerdict:
    """Return the judgment of `judge` as a record, with its reasons in sentences."""
    judged = judge(kl, ratio, limits, grounds)
    not_ruled_out = tuple(level.name for level in judged.doubtful)
    return SchemeVerdict.model_validate(
        {
            "level": judged.level.name,
            "reasons": tuple(_reasons(judged, kl, ratio, limits, grounds)),
            "not_ruled_out": not_ruled_out,
        }
    )


def _reasons(
    judged: Judgment, kl: Estimate | None, ratio: Estimate | None, limits: VerdictLimits, grounds: Grounds
) -> Iterator[str]:
    if judged.by_kl is None or judged.by_ratio is None or kl is None or ratio is None:
        because = grounds.lacking() if judged.level is Level.unjudged else None
        yield because or "The quantized model has no finite prediction at any position."
        return
    of_kl, of_ratio = kl_limit(limits), ratio_limit(limits)
    shown = claim(kl, "nats", (of_kl.noticeable, of_kl.severe))
    yield f"Mean KL divergence is {shown}: {judged.by_kl.name} ({_class_bounds(of_kl, judged.by_kl)})."
    if risen(ratio) or ratio.value < of_ratio.noticeable:
        shown = claim(ratio, limits=(of_ratio.noticeable, of_ratio.severe))
        yield f"Perplexity ratio is {shown}: {judged.by_ratio.name} ({_class_bounds(of_ratio, judged.by_ratio)})."
    else:
        yield f"Perplexity ratio is {claim(ratio)}: no significant increase, because the interval includes 1."
    if kl.interval is None:
        yield "These values have no 95% interval, so other levels are possible."
    share = grounds.quantised_share
    if share is not None and share < SHARE_STATED_BELOW:
        yield f"Only {share_in_words(share)} of the decoder layers' weights are quantized."


def share_in_words(share: float) -> str:
    """Return the share of the weights that a scheme quantizes, which is not 0."""
    return f"{share:.1%}" if share >= 0.001 else "0.1% or less"


def _class_bounds(limit: Limit, level: Level) -> str:
    if level is Level.negligible:
        return f"under {limit.noticeable:g}"
    if level is Level.noticeable:
        return f"{limit.noticeable:g} to {limit.severe:g}"
    return f"{limit.severe:g} or more"
