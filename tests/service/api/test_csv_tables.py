"""Every table of a report comes as CSV with all its rows, and a long one takes no more memory than a short one."""

import csv
import io
import math
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from service.contracts.sections.labelled import labelled_table
from service.contracts.tables import TABLES

SCHEMES = ("int8", "nf4")
KINDS = {**TABLES, "labelled": labelled_table([2021, 7], SCHEMES)}
VALUES = {
    "string": ['plain, "quoted"', "line\nbreak", "", None, "ünïcode"],
    "bool": [True, False, None, True, False],
    "int32": [0, -1, 2**31 - 1, None, 7],
    "int64": [0, -1, 2**63 - 1, None, 7],
    "float32": [0.0, -1.5, float("inf"), None, 1e-7],
    "float64": [0.1, -1e300, float("nan"), None, 1e-7],
}
LONG = """
import pathlib, sys
import pyarrow as pa
from pyarrow import parquet
from service.api.reports import downloads

path = pathlib.Path(sys.argv[1])
part = pa.table({"layer": pa.array(range(100_000), pa.int32()), "value": pa.array([i / 7 for i in range(100_000)])})
with parquet.ParquetWriter(path, part.schema) as writer:
    for _ in range(40):
        writer.write_table(part)
size = 40 * part.nbytes
del part
pool = pa.proxy_memory_pool(pa.default_memory_pool())
pa.set_memory_pool(pool)
written = downloads.write_csv(path)
with written.open("rb") as lines:
    print(sum(1 for _ in lines), pool.max_memory(), size)
written.unlink()
"""


def is_told(field, value, kind):
    """Return whether a field holds a value: nothing for a null, and a number so that it reads back as it was."""
    if value is None:
        return field == ""
    if kind in ("float32", "float64"):
        read, kept = (pa.scalar(float(one), kind).as_py() for one in (field, value))
        return read == kept or (math.isnan(read) and math.isnan(kept))
    return field == (str(value).lower() if kind == "bool" else str(value))


@pytest.mark.parametrize("name", KINDS)
def test_every_table_comes_as_csv_with_every_value(client, world, files, name):
    columns = KINDS[name].columns_for(SCHEMES)
    table = pa.table({column.name: pa.array(VALUES[column.type], column.type) for column in columns})
    content = io.BytesIO()
    parquet.write_table(table, content)
    job = world.submit()
    world.finish(job, {**files, f"tables/{name}.parquet": content.getvalue()})
    response = client.get(f"/v1/reports/{job.id}/tables/{name}.csv")
    assert response.status_code == 200
    head, *rows = csv.reader(io.StringIO(response.content.decode(), newline=""))
    assert head == [column.name for column in columns]
    assert len(rows) == 5
    for position, column in enumerate(columns):
        for field, value in zip((row[position] for row in rows), VALUES[column.type], strict=True):
            assert is_told(field, value, column.type), (column.name, field, value)


def test_a_long_table_goes_through_in_parts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LONG, str(tmp_path / "long.parquet")], capture_output=True, text=True, check=True
    )
    lines, peak, size = map(int, done.stdout.split())
    assert lines == 4_000_001
    assert 0 < peak < size / 4
