"""`report.html`: one file that needs nothing else, read on a phone, on paper or in the dark.

Whatever came with the job (model names, tokens, warnings, module names) is foreign text: the template escapes all of
it, and unprintable characters are shown as escapes. A content security policy in the page forbids scripts and
requests, should anything slip through.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from service.contracts.report import Entry, Report
from workers.reporting import sections
from workers.reporting.figures.drawing import Drawing
from workers.reporting.inline_svg import inline
from workers.reporting.loading import Source
from workers.reporting.text import counted, estimate, visible
from workers.reporting.verdict import LIMITED, LIMITS, Level

_HERE = Path(__file__).parent
_SIGNS = {Level.negligible: "○", Level.noticeable: "◐", Level.severe: "●", Level.unjudged: "?"}
"""Fuller is worse; the word stands beside it, so that no colour is needed to tell them apart."""


class Shown(NamedTuple):
    """A figure on the page: what was drawn, and the entry that report.json gets for it."""

    drawing: Drawing
    entry: Entry


def _finalize(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(counted=counted)
    return environment


def _reference(report: Report) -> str:
    perplexity = report.reference.perplexity
    if perplexity is None:
        return "No position has a finite prediction under the reference."
    scored = counted(perplexity.scored_tokens, "scored token")
    return f"The reference has a perplexity of {estimate(perplexity)} over {scored}. Every ± is one standard error."


def page(source: Source, shown: Sequence[Shown], directory: Path) -> str:
    """Return the page.

    Args:
        source: The report and its tables.
        shown: Its figures, in order.
        directory: Where the figures' files lie.
    """
    report = source.report
    figures = [
        {
            "drawing": figure.drawing,
            "files": figure.entry.files,
            "svg": inline(directory / figure.entry.files[0], figure.drawing.name, visible(figure.drawing.alt)),
        }
        for figure in shown
    ]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
            report=report,
            measured=f"{report.created_at:%-d %B %Y, %H:%M} {report.created_at.tzname() or ''}".strip(),
            reference=_reference(report),
            outcomes=sections.outcomes(report),
            signs=_SIGNS,
            levels=list(LIMITED),
            limits=LIMITS,
            outliers=sections.outlier_dimensions(report),
            worst=sections.worst_sites(report),
            figures=figures,
            ranges=sections.range_by_layer(source),
            over_fp16=sections.over_fp16(source),
            provenance=sections.provenance(report),
            identity=sections.identity(report),
            command=sections.command(report),
        )
    )
