"""Tests how far a mean over token positions lies beyond its limit.

A limit `x <= baseline * c` is tested on the positions that both reports scored, each position of the one against the
same of the other: the mean of x - c b, with its error by sequence (`service.evaluation.uncertainty`). A bound without
a baseline is tested on the report's own positions: the mean of x - bound. Perplexities and their ratios are means of
logarithms, so that log c and log bound are taken off; a root mean square is tested by squares. A limit `>=` is the
same with the sign turned. Reports of other texts share no sequence and are never compared with each other.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from service.audits.figures import Figure
from service.audits.limits import Limit
from service.comparison.comparable_report import ComparableReport
from service.comparison.predictions import ROUNDING, Paired, pairs
from service.contracts.report import Estimate
from service.evaluation.scored import COLUMNS, Position, scored_sequences
from service.evaluation.uncertainty import mean, upper_tail


class PositionMean(NamedTuple):
    """How a figure follows from a mean over positions."""

    of: Callable[[Position], float]
    """What is averaged."""
    scale: Literal["plain", "log", "square"] = "plain"
    """`plain`: the figure is the mean. `log`: exp of the mean. `square`: the root of the mean square."""

    def bounded(self, bound: float) -> float:
        """Return what the mean is held to where the figure is held to `bound`."""
        if self.scale == "log":
            return math.log(bound)
        return bound * bound if self.scale == "square" else bound

    def at(self, position: Position) -> float:
        """Return what a position adds to the mean."""
        value = self.of(position)
        return value * value if self.scale == "square" else value


def _delta_p(at: Position) -> float:
    return math.exp(-at.nll) - math.exp(-at.nll_reference)


_REFERENCE = "reference.perplexity.value"
_MEANS = {
    "kl_divergence.mean": PositionMean(lambda at: at.kl),
    "same_top_token.value": PositionMean(lambda at: at.same_top),
    "perplexity_ratio.value": PositionMean(lambda at: at.log_ratio, "log"),
    "perplexity.value": PositionMean(lambda at: at.nll, "log"),
    "delta_p.mean": PositionMean(_delta_p),
    "delta_p.rms": PositionMean(_delta_p, "square"),
}


def position_mean(figure: Figure) -> PositionMean | None:
    """Return how a figure follows from a mean over positions; None for one that does not."""
    if figure.path == _REFERENCE:
        return PositionMean(lambda at: at.nll_reference, "log")
    return _MEANS.get(figure.of_scheme)


class Evidence:
    """The scored positions of a report and of its baseline, read once for all limits."""

    def __init__(self, candidate: ComparableReport, baseline: ComparableReport | None) -> None:
        self.candidate = candidate
        self.baseline = baseline
        self._own: dict[str, Sequence[Sequence[Position]]] = {}
        self._paired: dict[str, Paired] = {}

    def own(self, scheme: str) -> Sequence[Sequence[Position]]:
        """Return the candidate's scored positions under a scheme, by sequence."""
        if scheme not in self._own:
            rows = self.candidate.read("tokens", COLUMNS)
            listed = [] if rows is None else scored_sequences(rows, scheme)
            self._own[scheme] = [list(one.positions.values()) for one in listed if one.positions]
        return self._own[scheme]

    def paired(self, scheme: str) -> Paired:
        """Return the positions that candidate and baseline both scored under a scheme, by sequence."""
        if scheme not in self._paired:
            self._paired[scheme] = pairs(self.baseline, self.candidate, scheme, scheme) if self.baseline else ()
        return self._paired[scheme]

    def scheme_for(self, figure: Figure) -> str | None:
        """Return the scheme under whose rows the figure's positions stand: any for the reference's; None if none."""
        sides = [side for side in (self.candidate, self.baseline) if side is not None]
        shared = [name for name in self.candidate.report.schemes if all(name in side.report.schemes for side in sides)]
        return figure.scheme if figure.scheme else next(iter(shared), None)

    def excess(self, limit: Limit) -> Estimate | None:
        """Return how far a mean over positions lies beyond its limit; None where no position can show it.

        The limit's figure must be one that `position_mean` knows.
        """
        of, scheme = position_mean(limit.figure), self.scheme_for(limit.figure)
        if of is None or scheme is None:
            return None
        if limit.against_baseline:
            return paired_excess(of, self.paired(scheme), limit.bound, limit.sign)
        return own_excess(of, self.own(scheme), limit.bound, limit.sign)


def paired_excess(of: PositionMean, paired: Paired, factor: float, sign: int) -> Estimate | None:
    """Return the mean of sign * (x - factor * b) over the pairs, on the figure's scale; None without a pair."""
    if not paired:
        return None
    shift, times = (math.log(factor), 1.0) if of.scale == "log" else (0.0, of.bounded(factor))

    def beyond(before: float, after: float) -> float:
        same = abs(after - before) <= ROUNDING
        return sign * ((before if same else after) - times * before - shift)

    return mean([[beyond(of.at(pair.before), of.at(pair.after)) for pair in sequence] for sequence in paired])


def own_excess(of: PositionMean, own: Sequence[Sequence[Position]], bound: float, sign: int) -> Estimate | None:
    """Return the mean of sign * (x - bound) over the positions, on the figure's scale; None without a position."""
    if not own:
        return None
    limit = of.bounded(bound)
    return mean([[sign * (of.at(at) - limit) for at in sequence] for sequence in own])


def p_value(excess: Estimate) -> float | None:
    """Return the one-sided p-value of an excess, under the limit just holding; None without a standard error."""
    if excess.standard_error is None or excess.degrees_of_freedom is None:
        return None
    if excess.standard_error == 0:
        return 0.0 if excess.value > 0 else 1.0
    return upper_tail(excess.value / excess.standard_error, excess.degrees_of_freedom)


def holm(p_values: Sequence[float], alpha: float) -> list[tuple[float, bool]]:
    """Return for each p-value the level that it is held to by Holm's method, and whether it is beyond chance.

    The smallest of m is held to alpha / m, the next to alpha / (m - 1) and so on; from the first that misses its level
    on, none is beyond chance.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    results = [(alpha, False)] * len(p_values)
    missed = False
    for rank, place in enumerate(order):
        level = alpha / (len(p_values) - rank)
        missed = missed or p_values[place] > level
        results[place] = (level, not missed)
    return results
