"""Variants of the stored example report, on disk and as sides of a comparison."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.comparison.comparable_report import ComparableReport
from service.contracts.report import Report
from service.evaluation.restating import restated
from service.evaluation.scored import COLUMNS

STORED = Path(__file__).parents[2] / "workers" / "reporting" / "stored" / "schema_1_0"

Rows = list[dict[str, Any]]


def copy(directory: Path) -> Path:
    """Copy the example to `directory`, which must not exist."""
    return Path(shutil.copytree(STORED, directory))


def edit(directory: Path, table: str, change: Callable[[Rows], Any]) -> None:
    """Change the rows of a table in place."""
    path = directory / "tables" / f"{table}.parquet"
    before = pq.read_table(path)
    rows = before.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, before.schema), path)


def restate(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change report.json in place."""
    path = directory / "report.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def side(directory: Path, name: str | None = None) -> ComparableReport:
    """Return a report on disk as a side of a comparison."""
    report = Report.model_validate_json((directory / "report.json").read_bytes())
    listed = {table.name for table in report.tables}

    def read(table: str, columns: tuple[str, ...]) -> dict[str, list[Any]] | None:
        path = directory / "tables" / f"{table}.parquet"
        return pq.read_table(path, columns=list(columns)).to_pydict() if table in listed else None

    return ComparableReport(name or directory.name, restated(report, lambda: read("tokens", COLUMNS)), read)
