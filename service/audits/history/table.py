"""The history of an audit as a table: one row for each figure, run and limit, as CSV."""

import csv
import io
from collections.abc import Iterator

from service.contracts.audits.history import AuditHistory, FigureHistory, HeldTo, HistoryRun, Point

COLUMNS = (
    "time", "run", "run_verdict", "figure", "status", "value", "low", "high", "baseline", "limit", "bound", "verdict",
    "step_from", "step_to", "changed", "reason",
)  # fmt: skip
"""`low` and `high` are the 95% interval; `step_from` and `step_to` the levels around a step at this run; `changed`
says what else changed since the measured run before. Empty fields: there is none."""


def history_csv(history: AuditHistory) -> str:
    """Return the table, with CRLF line ends and times in ISO 8601."""
    written = io.StringIO()
    table = csv.writer(written)
    table.writerow(COLUMNS)
    for figure in history.figures:
        table.writerows(_rows(figure, history.runs))
    return written.getvalue()


def _rows(figure: FigureHistory, runs: tuple[HistoryRun, ...]) -> Iterator[list[object]]:
    steps = {step.run_id: step for step in figure.steps}
    for point, run in zip(figure.points, runs, strict=True):
        step = steps.get(run.run_id)
        changed = "; ".join(change.text for change in run.changes or ())
        levels = (step.before.value, step.after.value) if step else (None, None)
        for held in point.limits or (HeldTo(limit="", bound=None, verdict="not_judged"),):
            yield [
                point.at.isoformat(), run.run_id, run.verdict, figure.figure, point.status, *_value(point),
                point.baseline, held.limit, held.bound, held.verdict if held.limit else None, *levels, changed,
                point.reason,
            ]  # fmt: skip


def _value(point: Point) -> tuple[object, float | None, float | None]:
    """Return a point's value, a set as its numbers, and both ends of its interval."""
    value = " ".join(map(str, point.value)) if isinstance(point.value, tuple) else point.value
    return value, *(point.interval or (None, None))
