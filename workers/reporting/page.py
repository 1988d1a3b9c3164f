"""`report.html`: one file that needs nothing else, read on a phone, on paper or in the dark.

Whatever came with the job (model names, tokens, warnings, module names) is foreign text: the template escapes all of
it, and unprintable characters are shown as escapes. A content security policy in the page forbids scripts and
requests, should anything slip through.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from service.contracts.report import Report
from workers.reporting import sections
from workers.reporting.figures.gallery import Gallery
from workers.reporting.inline_svg import inline
from workers.reporting.loading import Source
from workers.reporting.text import counted, estimate, visible
from workers.reporting.verdict import LIMITED, LIMITS, Level

_HERE = Path(__file__).parent
_SIGNS = {Level.negligible: "○", Level.noticeable: "◐", Level.severe: "●", Level.unjudged: "?"}
"""Fuller is worse; the word stands beside it, so that no colour is needed to tell them apart."""


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


def page(source: Source, gallery: Gallery, directory: Path) -> str:
    """Return the page.

    Args:
        source: The report and its tables.
        gallery: Its figures, and those that it cannot have.
        directory: Where the figures' files lie.
    """
    report = source.report
    figures = [
        {
            "drawing": saved,
            "files": saved.files,
            "svg": inline(directory / saved.files[0], saved.name, visible(saved.alt)),
        }
        for saved in gallery.figures
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
            left_out=gallery.left_out,
            ranges=sections.range_by_layer(source),
            over_fp16=sections.over_fp16(source),
            provenance=sections.provenance(report),
            identity=sections.identity(report),
            command=sections.command(report),
        )
    )
