"""`audit_history`: every limited figure of an audit over its runs, one panel for each.

Value with its 95% interval, baseline, limit and verdict of every run; gaps where a run has no value; the level before
and after every step, with what changed there.
"""

from collections.abc import Iterator, Mapping

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from service.contracts.audits.history import AuditHistory, FigureHistory
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing
from workers.reporting.history.panel import draw_panel, limit_in_view, title
from workers.reporting.history.series import LOOKS, Series, series
from workers.reporting.text import counted, number, plain, visible

MOST_PANELS = 6
"""In one figure; further ones are in the next."""
_PANEL_INCHES, _LINE_INCHES = 1.75, 0.15
_AROUND_INCHES = 1.15
"""Above and below all panels: title, dates and legend."""
_CAPTION = Caption(
    "Limited figures of an audit over its runs.",
    (
        "Bars or band: 95% interval of the value over calibration texts. Steps: segments of constant mean by PELT, "
        "with a penalty of 10 noise variances or more.",
    ),
    "A value beyond its limit breaks it; a break is a warning within the noise, and fails the run where it is clear "
    "and confirmed on other text. An unchanged run measures nothing, and repeats the last value.",
)


def draw(history: AuditHistory) -> Iterator[Drawing]:
    """Yield a figure for every 6 limited figures; nothing where there is no run or no limit."""
    if not history.runs or not history.figures:
        return
    parts = [history.figures[at : at + MOST_PANELS] for at in range(0, len(history.figures), MOST_PANELS)]
    for place, part in enumerate(parts, 1):
        name = "audit_history" if len(parts) == 1 else f"audit_history_{place}"
        yield _drawing(history, part, name, f", {place} of {len(parts)}" if len(parts) > 1 else "")


def _drawing(history: AuditHistory, part: tuple[FigureHistory, ...], name: str, place: str) -> Drawing:
    panels = [series(one, history.runs) for one in part]
    titles = [title(one) for one in panels]
    heights = [_PANEL_INCHES + _LINE_INCHES * text.count("\n") for text in titles]
    figure = Figure(figsize=(style.WIDE[0], _AROUND_INCHES + sum(heights)))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    hover: dict[str, list[str]] = {}
    for number_of, (one, text) in enumerate(zip(panels, titles, strict=True)):
        hover |= draw_panel(axes[number_of], one, text, f"panel{number_of}")
    _dates(axes[-1], history)
    heading = f"History of audit {plain(history.audit, 63)}{place}"
    figure.suptitle(heading, fontsize=11.5)
    _legend(figure, panels, hover)
    return Drawing(
        name=name,
        title=heading,
        parts=_CAPTION._replace(basis=f"{_period(history)} Drawn from history.csv."),
        alt=" ".join(_alt(one) for one in panels),
        table="",
        figure=figure,
        hover=hover,
    )


def _dates(axes: Axes, history: AuditHistory) -> None:
    """Put dates on the time axis and the period below; a single time has the only tick."""
    first, last = history.runs[0].at, history.runs[-1].at
    axes.set_xlabel(f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC" if first < last else "UTC", fontsize=8)
    if first == last:
        axes.set_xticks([date2num(history.runs[0].at)], [f"{history.runs[0].at:%Y-%m-%d %H:%M}"])
        return
    locator = AutoDateLocator(minticks=3, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _legend(figure: Figure, panels: list[Series], hover: Mapping[str, list[str]]) -> None:
    """Name the lines, and those markers that are drawn."""
    drawn = {gid.partition("-")[2] for gid in hover}
    handles = [
        Line2D([], [], label=look.label, color=look.color, marker=look.marker, linestyle="none",
               markerfacecolor=look.face, markersize=5)
        for kind, look in LOOKS.items() if kind in drawn
    ]  # fmt: skip
    if any(one.has_baseline for one in panels):
        handles.append(Line2D([], [], label="baseline", color=style.MUTED, linestyle="--", linewidth=1))
    if any(limit_in_view(one) for one in panels):
        handles.append(Line2D([], [], label="limit", color=style.ORANGE, linewidth=1.2))
    if any(one.of.steps for one in panels):
        handles.append(Line2D([], [], label="level between steps", color=style.INK, alpha=0.45, linewidth=3))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8)


def _period(history: AuditHistory) -> str:
    first, last = history.runs[0].at, history.runs[-1].at
    return (
        f"Audit {visible(history.audit)}, {counted(len(history.runs), 'run')} from {first:%Y-%m-%d %H:%M} to "
        f"{last:%Y-%m-%d %H:%M} UTC."
    )


def _alt(one: Series) -> str:
    values = [point.value for point in one.of.points if point.status != "gap"]
    last = f"last value {_shown(values[-1])}" if values else "no value"
    steps = "; ".join(
        f"step on {step.at:%Y-%m-%d} from {number(step.before.value)} to {number(step.after.value)}"
        for step in one.of.steps
    )
    return f"{visible(one.of.figure)} over {counted(len(one.of.points), 'run')}: {last}, {steps or 'no step'}."


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} gained"
    return number(value) if isinstance(value, float) else str(value)
