"""`headroom audits history`: the limited figures of an audit over its runs, as tables, JSON, CSV or figures."""

import tempfile
from pathlib import Path
from typing import Any

from service.audits.history.table import history_csv
from service.cli import inputs, output
from service.cli.connection import connect
from service.cli.gating.figures import bound
from service.cli.reports import drawing
from service.contracts.audits.history import AuditHistory, FigureHistory, HistoryRun, Point, Step, StepLevel
from service.contracts.refusals import nearest
from service.contracts.report import Estimate
from service.errors import InvalidRequest, StoreFailed
from service.evaluation.numbers import estimate, number

PROGRAM = "workers.reporting.history"
"""The program that draws a history; it is named, and never imported."""
_SHOWN = 30
"""Runs in a table, the newest."""
_TITLES = ("time (UTC)", "value", "baseline", "bound", "limit", "run")


def show_history(
    path: str, *, figure: str | None, runs: int, table: Path | None, out: Path | None, as_json: bool
) -> None:
    """Print the history of the audit at a path of the API; write its table and draw its figures where asked.

    Raises InvalidRequest for a figure without a limit, for a file's directory that is not there, and for an `out` that
    is not new or empty.
    """
    if out is not None:
        inputs.check_out(out)
        drawing.require_drawing()
    if table is not None and (table.is_dir() or not table.absolute().parent.is_dir()):
        raise InvalidRequest("--csv", str(table), "a file in a directory that is there")
    with connect(workers=False) as service:
        history = AuditHistory.model_validate(service.client.get(f"{path}/history", runs=runs))
    if figure is not None:
        history = history.model_copy(update={"figures": (_chosen(history, figure),)})
    if table is not None:
        _write(table, history_csv(history), "--csv")
    if out is not None:
        _draw(history, out)
    if as_json:
        drawn = {} if out is None else {"directory": str(out.absolute())}
        output.document(history.model_dump(mode="json") | drawn)
        return
    _print(history)
    for place in filter(None, (table, out)):
        output.line(output.results(), f"Written: {place.absolute()}")


def _chosen(history: AuditHistory, name: str) -> FigureHistory:
    """Return the figure of a name: its path, the path without `schemes.`, or as a limit calls it."""
    for one in history.figures:
        called = {limit.split()[0] for limit in one.limits}
        if name in called | {one.figure, one.figure.removeprefix("schemes.")}:
            return one
    names = [one.figure.removeprefix("schemes.") for one in history.figures]
    allowed = f"a figure with a limit: {', '.join(names) or 'the audit has none'}"
    raise InvalidRequest("--figure", name, f"{allowed}{nearest(name, names)}")


def _write(path: Path, text: str, parameter: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise StoreFailed(f"{parameter}: {str(path)!r} could not be written: {error.strerror or error}") from error


def _draw(history: AuditHistory, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="headroom-history-") as source:
        _write(Path(source, "history.json"), history.model_dump_json(indent=2) + "\n", "--out")
        _write(Path(source, "history.csv"), history_csv(history), "--out")
        drawing.run(PROGRAM, [str(out.absolute()), source])


def _print(history: AuditHistory) -> None:
    console = output.results()
    if not history.runs:
        output.line(console, f"{history.audit}: no run has ended")
    elif not history.figures:
        output.line(console, f"{history.audit}: {len(history.runs)} runs, and no limit")
    for place, one in enumerate(history.figures if history.runs else ()):
        if place:
            output.line(console, "")
        output.line(console, "; ".join(one.limits))
        output.table(_TITLES, _rows(one, history.runs)[-_SHOWN:])
        if len(one.points) > _SHOWN:
            output.line(console, f"{len(one.points) - _SHOWN} earlier: --csv FILE, --json or --out DIR")
        for step in one.steps:
            output.line(console, _told(step))
        if one.no_steps is not None:
            output.line(console, f"Steps: {one.no_steps}")


def _rows(figure: FigureHistory, runs: tuple[HistoryRun, ...]) -> list[tuple[Any, ...]]:
    steps = {step.run_id for step in figure.steps}
    return [
        (
            f"{point.at:%Y-%m-%d %H:%M}",
            f"{'step to ' if point.run_id in steps else ''}{_value(point)}",
            _plain(point.baseline),
            ", ".join(bound(held.limit, held.bound) for held in point.limits if held.bound is not None),
            ", ".join(dict.fromkeys(held.verdict.replace("_", " ") for held in point.limits)),
            run.verdict,
        )
        for point, run in zip(figure.points, runs, strict=True)
    ]


def _value(point: Point) -> str:
    if point.status == "gap":
        return point.reason or ""
    if isinstance(point.value, tuple):
        return f"{len(point.value)} gained"
    if isinstance(point.value, float):
        return estimate(Estimate(value=point.value, standard_error=None, interval=point.interval))
    return str(point.value)


def _plain(value: float | str | None) -> str | None:
    return number(value, 4) if isinstance(value, float) else value


def _told(step: Step) -> str:
    return f"Step {step.at:%Y-%m-%d %H:%M}: {_level(step.before)} -> {_level(step.after)}; {step.what_changed}"


def _level(level: StepLevel) -> str:
    return estimate(Estimate(value=level.value, standard_error=None, interval=level.interval))
