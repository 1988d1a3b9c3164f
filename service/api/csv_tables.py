"""A table as CSV, made from the stored Parquet when somebody asks for it."""

import hashlib
import os
import tempfile
from pathlib import Path

import pyarrow
from pyarrow import csv, parquet


def entity_tag(parquet_sha256: str) -> str:
    """Return the strong tag of a table's CSV: the same Parquet and the same writer give the same bytes."""
    source = f"csv of {parquet_sha256} by pyarrow {pyarrow.__version__}"
    return f'"{hashlib.sha256(source.encode()).hexdigest()}"'


def write(table: Path) -> Path:
    """Write the Parquet file `table` as CSV into a temporary file, and return its path; the caller deletes it.

    Row groups go through one by one, so memory does not grow with the table. A null is an empty field.
    """
    handle, name = tempfile.mkstemp(prefix="headroom-", suffix=".csv")
    try:
        with (
            os.fdopen(handle, "wb") as file,
            parquet.ParquetFile(table) as source,
            csv.CSVWriter(file, source.schema_arrow) as writer,
        ):
            for batch in source.iter_batches():
                writer.write_batch(batch)
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)
