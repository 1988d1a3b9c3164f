"""Differences of the schemes' predictions between two reports, with 95% intervals.

A hard passage is hard in both reports that score it. So a difference is taken position by position on the sequences
that both scored, known by their token ids, and its error is by sequence, as everywhere. Different texts are never
compared: where no sequence is shared, a difference has no error, and nothing is better or worse. The difference of two
perplexities is linearized for its error: exp(mean d) moves by exp(mean d) times the mean's own change (the delta
method).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.comparison.comparable_report import ComparableReport
from service.contracts.comparison import Change
from service.contracts.report import Estimate, SchemeFacts
from service.evaluation.scored import COLUMNS, Position, ScoredSequence, scored_sequences
from service.evaluation.uncertainty import exp, mean, moved
from service.evaluation.verdict import mean_kl

ROUNDING = 1e-12
"""Nats up to which two figures of one position differ by rounding alone: sums over a vocabulary in double precision."""


class Pair(NamedTuple):
    """One position of a shared sequence in both reports."""

    before: Position
    after: Position


Paired = Sequence[Sequence[Pair]]
"""The positions that both reports score, by shared sequence."""


def pairs(baseline: ComparableReport, other: ComparableReport, before: str, after: str) -> Paired:
    """Return the positions that both reports score, under one scheme of each.

    A sequence is shared where its token ids are the same, whatever its number. One that a report has several times is
    shared as often as both have it. Sequences without a common scored position do not count.
    """
    left: dict[tuple[int, ...], list[ScoredSequence]] = {}
    for sequence in _sequences(other, after):
        left.setdefault(sequence.token_ids, []).append(sequence)
    pairs = []
    for sequence in _sequences(baseline, before):
        if same := left.get(sequence.token_ids):
            twin = same.pop(0).positions
            pairs.append([Pair(at, twin[place]) for place, at in sequence.positions.items() if place in twin])
    return [sequence for sequence in pairs if sequence]


def kl_change(before: SchemeFacts, after: SchemeFacts, paired: Paired) -> Change:
    """Return the change of the mean KL divergence."""
    return _change(mean_kl(before.kl_divergence), mean_kl(after.kl_divergence), paired, lambda at: at.kl)


def same_top_change(before: SchemeFacts, after: SchemeFacts, paired: Paired) -> Change:
    """Return the change of the share of positions with the same most likely token."""
    return _change(before.same_top_token, after.same_top_token, paired, lambda at: at.same_top)


def ratio_change(before: SchemeFacts, after: SchemeFacts, paired: Paired) -> Change:
    """Return the change of the perplexity's ratio to the reference's."""
    return _change(before.perplexity_ratio, after.perplexity_ratio, paired, lambda at: at.log_ratio, of_exp=True)


def reference_change(before: Estimate | None, after: Estimate | None, paired: Paired) -> Change:
    """Return the change of the reference's own perplexity."""
    plain = [side and Estimate(**side.model_dump(include=set(Estimate.model_fields))) for side in (before, after)]
    return _change(plain[0], plain[1], paired, lambda at: at.nll_reference, of_exp=True)


def _change(
    before: Estimate | None,
    after: Estimate | None,
    paired: Paired,
    figure: Callable[[Position], float],
    *,
    of_exp: bool = False,
) -> Change:
    """Return the change of the mean of `figure`, or of exp of that mean."""
    if before is None or after is None:
        return _unpaired(before, after, None)
    if not paired:
        return _unpaired(before, after, Estimate(value=after.value - before.value, standard_error=None))
    values = [[_figures(figure(pair.before), figure(pair.after)) for pair in sequence] for sequence in paired]
    difference = _of_exp(values) if of_exp else mean([[b - a for a, b in one] for one in values])
    interval = difference.interval
    return Change(
        baseline=before,
        other=after,
        difference=difference,
        paired=True,
        positions=sum(map(len, paired)),
        sequences=len(paired),
        clear=None if interval is None else not interval[0] <= 0 <= interval[1],
    )


def _unpaired(before: Estimate | None, after: Estimate | None, difference: Estimate | None) -> Change:
    return Change(baseline=before, other=after, difference=difference, paired=False, positions=None, clear=None)


def _figures(before: float, after: float) -> tuple[float, float]:
    """Return the two figures, as equal where rounding alone tells them apart."""
    return before, before if abs(after - before) <= ROUNDING else after


def _of_exp(values: Sequence[Sequence[tuple[float, float]]]) -> Estimate:
    """Return the change of exp(mean log)."""
    before, after = (exp(mean([[pair[side] for pair in one] for one in values]).value) for side in (0, 1))
    of_moves = mean([[after * b - before * a for a, b in one] for one in values])
    return moved(of_moves, after - before)


def _sequences(side: ComparableReport, scheme: str) -> list[ScoredSequence]:
    rows = side.read("tokens", COLUMNS)
    return [] if rows is None else scored_sequences(rows, scheme)
