"""Writes the tables of a report as Parquet, piece by piece, so that none is ever whole in memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from service.contracts.tables import Table

ROW_GROUP = 1 << 16
"""Rows that are written at a time; a group of few rows costs more than they do."""

_ARROW = {"bool": "bool_"} | {name: name for name in ("int32", "int64", "float32", "float64", "string")}
_COUNTING = frozenset({"channel", "dimension", "head", "position", "record"})
"""Columns that mostly count up."""


class TableRows:
    """Rows of one table in memory; columns, their order and their types are the contract's."""

    def __init__(self, table: Table, schemes: Iterable[str]) -> None:
        columns = table.columns_for(schemes)
        self.schema = pa.schema([pa.field(c.name, getattr(pa, _ARROW[c.type])()) for c in columns])
        self._pending: list[pa.Table] = []

    def append(self, columns: Mapping[str, Any]) -> None:
        """Append rows, given as columns of equal length; a NaN is written as null. Every column must be given.

        A column of one value may be given as a `Repeated`.
        """
        arrays = [_array(columns[field.name], field.type) for field in self.schema]
        self.append_table(pa.Table.from_arrays(arrays, schema=self.schema))

    def append_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, given one by one; a key that a row lacks is null."""
        self.append({field.name: [row.get(field.name) for row in rows] for field in self.schema})

    def append_table(self, table: pa.Table) -> None:
        """Append a table that has this one's columns."""
        self._pending.append(table)

    def collected(self) -> pa.Table:
        """Return all rows."""
        return pa.concat_tables(self._pending) if self._pending else self.schema.empty_table()


class TableWriter(TableRows):
    """Writes one table to a Parquet file, piece by piece."""

    def __init__(self, table: Table, schemes: Iterable[str], file: Path) -> None:
        super().__init__(table, schemes)
        self._writer = pq.ParquetWriter(file, self.schema, compression="zstd", **_encodings(self.schema))

    def append_table(self, table: pa.Table) -> None:
        """Append a table that has this one's columns."""
        super().append_table(table)
        if sum(pending.num_rows for pending in self._pending) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is pending, and the file's footer."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(self.collected())
            self._pending.clear()


class Repeated(NamedTuple):
    """A column that holds one value in every row."""

    value: int | str
    rows: int


def _array(column: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(column, Repeated):
        return pa.repeat(pa.scalar(column.value, kind), column.rows)
    return pa.array(column, type=kind, from_pandas=True)


def _encodings(schema: Any) -> dict[str, Any]:
    """Return how the columns are laid out, so that zstd finds what they have in common.

    The bytes of a float stand apart: exponents are much alike, last digits are not. A column that counts up is stored
    as its steps.
    """
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    steps = [field.name for field in schema if field.name in _COUNTING]
    return {
        "use_dictionary": [field.name for field in schema if field.name not in (*floats, *steps)],
        "use_byte_stream_split": floats,
        "column_encoding": dict.fromkeys(steps, "DELTA_BINARY_PACKED"),
    }


@contextmanager
def table_writers(directory: Path, tables: Iterable[Table], schemes: Sequence[str]) -> Iterator[dict[str, TableWriter]]:
    """Open writers for these tables, by name, in a new directory; the files are whole when the context ends."""
    directory.mkdir()
    with ExitStack() as stack:
        writers = {}
        for table in tables:
            writers[table.name] = TableWriter(table, schemes, directory / f"{table.name}.parquet")
            stack.callback(writers[table.name].close)
        yield writers
