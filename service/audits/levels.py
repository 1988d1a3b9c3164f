"""Tests whether a scheme's verdict is worse than allowed, beyond the noise of its figures.

A verdict is worse than a level where its mean KL divergence, or its perplexity ratio, reaches the limit at which the
next level begins. Each of the two is tested against that limit; where the level is the baseline's, it must besides
be clearly larger than the baseline's own, position by position, so that two models on either side of the limit within
their noise do not differ. Either of the two is enough, so twice the smaller probability counts.
"""

from operator import itemgetter
from typing import NamedTuple

from service.audits.evidence import Evidence, own_excess, p_value, paired_excess, position_mean
from service.audits.figures import Figure
from service.comparison.comparable_report import ComparableReport
from service.contracts.report import Estimate
from service.evaluation.verdict import Grounds, Judgment, Level, judge, kl_limit, mean_kl, ratio_limit

MEASURES = ("kl_divergence.mean", "perplexity_ratio.value")


class LevelTest(NamedTuple):
    """The measure with the smallest p-value for a worse level."""

    excess: Estimate | None
    """Of that measure over the limit at which the next level begins."""
    p_value: float | None
    """None where the positions are too few."""


def level_of(side: ComparableReport, scheme: str, limits_of: ComparableReport) -> Judgment:
    """Return the verdict on a scheme in a report, by the limits of another report's settings."""
    report = side.report
    facts, perplexity = report.schemes[scheme], report.reference.perplexity
    grounds = Grounds(perplexity.value if perplexity else None, report.model.vocabulary, facts.quantised_share)
    return judge(mean_kl(facts.kl_divergence), facts.perplexity_ratio, limits_of.report.analysis.verdict, grounds)


def level_test(evidence: Evidence, scheme: str, allowed: Level, *, against_baseline: bool) -> LevelTest:
    """Return how clearly a scheme's verdict is worse than `allowed`, which is not the worst level."""
    limits = evidence.candidate.report.analysis.verdict
    known = []
    for name, classes in zip(MEASURES, (kl_limit(limits), ratio_limit(limits)), strict=True):
        of = position_mean(Figure(f"schemes.{scheme}.{name}", "number"))
        bound = classes.noticeable if allowed is Level.negligible else classes.severe
        excess = None if of is None else own_excess(of, evidence.own(scheme), bound, 1)
        probabilities = [_p_value(excess)]
        if of is not None and against_baseline:
            probabilities.append(_p_value(paired_excess(of, evidence.paired(scheme), 1.0, 1)))
        if None not in probabilities:
            known.append((max(p for p in probabilities if p is not None), excess))
    if not known:
        return LevelTest(None, None)
    p, excess = min(known, key=itemgetter(0))
    return LevelTest(excess, min(1.0, len(MEASURES) * p))


def _p_value(excess: Estimate | None) -> float | None:
    return None if excess is None else p_value(excess)
