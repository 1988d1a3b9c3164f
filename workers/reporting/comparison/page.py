"""`comparison.html` and `summary.md`: the comparison for reading, one file each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from service.contracts.report import LeftOut
from workers.reporting.comparison.gathering import Gathered
from workers.reporting.comparison.topics import headlines, reports
from workers.reporting.drawing.figure import calibrated
from workers.reporting.figures.gallery import Gallery
from workers.reporting.html.templates import environment, placed_figure, style_sheet
from workers.reporting.markdown import bullets, escaped, table
from workers.reporting.topics.records import Topic


def page(gathered: Gathered, sections: Sequence[Topic], galleries: Mapping[str, Gallery], directory: Path) -> str:
    """Return the page.

    Args:
        gathered: The reports and what differs between them.
        sections: Its sections.
        galleries: Figures by section.
        directory: Where the figures' files lie.
    """
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            style=style_sheet(),
            comparison=gathered.comparison,
            labels=gathered.labels,
            headlines=headlines(gathered),
            reports=reports(gathered),
            not_compared=_not_compared(gathered),
            topics=sections,
            figures={name: [placed_figure(s, directory) for s in one.figures] for name, one in galleries.items()},
            left_out={name: one.left_out for name, one in galleries.items()},
            measured_on="; ".join(
                f"{label}: {calibrated(source.report)}"
                for label, source in zip(gathered.labels, gathered.sources, strict=True)
            ),
        )
    )


def summary(gathered: Gathered, sections: Sequence[Topic]) -> str:
    """Return the comparison in Markdown."""
    names = ", ".join(map(escaped, gathered.labels))
    parts = [f"# Headroom comparison: {names}\n", bullets(headlines(gathered))]
    warnings = [f"{warning.where}: {warning.message}" for warning in gathered.comparison.warnings]
    warnings += [f"Not compared: {one.name}, {label}: {one.reason}." for label, one in _not_compared(gathered)]
    if warnings:
        parts += ["## Warnings\n", bullets(warnings)]
    for grid in (reports(gathered), *(grid for topic in sections for grid in topic.grids)):
        parts += [f"## {escaped(grid.caption)}\n", table(grid.head, grid.rows)]
    return "\n".join(parts)


def _not_compared(gathered: Gathered) -> list[tuple[str, LeftOut]]:
    return [
        (difference.label, one) for difference in gathered.comparison.differences for one in difference.not_compared
    ]
