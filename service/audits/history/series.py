"""The history of an audit: the series of every limited figure, its gaps, and the steps in it.

A figure is followed over all ended runs, whatever its limits were at the time; figures without a limit today are left
out. A run that was skipped or erred is a gap. An unchanged run repeats the last value. Of runs in a row that measured
the same weights and text with the same software and settings, and gave the same value, the first alone counts as a
measurement: the others say nothing about how the figure varies.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from service.audits.figures import Figure
from service.audits.history.measured_state import MeasuredState, changes
from service.audits.history.steps import FEWEST, Value, level, noise, steps
from service.audits.limits import Limit
from service.contracts.audits.audit import AuditRun, Finding
from service.contracts.audits.history import (
    AuditHistory,
    FigureHistory,
    HeldTo,
    HistoryRun,
    Point,
    SeriesNoise,
    StateChange,
    Step,
    StepLevel,
)

_GAPS = ("skipped", "error")
_NOT_LIMITED = "The figure had no limit at this run."
_NO_MEASUREMENT = "Nothing was measured yet."
_NO_NUMBER = "Steps are detected in numbers only."
_NOISE_UNKNOWN = f"Fewer than {FEWEST} measurements, and the figure has no interval: its noise is not known."
_ONE = "One measurement alone has no step."


class Measured(NamedTuple):
    """A point that counts as a measurement."""

    place: int
    """Of its run."""
    value: float
    interval: tuple[float, float] | None


def history(
    audit: str, limits: Sequence[Limit], runs: Sequence[AuditRun], states: Mapping[str, MeasuredState]
) -> AuditHistory:
    """Return the history of an audit.

    Args:
        audit: Its name.
        limits: Those of today, as `limits.parse_all` gives them.
        runs: In any order; those that have not ended are left out.
        states: What each report was measured from, by report id; a report that is gone is absent.
    """
    ended = sorted((run for run in runs if run.verdict is not None), key=lambda run: (_time(run), run.id))
    listed = tuple(_listed(ended, states))
    figures = dict.fromkeys(limit.figure for limit in limits)
    return AuditHistory(
        audit=audit,
        runs=listed,
        figures=tuple(_figure(figure, limits, ended, listed, states) for figure in figures),
    )


def _time(run: AuditRun) -> datetime:
    """Return the time that a run is shown at."""
    return run.scheduled_at or run.started_at or run.finished_at or datetime.min.replace(tzinfo=UTC)


def _listed(runs: Sequence[AuditRun], states: Mapping[str, MeasuredState]) -> Iterator[HistoryRun]:
    """Yield every run with what changed since the measured one before it."""
    last: str | None = None
    for run in runs:
        changed: tuple[StateChange, ...] | None = None
        if run.report_id is not None and run.verdict not in (*_GAPS, "unchanged"):
            before, after = states.get(last or ""), states.get(run.report_id)
            changed = None if before is None or after is None else changes(before, after)
            last = run.report_id
        yield HistoryRun(
            run_id=run.id,
            at=_time(run),
            trigger=run.trigger,
            verdict=run.verdict or "error",
            reasons=run.reasons,
            report_id=run.report_id,
            baseline_report_id=run.baseline_report_id,
            changes=changed,
        )


def _figure(
    figure: Figure,
    limits: Sequence[Limit],
    runs: Sequence[AuditRun],
    listed: Sequence[HistoryRun],
    states: Mapping[str, MeasuredState],
) -> FigureHistory:
    points = tuple(_points(figure.path, runs))
    measured = tuple(_measurements(points, listed, states))
    spread, no_steps = _noise(figure, measured)
    levels: tuple[StepLevel, ...] = ()
    detected: tuple[Step, ...] = ()
    if spread is not None and no_steps is None:
        starts = [0, *steps([one.value for one in measured], spread)]
        levels = tuple(_levels(starts, measured, points, spread))
        at = [measured[start].place for start in starts]
        detected = tuple(
            Step(
                run_id=listed[place].run_id,
                at=listed[place].at,
                before=before,
                after=after,
                changes=listed[place].changes,
            )
            for place, (before, after) in zip(at[1:], pairwise(levels), strict=True)
        )
    return FigureHistory(
        figure=figure.path,
        kind=figure.kind,
        limits=tuple(limit.text for limit in limits if limit.figure == figure),
        points=points,
        levels=levels,
        steps=detected,
        noise=spread,
        no_steps=no_steps,
    )


def _noise(figure: Figure, measured: Sequence[Measured]) -> tuple[SeriesNoise | None, str | None]:
    """Return the noise of a series, and why no step can be detected in it; None where one can."""
    if figure.kind != "number":
        return None, _NO_NUMBER
    values = [Value(one.value, one.interval) for one in measured]
    spread = noise(values, exact=figure.exact) if values else None
    if len(measured) < 2:
        return spread, _ONE if measured else _NO_MEASUREMENT
    return spread, None if spread else _NOISE_UNKNOWN


def _points(figure: str, runs: Sequence[AuditRun]) -> Iterator[Point]:
    """Yield what every run says of a figure."""
    last: Point | None = None
    for run in runs:
        where = {"run_id": run.id, "at": _time(run)}
        findings = [finding for finding in run.findings if finding.figure == figure]
        if run.verdict in _GAPS:
            yield Point.model_validate({**where, "status": "gap", "reason": " ".join(run.reasons) or None})
        elif run.verdict == "unchanged":
            yield _repeated(where, last, findings)
        else:
            last = _measured(where, findings)
            yield last


def _measured(where: Mapping[str, object], findings: Sequence[Finding]) -> Point:
    """Return the point of a run that has a report; a gap where the report's figure is none, or has no limit."""
    if findings and findings[0].value is not None:
        return Point.model_validate({**where, "status": "measured", **_facts(findings)})
    reason = findings[0].reason if findings else _NOT_LIMITED
    return Point.model_validate({**where, "status": "gap", "reason": reason, "limits": _held(findings)})


def _repeated(where: Mapping[str, object], last: Point | None, findings: Sequence[Finding]) -> Point:
    """Return the point of an unchanged run: the last one again, by the limits of this run where it names them."""
    if last is None:
        return Point.model_validate({**where, "status": "gap", "reason": _NO_MEASUREMENT})
    if last.status == "gap":
        return Point.model_validate({**last.model_dump(), **where})
    facts: dict[str, object] = {**last.model_dump(), **where, "status": "unchanged"}
    return Point.model_validate(facts | (_facts(findings) if findings and findings[0].value is not None else {}))


def _facts(findings: Sequence[Finding]) -> dict[str, object]:
    """Return what the findings on one figure say of it; its baseline is the one of the first limit that has one."""
    return {
        "value": findings[0].value,
        "interval": findings[0].interval,
        "baseline": next((one.baseline for one in findings if one.baseline is not None), None),
        "limits": _held(findings),
    }


def _held(findings: Sequence[Finding]) -> tuple[HeldTo, ...]:
    return tuple(HeldTo(limit=one.limit, bound=one.bound, verdict=one.verdict) for one in findings)


def _measurements(
    points: Sequence[Point], listed: Sequence[HistoryRun], states: Mapping[str, MeasuredState]
) -> Iterator[Measured]:
    """Yield the points that count: each but those that repeat the one before it, of the same state."""
    last: tuple[MeasuredState | None, float] = (None, math.nan)
    for place, point in enumerate(points):
        if point.status != "measured" or not isinstance(point.value, float):
            continue
        state = states.get(listed[place].report_id or "")
        if state is None or last != (state, point.value):
            yield Measured(place, point.value, point.interval)
        last = (state, point.value)


def _levels(
    starts: Sequence[int], measured: Sequence[Measured], points: Sequence[Point], spread: SeriesNoise
) -> Iterator[StepLevel]:
    """Yield the level of each segment of the measurements; `starts` has the position of the first one in each."""
    for start, end in zip(starts, (*starts[1:], len(measured)), strict=True):
        value, interval = level([one.value for one in measured[start:end]], spread)
        next_place = measured[end].place if end < len(measured) else len(points)
        own = [point for point in points[measured[start].place : next_place] if point.status != "gap"]
        yield StepLevel(
            value=value,
            interval=interval,
            first=own[0].at,
            last=own[-1].at,
            runs=len(own),
        )
