"""Assesses one limit on a report: value, baseline, bound, and whether the value is within it.

What comes out is a finding whose verdict is `pass`, `warn` or `broken` by effect size, with a p-value where noise can
be told apart; `judgment` weighs the p-values of all limits together. Noise is told apart for means over token
positions and for verdicts, which follow from two such means. Other figures (magnitudes, quantiles, sets, bytes) act by
effect size alone, and so does everything where weights, text and software are the baseline's: such differences are
exact. Figures that depend on the text are compared with a baseline on the same text alone.
"""

from typing import Any

from service.audits.evidence import Evidence, p_value, position_mean
from service.audits.figures import Figure, read
from service.audits.levels import level_of, level_test
from service.audits.limits import LEVELS, Limit, holds
from service.comparison import cautions
from service.comparison.comparable_report import ComparableReport
from service.contracts.audits.audit import Finding
from service.contracts.report import Report
from service.errors import NotComparable
from service.evaluation.numbers import apart, exact, number
from service.evaluation.verdict import Judgment, Level

EXACT = "Weights, text and software are the baseline's, so the difference is exact."
_PREDICTIONS = ("perplexity", "perplexity_ratio", "kl_divergence", "same_top_token", "delta_p")
"""Records of a scheme that are absent where no position has a finite prediction."""


def assess(limit: Limit, evidence: Evidence) -> Finding:
    """Return what the report says of one limit, before the p-values of all limits are weighed together.

    A figure that cannot be judged gives `not_judged` and the reason. One that is missing because no position has a
    finite prediction breaks every limit.
    """
    candidate, baseline = evidence.candidate, evidence.baseline
    scheme = limit.figure.scheme
    if scheme is not None and scheme not in candidate.report.schemes:
        return _finding(limit, "not_judged", f"The report has no scheme {scheme}.")
    if limit.against_baseline:
        if baseline is None:
            return _finding(limit, "not_judged", "There is no baseline yet.", value=_shown(limit, candidate))
        if reason := _incomparable(limit.figure, evidence, baseline):
            return _finding(limit, "not_judged", reason, value=_shown(limit, candidate))
    if limit.figure.kind == "level":
        return _level(limit, evidence)
    if limit.figure.kind == "dimensions":
        return _dimensions(limit, evidence)
    return _number(limit, evidence)


def identical(candidate: Report, baseline: Report) -> bool:
    """Return whether two reports are of the same weights, text and software: their differences are then exact."""
    same = ("environment", "headroom_version", "definitions_version")
    return (
        candidate.model.fingerprint == baseline.model.fingerprint
        and candidate.calibration.fingerprint == baseline.calibration.fingerprint
        and all(getattr(candidate, name) == getattr(baseline, name) for name in same)
    )


def _number(limit: Limit, evidence: Evidence) -> Finding:
    candidate = evidence.candidate
    baseline = evidence.baseline if limit.against_baseline else None
    before = read(limit.figure, baseline) if baseline else None
    if baseline and before is None:
        return _finding(limit, "not_judged", "The baseline has no such figure.", value=_shown(limit, candidate))
    value = read(limit.figure, candidate)
    if value is None:
        return _missing(limit, candidate.report, before)
    bound = limit.bound * _float(before) if baseline else limit.bound
    facts: dict[str, Any] = {
        "value": value,
        "baseline": before,
        "bound": bound,
        "interval": _interval(limit.figure, candidate.report),
    }
    within = holds(limit, _float(value), bound)
    if position_mean(limit.figure) is None:
        return _by_effect(limit, _said(limit, facts, within=within), facts, within=within)
    if baseline and identical(candidate.report, baseline.report):
        return _by_effect(limit, f"{_said(limit, facts, within=within)} {EXACT}", facts, within=within)
    return _tested(limit, evidence, facts, within=within)


def _tested(limit: Limit, evidence: Evidence, facts: dict[str, Any], *, within: bool) -> Finding:
    """Return the finding on a mean over positions; `within` says whether the whole reports' figures hold the limit."""
    if lost := _lost_predictions(limit, evidence):
        return _finding(limit, "broken", lost, **facts)
    excess = evidence.excess(limit)
    p = None if excess is None else p_value(excess)
    if excess is not None:  # of the positions that both scored, which may be fewer than the reports'
        within = excess.value <= 0
    said = f"{_said(limit, facts, within=within)}{_shared(limit, evidence)}"
    if p is not None:
        return _by_effect(limit, said, {**facts, "excess": excess, "p_value": p}, within=within)
    if within:
        return _finding(limit, "pass", said, excess=excess, **facts)
    unknown = "The positions at hand are too few to tell it from noise."
    return _finding(limit, "warn", f"{said} {unknown}", excess=excess, **facts)


def _level(limit: Limit, evidence: Evidence) -> Finding:
    candidate = evidence.candidate
    judged = level_of(candidate, limit.figure.scheme or "", candidate)
    before = _baseline_level(limit, evidence)
    allowed = Level[LEVELS[int(limit.bound)]] if before is None else before
    baseline = None if before is None else before.name
    facts: dict[str, Any] = {"value": judged.level.name, "baseline": baseline, "bound": allowed.name}
    for source, level in (("report", judged.level), ("baseline", allowed)):
        if level is Level.unjudged:
            reason = f"The level cannot be determined from the {source}'s figures."
            return _finding(limit, "not_judged", reason, **facts)
    within = judged.level <= allowed
    said = _level_in_words(judged, allowed, against_baseline=before is not None)
    if before is not None and evidence.baseline and identical(candidate.report, evidence.baseline.report):
        return _by_effect(limit, f"{said} {EXACT}", facts, within=within)
    if allowed is Level.severe or judged.by_kl is None:
        return _by_effect(limit, said, facts, within=within)
    return _tested_level(limit, evidence, allowed, said, facts)


def _level_in_words(judged: Judgment, allowed: Level, *, against_baseline: bool) -> str:
    no, of_baseline = "no " if judged.level <= allowed else "", "the baseline's level, " if against_baseline else ""
    said = f"{judged.level.name} is {no}worse than {of_baseline}{allowed.name}."
    return said if judged.by_kl is not None else f"{said} No position has a finite prediction under the scheme."


def _baseline_level(limit: Limit, evidence: Evidence) -> Level | None:
    """Return the baseline's level by the limits of the report; None where a limit is not against the baseline."""
    if not limit.against_baseline or evidence.baseline is None:
        return None
    return level_of(evidence.baseline, limit.figure.scheme or "", evidence.candidate).level


def _tested_level(limit: Limit, evidence: Evidence, allowed: Level, said: str, facts: dict[str, Any]) -> Finding:
    """Return the finding on a level that noise may have moved."""
    within = Level[facts["value"]] <= allowed
    test = level_test(evidence, limit.figure.scheme or "", allowed, against_baseline=limit.against_baseline)
    if test.p_value is None and not within:
        return _finding(limit, "warn", f"{said} The positions at hand are too few to tell it from noise.", **facts)
    return _by_effect(limit, said, {**facts, "excess": test.excess, "p_value": test.p_value}, within=within)


def _dimensions(limit: Limit, evidence: Evidence) -> Finding:
    after = read(limit.figure, evidence.candidate)
    before = read(limit.figure, evidence.baseline) if evidence.baseline else None
    if not isinstance(after, frozenset) or not isinstance(before, frozenset):
        return _finding(limit, "not_judged", "A report is older than this definition.")
    gained = tuple(sorted(after - before))
    said = f"{len(gained)} gained: {', '.join(map(str, gained[:10]))}{', ...' if len(gained) > 10 else ''}."
    return _finding(limit, "broken" if gained else "pass", said if gained else "None is gained.", value=gained)


def _incomparable(figure: Figure, evidence: Evidence, baseline: ComparableReport) -> str | None:
    """Return why a figure cannot be compared with the baseline's; None where it can."""
    after, before = evidence.candidate.report, baseline.report
    try:
        cautions.check_definitions(baseline.name, before, after)
    except NotComparable as error:
        return f"{error}."
    if figure.scheme is not None and figure.scheme not in before.schemes:
        return f"The baseline has no scheme {figure.scheme}."
    if figure.kind == "dimensions":
        refused = {one.name: one.reason for one in cautions.uncomparable_outliers(before, after)}
        if figure.path in refused:
            return f"The sets cannot be compared: {refused[figure.path]}."
    return _other_text(figure, evidence, baseline) if figure.depends_on_text else None


def _other_text(figure: Figure, evidence: Evidence, baseline: ComparableReport) -> str | None:
    """Return why the text keeps a figure from being compared; None for the same text, or positions that both scored."""
    after, before = evidence.candidate.report, baseline.report
    scheme = evidence.scheme_for(figure)
    if position_mean(figure) is not None and scheme is not None and evidence.paired(scheme):
        return None
    if before.calibration.fingerprint != after.calibration.fingerprint:
        return "The calibration texts differ, and texts that differ are never compared."
    if before.analysis.score != after.analysis.score and figure.path.partition(".")[0] in ("schemes", "reference"):
        return "Other positions were scored."
    return None


def _missing(limit: Limit, report: Report, before: Any) -> Finding:
    """Return the finding on a figure that the report has not, or not as a finite number."""
    record = limit.figure.of_scheme.partition(".")[0]
    if record in _PREDICTIONS or limit.figure.path.startswith("reference.perplexity"):
        under = limit.figure.scheme if limit.figure.scheme and report.reference.perplexity else "the reference"
        reason = f"No position has a finite prediction under {under}, which breaks every limit."
        return _finding(limit, "broken", reason, baseline=before)
    return _finding(limit, "not_judged", "The report has no such figure, or none that is finite.", baseline=before)


def _shared(limit: Limit, evidence: Evidence) -> str:
    """Say over how much of the text a figure is judged where the texts are not the same."""
    baseline, scheme = evidence.baseline, evidence.scheme_for(limit.figure)
    if not limit.against_baseline or baseline is None or scheme is None:
        return ""
    if baseline.report.calibration.fingerprint == evidence.candidate.report.calibration.fingerprint:
        return ""
    return f" Judged on the {len(evidence.paired(scheme))} sequences that both scored."


def _lost_predictions(limit: Limit, evidence: Evidence) -> str | None:
    """Say where predictions stopped being finite on the baseline's text: such positions are in no mean."""
    scheme, baseline = limit.figure.scheme, evidence.baseline
    if scheme is None or baseline is None or not limit.against_baseline:
        return None
    after, before = evidence.candidate.report, baseline.report
    if (after.calibration.fingerprint, after.analysis.score) != (before.calibration.fingerprint, before.analysis.score):
        return None
    counts = [
        0 if (one := report.schemes[scheme].perplexity) is None else one.scored_tokens for report in (before, after)
    ]
    lost = counts[0] - counts[1]
    if lost <= 0:
        return None
    return f"{lost:,} predictions under {scheme} are no longer finite as in the baseline, which breaks every limit."


def _interval(figure: Figure, report: Report) -> tuple[float, float] | None:
    """Return the 95% interval that the report gives for a figure."""
    record: Any = report
    *parents, key = figure.path.split(".")
    for parent in parents:
        record = record.get(parent) if isinstance(record, dict) else getattr(record, parent, None)
    return getattr(record, "interval", None) if key in ("value", "mean") else None


def _said(limit: Limit, facts: dict[str, Any], *, within: bool) -> str:
    value, bound = facts["value"], facts["bound"]
    of_baseline = f", {exact(limit.bound)} times the baseline's {number(facts['baseline'], 4)}"
    held_to = apart(bound, value) if limit.against_baseline else exact(bound)
    shown = held_to if value == bound else apart(value, bound)
    over = "over" if limit.sign > 0 else "under"
    return f"{shown} is {'not ' if within else ''}{over} {held_to}{of_baseline if limit.against_baseline else ''}."


def _shown(limit: Limit, side: ComparableReport) -> Any:
    value = read(limit.figure, side)
    return None if isinstance(value, frozenset) else value


def _float(value: Any) -> float:
    return float(value)


def _by_effect(limit: Limit, reason: str, facts: dict[str, Any], *, within: bool) -> Finding:
    return _finding(limit, "pass" if within else "broken", reason, **facts)


def _finding(limit: Limit, verdict: str, reason: str, **facts: Any) -> Finding:
    return Finding.model_validate(
        {"limit": limit.text, "figure": limit.figure.path, "value": None, "verdict": verdict, "reason": reason} | facts
    )
