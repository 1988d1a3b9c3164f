"""Reads stored reports for whoever shows them without drawing: report.json, and the table that errors follow from."""

from pathlib import Path

from pyarrow import ArrowException, parquet

from service.contracts.report import Report
from service.evaluation.restating import restated
from service.evaluation.scored import COLUMNS, Rows


def read_report(report: Path, tokens: Path | None) -> Report:
    """Return a report, with the errors and verdicts that today's have.

    Args:
        report: Its report.json.
        tokens: Its table `tokens`; None where it has none. One that cannot be read is as good as none.

    Raises ValueError for what is no report, and OSError.
    """
    return restated(Report.model_validate_json(report.read_bytes(), extra="allow"), lambda: _scored(tokens))


def _scored(tokens: Path | None) -> Rows | None:
    if tokens is None:
        return None
    try:
        rows: Rows = parquet.read_table(tokens, columns=list(COLUMNS)).to_pydict()
    except (ArrowException, OSError, ValueError):
        return None
    return rows if all(column in rows for column in COLUMNS) else None
