"""`summary.md`: what a pull request or a model card says of the report, in plain Markdown."""

from collections.abc import Sequence
from operator import attrgetter

from service.contracts.report import Report
from service.contracts.warnings import by_code
from workers.reporting.loading import Source
from workers.reporting.markdown import bullets, code, escaped, line, table
from workers.reporting.text import counted, listing
from workers.reporting.topics import errors, outcome, outliers, reproduction
from workers.reporting.topics.records import Grid, Topic, marked
from workers.reporting.verdict import limits_in_words

ROWS = 20
"""Rows of a table; the page and the tables beside it have all."""
ANALYSIS_ONLY = (
    "Analysis only: measured on bitsandbytes' modules, but BitsAndBytesConfig cannot express the settings, so no "
    "from_pretrained loads it."
)
SITES = 3
"""Worst sites named for each scheme."""


def summary(source: Source, topics: Sequence[Topic]) -> str:
    """Return the summary.

    Args:
        source: The report and its tables.
        topics: The sections of the page; their opening sentences are taken over.
    """
    report = source.report
    parts = (
        f"# Headroom: {escaped(report.model.source)}\n",
        *_outcome(report),
        "## What was found\n",
        bullets(dict.fromkeys(topic.lead for topic in topics)),
        *_outlier_dimensions(report),
        *_worst_sites(source),
        *_warnings(report),
        "## Calibration and reproduction\n",
        bullets(f"{label}: {text}" for label, text in _measured(report)),
        *([code(reproduction.command(report))] if report.schemes else []),
    )
    return "\n".join(parts)


def _outcome(report: Report) -> tuple[str, ...]:
    if not report.schemes:
        none = "No scheme was asked for: this report is about the reference alone."
        return (f"{none} {line(outcome.reference(report))}\n",)
    found = outcome.outcomes(report)
    rows = [
        (
            marked(one.name, report.schemes[one.name]),
            "; ".join((one.verdict.level.name, *outcome.doubt(one.verdict))),
            *one.cells,
        )
        for one in found
    ]
    simulated = " Simulated: rounded as the format rounds, multiplied in the model's own type."
    only = f" {ANALYSIS_ONLY}"
    note = f"{outcome.reference(report)} {limits_in_words(report.analysis.verdict)}"
    columns = [one.columns for one in found if one.columns]
    levels = (f"{level.name.capitalize()} effect: {who}." for level, who in outcome.by_level(report))
    return (
        bullets(levels),
        table(("Scheme", "Effect", *outcome.HEAD), rows),
        f"{line(note)}{simulated if any(one.simulated for one in found) else ''}"
        f"{only if any(one.analysis_only for one in found) else ''}\n",
        *((bullets(columns),) if columns else ()),
    )


def _outlier_dimensions(report: Report) -> tuple[str, ...]:
    found = outliers.by_definition(report)
    return ("## Outlier dimensions\n", *_shortened(found)) if found.rows else ()


def _worst_sites(source: Source) -> tuple[str, ...]:
    if not source.report.schemes:
        return ()
    rows = (
        (marked(name, facts), listing((errors.named(site) for site in facts.worst_sites), SITES))
        for name, facts in source.report.schemes.items()
    )
    return (
        "## Errors\n",
        *_shortened(errors.by_scheme(source)),
        "The largest isolated errors, and so the first candidates to leave in 16 bits:\n",
        bullets(f"{name}: {sites or 'none'}." for name, sites in rows),
    )


def _shortened(grid: Grid) -> tuple[str, ...]:
    more = len(grid.rows) - ROWS
    told = f"{grid.caption}{f'; {more:,} more in the report' if more > 0 else ''}."
    return f"{line(told)}\n", table(grid.head, grid.rows[:ROWS])


def _warnings(report: Report) -> tuple[str, ...]:
    if not report.warnings:
        return ()
    told = []
    for kind in by_code(report.warnings, attrgetter("code")):
        for one in kind.first:
            place = f" ({one.where})" if one.where else ""
            advice = f" {one.advice}" if one.advice else ""
            told.append(f"{one.message}{place}{advice} [{kind.code}]")
        if kind.rest:
            told.append(f"{len(kind.rest):,} more in the report [{kind.code}]")
    return ("## Warnings\n", bullets(told))


def _measured(report: Report) -> list[tuple[str, str]]:
    model, calibration = report.model, report.calibration
    revision = f", revision {model.revision}" if model.revision else ""
    return [
        ("Model", f"{model.source}{revision}, {model.architecture}, {counted(model.layers, 'layer')}"),
        ("Model fingerprint", model.fingerprint),
        ("Calibration", reproduction.calibrated(report).rstrip(".")),
        ("Calibration fingerprint", calibration.fingerprint),
        *((("Labeled prompts' fingerprint", report.labelled.fingerprint),) if report.labelled else ()),
        ("Measured", f"{report.created_at:%Y-%m-%d}, job {report.job_id}"),
        ("Software", _software(report)),
    ]


def _software(report: Report) -> str:
    environment = report.environment
    return (
        f"Headroom {report.headroom_version}, definitions {report.definitions_version}, torch {environment.torch}, "
        f"transformers {environment.transformers}, bitsandbytes {environment.bitsandbytes}, Python {environment.python}"
    )
