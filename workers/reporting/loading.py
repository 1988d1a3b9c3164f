"""Reads a report from disk, and reports what is wrong with one that cannot be drawn.

A table becomes a mapping from column name to a NumPy array; a null becomes NaN, so that it is never mistaken for
zero. Every message names the file, and the column or key.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.contracts.harm.tables import HARM_TABLES
from service.contracts.report import Report
from service.contracts.sections.labelled import labelled_table
from service.contracts.tables import TABLES, Column
from service.errors import ReportUnreadable
from service.evaluation.stored_report import read_report

Columns = Mapping[str, NDArray[Any]]
"""The columns of a table by name; all of one length."""

_SAFE_NAME = re.compile(r"[a-z0-9_-]+")
_NAMES = frozenset({"scheme", "component", "port", "mode", "definition"})
"""Columns that say what a row is about; never null."""
_TABLE_FILE = re.compile(r"tables/[a-z0-9_]+\.parquet")


class TableAbsent(ReportUnreadable):
    """A report was made without a table: by an earlier version, or because nothing was asked for that fills it."""


class Tables:
    """The tables of one report, read at first use."""

    def __init__(self, directory: Path, report: Report) -> None:
        self._directory = directory
        self._contract = contract(report)
        self._listed = frozenset(table.name for table in report.tables)
        self._schema_version = report.schema_version
        self._read: dict[str, Columns] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the report has the table."""
        return name in self._listed

    def check(self, name: str) -> None:
        """Make sure that the table is there, is whole and has its columns, without reading its rows."""
        self._open(name)

    def __getitem__(self, name: str) -> Columns:
        """Return the columns that the contract gives the table `name`.

        A column that is newer than the report holds nulls alone.

        Raises:
            TableAbsent: report.json does not list the table.
            ReportUnreadable: the file is missing or damaged, or a column is missing or of another type.
        """
        if name not in self._listed:
            raise TableAbsent(f"the report, of schema version {self._schema_version}, has no table {name!r}")
        if name not in self._read:
            self._read[name] = self._columns(name)
        return self._read[name]

    def where(self, name: str, **equal: str) -> Columns:
        """Return the rows in which every named column equals the given text; the others are never all in memory.

        Raises:
            As for the whole table.
        """
        if name not in self._listed:
            return self[name]
        return self._columns(name, [(column, "==", text) for column, text in equal.items()])

    def _open(self, name: str) -> Any:
        path = self._directory / f"{name}.parquet"
        where = f"tables/{path.name}"
        if not path.is_file():
            raise ReportUnreadable(f"{where}: the file is missing")
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise ReportUnreadable(f"{where}: not a whole Parquet file: {error}") from error
        present = file.schema_arrow.names
        for column in self._contract.get(name, ()):
            if column.name not in present and not self._predates(column):
                raise ReportUnreadable(f"{where}: column {column.name!r} is missing; found {', '.join(present)}")
        return file

    def _predates(self, column: Column) -> bool:
        """Whether the report is older than the column."""
        return _minor(self._schema_version) < _minor(column.since)

    def _columns(self, name: str, equal: list[tuple[str, str, str]] | None = None) -> Columns:
        columns = self._contract[name]
        with self._open(name) as file:
            present = [column.name for column in columns if column.name in file.schema_arrow.names]
            try:
                if equal is None:
                    table = file.read(columns=present)
                else:
                    table = pq.read_table(self._directory / f"{name}.parquet", columns=present, filters=equal)
            except (pa.ArrowException, OSError) as error:
                raise ReportUnreadable(f"tables/{name}.parquet: not a whole Parquet file: {error}") from error
        return {column.name: _array(table, name, column) for column in columns}


def contract(report: Report) -> dict[str, tuple[Column, ...]]:
    """Return the columns that each table of `report` has, those of its schemes and labeled dimensions among them."""
    columns = {name: table.columns_for(report.schemes) for name, table in (TABLES | HARM_TABLES).items()}
    if report.labelled is not None:
        chosen = [one.dimension for one in report.labelled.dimensions]
        columns["labelled"] = labelled_table(chosen, report.schemes).columns
    return columns


def _minor(schema_version: str) -> int:
    """Return the part of a version after its major; 0 where it has none."""
    _, _, minor = schema_version.partition(".")
    return int(minor) if minor.isdecimal() else 0


def _array(table: Any, name: str, column: Column) -> NDArray[Any]:
    wanted = pa.type_for_alias(column.type)
    if column.name not in table.column_names:
        return _to_numpy(pa.chunked_array([pa.nulls(table.num_rows, wanted)]))
    values = table.column(column.name)
    try:
        values = values.cast(wanted)
    except pa.ArrowException as error:
        raise ReportUnreadable(
            f"tables/{name}.parquet: column {column.name!r} is {values.type}, expected {column.type}"
        ) from error
    if column.name in _NAMES and values.null_count:
        raise ReportUnreadable(
            f"tables/{name}.parquet: column {column.name!r} is null in {values.null_count} rows; every row has a value"
        )
    return _to_numpy(values)


def _to_numpy(values: Any) -> NDArray[Any]:
    """Return a column as an array; nulls become NaN, in a column of strings None."""
    if pa.types.is_boolean(values.type) and values.null_count:
        values = values.cast(pa.int8())
    if pa.types.is_string(values.type):
        # Few distinct strings stand for many rows: each is made once, and the rows share it.
        encoded = values.combine_chunks().dictionary_encode()
        distinct = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
        strings: NDArray[Any] = distinct[encoded.indices.fill_null(-1).to_numpy()]
        return strings
    array: NDArray[Any] = values.to_numpy()
    return array


def select(columns: Columns, **equal: object) -> Columns:
    """Return the rows in which every named column equals the given value."""
    keep = np.ones(len(next(iter(columns.values()))), dtype=bool)
    for name, value in equal.items():
        keep &= np.asarray(columns[name] == value, dtype=bool)
    return {name: values[keep] for name, values in columns.items()}


@dataclass(frozen=True)
class Source:
    """The report and its tables, as figures and pages read them."""

    directory: Path
    """Where report.json lies."""
    report: Report
    density: bool = False
    """Whether histograms of labeled prompts show densities instead of counts."""

    @cached_property
    def tables(self) -> Tables:
        """The report's tables."""
        return Tables(self.directory / "tables", self.report)

    def layers_of(self, table: str, columns: Columns) -> NDArray[np.int64]:
        """Return the `layer` column as integers.

        Raises:
            ReportUnreadable: it names a layer that the model does not have.
        """
        layers = columns["layer"]
        depth = self.report.model.layers
        bad = layers[~((layers >= 0) & (layers < depth))]
        if bad.size:
            raise ReportUnreadable(
                f"tables/{table}.parquet: column 'layer' holds {bad[0]:g}; report.json gives the model {depth} layers"
            )
        return layers.astype(np.int64)

    def stream_errors(self, scheme: str) -> tuple[NDArray[np.int64], Columns]:
        """Return the accumulated errors of a scheme's residual stream: the layers, and the rows of `errors`.

        Raises:
            TableAbsent: the report has no table `errors`.
            ReportUnreadable: the table is damaged.
        """
        rows = select(self.tables["errors"], scheme=scheme, mode="accumulated", component="block", port="output")
        return self.layers_of("errors", rows), rows

    def truths(self, table: str, column: str) -> NDArray[np.bool_]:
        """Return a column of true and false.

        Raises:
            ReportUnreadable: it holds a null.
        """
        values = self.tables[table][column]
        if values.dtype != np.bool_:  # a column with nulls is read as numbers
            absent = int(np.isnan(values).sum())
            raise ReportUnreadable(
                f"tables/{table}.parquet: column {column!r} is null in {absent} rows; true and false are allowed"
            )
        return values


def load(directory: Path, *, density: bool = False) -> Source:
    """Read the report in `directory` and check the tables that it lists; `density` says how it will be drawn.

    One of an earlier version has the errors and verdicts that today's would have.

    Raises:
        ReportUnreadable: report.json or a table is missing, damaged, or of another major schema version.
    """
    report = read_report(directory / "report.json", directory / "tables" / "tokens.parquet")
    _check_names(report)
    source = Source(directory, report, density)
    for table in report.tables:
        source.tables.check(table.name)
    return source


def _check_names(report: Report) -> None:
    """Refuse names that would become a path outside the report, or a link to anywhere else."""
    for scheme in report.schemes:
        if not _SAFE_NAME.fullmatch(scheme):
            raise ReportUnreadable(f"report.json: schemes: {scheme!r} is not allowed; a-z, 0-9, - and _ are")
    for table in report.tables:
        for file in (f"tables/{table.name}.parquet", *table.files):
            if not _TABLE_FILE.fullmatch(file):
                raise ReportUnreadable(f"report.json: tables: {file!r} is not allowed; tables/NAME.parquet is")
