"""Shows the outcome of a run on a terminal."""

from rich.console import Console
from rich.table import Table

from service.cli.gating import figures
from service.cli.gating.outcome import State, states
from service.cli.output import line
from service.contracts.audits.audit import AuditRun

_STYLES: dict[State, str] = {
    "passed": "green",
    "failed": "bold red",
    "unconfirmed": "yellow",
    "warned": "yellow",
    "not judged": "yellow",
}


def show(console: Console, title: str, run: AuditRun) -> None:
    """Print every limit with its figures, the reasons, and the verdict.

    Args:
        console: Where to.
        title: The model, or the audit's name.
        run: One that has ended.
    """
    if run.findings:
        console.print(_table(run))
    for reason in run.reasons:
        line(console, reason)
    if run.report_id is not None:
        line(console, f"Measured in report {run.report_id}")
    line(console, f"Verdict on {title}: {run.verdict}")


def _table(run: AuditRun) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "limit", "value (95% interval)", "baseline", "bound"):
        table.add_column(column, overflow="fold")
    for finding, state in states(run):
        cells = (
            finding.limit,
            figures.value(finding),
            figures.baseline(finding.baseline),
            figures.bound(finding.limit, finding.bound),
        )
        table.add_row(f"[{_STYLES[state]}]{state}[/]", *cells)
    return table
