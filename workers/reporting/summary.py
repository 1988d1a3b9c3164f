"""`summary.md`: the report in plain Markdown, for a pull request or a model card."""

from collections.abc import Sequence

from service.contracts.report import Report
from service.evaluation import decision
from service.evaluation.next_steps import next_steps
from service.evaluation.shown_warnings import by_code, most_important
from workers.reporting.loading import Source
from workers.reporting.markdown import bullets, code, escaped, line, table
from workers.reporting.text import counted, listing, short_name
from workers.reporting.topics import errors, outcome, outliers, reproduction
from workers.reporting.topics.records import Grid, Topic, marked
from workers.reporting.verdict import limits_in_words

TABLE_ROWS = 20
"""Rows of a table; the report's tables have all."""
SIMULATED = "Simulated: values are rounded to the format and multiplied in the model's own type."
ANALYSIS_ONLY = "Analysis only: BitsAndBytesConfig cannot express these settings, so from_pretrained cannot load them."
LISTED_SITES = 3
"""Worst sites named for each scheme."""


def summary(source: Source, topics: Sequence[Topic]) -> str:
    """Return the summary.

    Args:
        source: The report and its tables.
        topics: The sections of the page; their opening sentences are taken over.
    """
    report = source.report
    parts = (
        f"# Headroom: {escaped(short_name(report.model.source))}\n",
        *_decision(report),
        *_outcome(report),
        "## Next steps\n",
        bullets(next_steps(report)),
        *_warnings(report),
        *_values(report),
        "## Findings\n",
        bullets(dict.fromkeys(topic.lead for topic in topics)),
        *_outlier_dimensions(report),
        *_worst_sites(source),
        "## Calibration and reproduction\n",
        bullets(f"{label}: {text}" for label, text in _measured(report)),
        *([code(reproduction.command(report))] if report.schemes else []),
    )
    return "\n".join(parts)


def _decision(report: Report) -> tuple[str, ...]:
    """Return what to ship, and the configuration to paste; nothing without a recommendation."""
    sentences, shipped = decision.decision(report), decision.configuration(report)
    if not sentences:
        return ()
    return (
        "## Decision\n",
        *(f"{line(sentence)}\n" for sentence in sentences),
        *(() if shipped is None else (code(decision.as_python(shipped[1])),)),
    )


def _outcome(report: Report) -> tuple[str, ...]:
    """Return the verdict on every scheme with its reasons."""
    if not report.schemes:
        return ("No scheme was measured. This report describes the unquantized model only.\n",)
    levels = (f"{level.name.capitalize()} effect: {who}." for level, who in outcome.by_level(report))
    reasons = [
        f"{marked(one.name, report.schemes[one.name])}: {reason}"
        for one in outcome.outcomes(report)
        for reason in (*one.verdict.reasons, *filter(None, [one.verdict.unsettled]))
    ]
    return "## Verdict\n", bullets(levels), "## Reasons\n", bullets(reasons)


def _values(report: Report) -> tuple[str, ...]:
    """Return the table of the schemes, and notes on it."""
    if not report.schemes:
        return ("## Reference\n", f"{line(outcome.reference(report))}\n")
    schemes = outcome.outcomes(report)
    rows = [
        (
            marked(one.name, report.schemes[one.name]),
            "; ".join((one.verdict.level.name, *outcome.doubt(one.verdict))),
            *one.cells,
        )
        for one in schemes
    ]
    notes = [
        outcome.reference(report),
        limits_in_words(report.analysis.verdict),
        *([SIMULATED] if any(one.simulated for one in schemes) else []),
        *([ANALYSIS_ONLY] if any(one.analysis_only for one in schemes) else []),
    ]
    details = [f"{one.name}: {one.not_quantised}" for one in schemes if one.not_quantised]
    return (
        "## Schemes\n",
        table(("Scheme", "Effect", *outcome.HEAD), rows),
        f"{line(' '.join(notes))}\n",
        *((bullets(details),) if details else ()),
    )


def _outlier_dimensions(report: Report) -> tuple[str, ...]:
    grid = outliers.by_definition(report)
    return ("## Outlier dimensions\n", *_shortened(grid)) if grid.rows else ()


def _worst_sites(source: Source) -> tuple[str, ...]:
    if not source.report.schemes:
        return ()
    rows = (
        (marked(name, facts), listing((errors.named(site) for site in facts.worst_sites), LISTED_SITES))
        for name, facts in source.report.schemes.items()
    )
    return (
        "## Errors\n",
        *_shortened(errors.by_scheme(source)),
        "Largest isolated errors:\n",
        bullets(f"{name}: {sites or 'none'}." for name, sites in rows),
    )


def _shortened(grid: Grid) -> tuple[str, ...]:
    more = len(grid.rows) - TABLE_ROWS
    cut = f" {more:,} more rows in the report." if more > 0 else ""
    return f"{line(grid.caption.rstrip('.'))}.{cut}\n", table(grid.head, grid.rows[:TABLE_ROWS])


def _warnings(report: Report) -> tuple[str, ...]:
    if not report.warnings:
        return ()
    first, others = most_important(report.warnings)
    items = []
    for same in by_code([*first, *others]):
        for warning in same.shown:
            place = f" ({warning.where})" if warning.where else ""
            stop = "" if warning.message.endswith(".") and not place else "."
            advice = f"{stop} {warning.advice}" if warning.advice else ""
            items.append(f"{warning.message}{place}{advice} [{same.code}]")
        if same.rest:
            items.append(f"{len(same.rest):,} more in the report [{same.code}]")
    return ("## Warnings\n", bullets(items))


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
