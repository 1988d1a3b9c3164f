"""Reading knows the columns that a report's own schemes and labeled dimensions bring."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.errors import ReportUnreadable
from workers.reporting.loading import load


def test_columns_of_schemes_and_dimensions_are_read(make_report, rows_of):
    directory = make_report(layers=3, heads=2)
    tables = load(directory).tables
    for table, column in (("heads", "sqnr_db_nf4"), ("labelled", "int8_14"), ("labelled", "reference_201")):
        expected = [row[column] for row in rows_of(directory, table)]
        np.testing.assert_array_equal(tables[table][column], np.array(expected, tables[table][column].dtype))


@pytest.mark.parametrize(("table", "column"), [("heads", "sqnr_db_nf4"), ("labelled", "int8_14")])
def test_a_missing_one_is_named_before_anything_is_drawn(make_report, table, column):
    directory = make_report()
    path = directory / "tables" / f"{table}.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(ReportUnreadable, match=rf"tables/{table}\.parquet: column '{column}' is missing; found "):
        load(directory)


def test_a_scheme_less_report_needs_no_scheme_columns(make_report):
    assert "sqnr_db_nf4" not in load(make_report(schemes=())).tables["heads"]


def test_true_and_false_cannot_be_null(make_report):
    directory = make_report(labelled=9)
    path = directory / "tables" / "labelled.parquet"
    table = pq.read_table(path)
    labels = pa.array([None, None, *table["label"].to_pylist()[2:]], pa.bool_())
    pq.write_table(table.set_column(1, "label", labels), path)
    with pytest.raises(ReportUnreadable, match=r"labelled\.parquet: column 'label' is null in 2 rows"):
        load(directory).truths("labelled", "label")
