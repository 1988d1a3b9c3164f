"""Renders a stored report: reads it, draws its figures, writes its page and summary, and puts all in place."""

import json
from pathlib import Path

from service.contracts.report import Report
from workers.reporting.figures.gallery import draw_all
from workers.reporting.html.page import page, topics
from workers.reporting.loading import load
from workers.reporting.publish import staged
from workers.reporting.summary import summary

PUBLISHED = ("figures", "report.html", "summary.md", "report.json")
"""What rendering writes, in the order in which it is put in place."""


def render(directory: Path, processes: int | None = None, *, density: bool = False) -> Report:
    """Draw the figures, page and summary of the report in `directory`, and name the figures in its report.json.

    A report that was rendered before is rendered afresh; the same report gives the same bytes.

    Args:
        directory: The report.
        processes: How many draw at once; by default as many as the report's size and the CPUs make sensible.
        density: Draw the histograms of labeled prompts as densities instead of counts.

    Returns:
        The report as it now stands.

    Raises:
        ReportUnreadable: report.json or a table is missing, damaged or of another form.
        OSError: a file could not be written. In both cases `directory` is as it was.
    """
    source = load(directory, density=density)
    with staged(directory, PUBLISHED) as stage:
        (stage / "figures").mkdir()
        gallery = draw_all(source, stage / "figures", processes)
        figures = {"figures": tuple(saved.entry for saved in gallery.figures), "figures_left_out": gallery.left_out}
        # Only the figures change: what a newer version added is kept as it stands.
        content = json.loads((directory / "report.json").read_bytes())
        content |= {key: [entry.model_dump() for entry in entries] for key, entries in figures.items()}
        sections = topics(source)
        (stage / "report.html").write_text(page(source, sections, gallery, stage), encoding="utf-8")
        (stage / "summary.md").write_text(summary(source, sections), encoding="utf-8")
        (stage / "report.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return source.report.model_copy(update=figures)
