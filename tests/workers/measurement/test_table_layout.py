"""How tables are laid out on disk: what is cut off, what is not, and that every value comes back."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contracts.tables import TABLES
from workers.measurement.results.layer_rows import shortened
from workers.measurement.runtime.table_writer import table_writers


@given(st.lists(st.floats(allow_subnormal=False), min_size=1, max_size=50))
def test_shortened_values_are_within_three_parts_in_ten_billion(values):
    exact = np.array(values)
    found = shortened(exact)
    finite = np.isfinite(exact)
    assert (np.abs(found[finite] - exact[finite]) <= 3e-10 * np.abs(exact[finite])).all()
    np.testing.assert_array_equal(found[~finite], exact[~finite])
    assert not (found.view(np.uint64) & 0xFFFFF).any()
    np.testing.assert_array_equal(shortened(found), found)


def test_every_value_comes_back_whatever_its_layout(tmp_path):
    random = np.random.default_rng(0)
    width = 1000
    columns = {
        "layer": np.zeros(width, int), "component": ["block"] * width, "port": ["output"] * width,
        "channel": np.arange(width), "over_threshold": random.integers(9, size=width),
        **{name: random.normal(size=width) for name in ("min", "max", "abs_max", "mean", "variance")},
    }  # fmt: skip
    columns["mean"][5] = np.nan
    with table_writers(tmp_path / "tables", [TABLES["channels"]], []) as writers:
        writers["channels"].append(columns)
    table = pq.read_table(tmp_path / "tables" / "channels.parquet")
    assert table.column_names == [column.name for column in TABLES["channels"].columns]
    assert table["mean"][5].as_py() is None
    for name in ("channel", "over_threshold", "variance"):
        assert table[name].to_pylist() == columns[name].tolist()
    assert table["min"].to_numpy() == pytest.approx(columns["min"].astype(np.float32), rel=0)
    assert set(table["component"].to_pylist()) == {"block"}
    group = pq.ParquetFile(tmp_path / "tables" / "channels.parquet").metadata.row_group(0)
    encodings = {group.column(i).path_in_schema: group.column(i).encodings for i in range(group.num_columns)}
    assert all("BYTE_STREAM_SPLIT" in encodings[name] for name in ("min", "max", "abs_max", "mean", "variance"))
    assert "DELTA_BINARY_PACKED" in encodings["channel"]
    assert "RLE_DICTIONARY" in encodings["component"]
