"""The activation profile shows the table's vector, whole, and names exactly its largest values."""

from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Annotation, Text

from service.errors import ReportUnreadable
from workers.reporting.drawing.figure import NothingToDraw
from workers.reporting.figures import activation_profile
from workers.reporting.figures.activation_profile import thin


@pytest.fixture
def draw(draw_with):
    return partial(draw_with, activation_profile)


def line(drawing, gid="activations"):
    return next(drawn for drawn in drawing.figure.axes[0].get_lines() if drawn.get_gid() == gid)


def labels(drawing):
    return [text for text in drawing.figure.axes[0].texts if isinstance(text, Annotation)]


def named(drawing):
    """(index, value) as the labels say it."""
    lines = [label.get_text().split("\n") for label in labels(drawing)]
    return {(int(index.removeprefix("index ")), float(value)) for index, value in lines}


def five_largest(rows):
    ranked = sorted(rows, key=lambda row: -abs(row["value"]))[:5]
    return {(row["dimension"], row["value"]) for row in ranked}


def test_the_line_has_one_point_for_each_dimension(make_report, draw, rows_of):
    report = make_report(hidden_size=256)
    drawn = line(draw(report)["activation_profile"])
    rows = rows_of(report, "profile")
    assert len(rows) == 256
    assert drawn.get_xdata().tolist() == [row["dimension"] for row in rows]
    assert drawn.get_ydata().tolist() == [row["value"] for row in rows]


def test_words_are_those_of_the_contract(make_report, draw):
    axes = draw(make_report())["activation_profile"].figure.axes[0]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (
        "Neuron Activation Distribution",
        "Neuron Indexes",
        "Neuron Activations",
    )


@pytest.mark.parametrize("size", [256, 8192])
def test_the_labels_are_the_largest_values_of_the_table(make_report, draw, rows_of, size):
    report = make_report(hidden_size=size)
    exact = {(index, float(np.float32(value))) for index, value in five_largest(rows_of(report, "profile"))}
    shown = {(index, float(np.float32(value))) for index, value in named(draw(report)["activation_profile"])}
    assert shown == exact


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("first", [0, 120, 251])
def test_labels_never_overlap_each_other_or_the_data(make_report, draw, edit_table, sign, first):
    report = make_report(hidden_size=256, outliers=0)

    def raise_neighbors(rows):
        for step in range(5):
            rows[first + step]["value"] = sign * (1000.125 + step)

    edit_table(report, "profile", raise_neighbors)
    drawing = draw(report)["activation_profile"]
    axes = drawing.figure.axes[0]
    boxes = [Text.get_window_extent(label) for label in labels(drawing)]
    assert len(boxes) == 5
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes)
    data = axes.transData.transform(np.column_stack(line(drawing).get_data()))
    for box in boxes:
        inside = (data[:, 0] > box.x0) & (data[:, 0] < box.x1) & (data[:, 1] > box.y0) & (data[:, 1] < box.y1)
        assert not inside.any()


def test_a_wide_vector_keeps_the_extremes_of_every_pixel(make_report, draw, rows_of):
    report = make_report(hidden_size=8192)
    values = np.array([row["value"] for row in rows_of(report, "profile")], dtype=np.float32)
    drawing = draw(report)["activation_profile"]
    axes, drawn = drawing.figure.axes[0], line(drawing)
    kept = drawn.get_xdata()
    assert len(kept) < len(values)
    np.testing.assert_array_equal(drawn.get_ydata(), values[kept])
    low, high = axes.get_xlim()
    pixels = round(axes.get_window_extent().width)
    columns = [int((index - low) / (high - low) * pixels) for index in range(8192)]
    for pixel in set(columns):
        members = [index for index in range(8192) if columns[index] == pixel]
        shown = [index for index in members if index in set(kept[(kept >= members[0]) & (kept <= members[-1])])]
        assert values[shown].max() == values[members].max()
        assert values[shown].min() == values[members].min()


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0, np.nan, np.inf]), min_size=1, max_size=120))
def test_thinning_keeps_order_extremes_and_gaps(values):
    vector = np.array(values, dtype=np.float32)
    kept = thin(vector, (-0.5, len(values) - 0.5), 7)
    assert (np.diff(kept) > 0).all()
    finite = np.isfinite(vector)
    assert set(np.flatnonzero(~finite)) <= set(kept)
    column = [int((index + 0.5) / len(values) * 7) for index in range(len(values))]
    for pixel in set(column):
        members = [index for index in range(len(values)) if column[index] == pixel and finite[index]]
        shown = [index for index in members if index in kept]
        if members:
            assert (vector[shown].min(), vector[shown].max()) == (vector[members].min(), vector[members].max())
            assert len(values) <= 14 or len(shown) <= 2


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_the_axes_cover_the_data_and_the_shade(make_report, draw, edit_table, scale):
    report = make_report()
    edit_table(report, "profile", lambda rows: [row.update(value=row["value"] * scale) for row in rows])
    drawing = draw(report)["activation_profile"]
    (left, right), (bottom, top) = drawing.figure.axes[0].get_xlim(), drawing.figure.axes[0].get_ylim()
    x, y = line(drawing).get_data()
    assert left <= x.min()
    assert x.max() <= right
    assert bottom <= y.min()
    assert y.max() <= top
    shade = drawing.figure.axes[0].patches[0].get_extents().transformed(drawing.figure.axes[0].transData.inverted())
    assert bottom <= shade.y0
    assert shade.y1 <= top


def test_the_shade_is_the_median_give_or_take_p99(make_report, draw, rows_of):
    report = make_report()
    values = np.array([row["value"] for row in rows_of(report, "profile")])
    shade = draw(report)["activation_profile"].figure.axes[0].patches[0]
    reach = np.quantile(np.abs(values), 0.99)
    np.testing.assert_allclose(shade.get_y(), np.median(values) - reach, rtol=1e-6)
    np.testing.assert_allclose(shade.get_height(), 2 * reach, rtol=1e-6)


def test_the_caption_says_what_a_neuron_is_and_which_definitions_are_met(make_report, draw, rows_of):
    report = make_report(token="Ġthe\n")
    caption = draw(report)["activation_profile"].caption
    for part in ("after layer 7", "“Ġthe\\n”", "position 17", "256 hidden dimensions", "max_to_median"):
        assert part in caption
    flagged = {row["dimension"] for row in rows_of(report, "outlier_dimensions")}
    expected = {}
    for index, _ in sorted(five_largest(rows_of(report, "profile"))):
        expected.setdefault("llm_int8" if index in flagged else "no definition", []).append(index)
    assert met(caption) == expected


def met(caption):
    """The labeled dimensions by definition, as the caption states them."""
    listed = caption.partition("Labeled dimensions by the definitions they meet: ")[2].partition(". ")[0]
    pairs = (part.split(": ") for part in listed.split("; "))
    return {name: [int(dimension) for dimension in dimensions.split(", ")] for name, dimensions in pairs}


def test_a_definition_of_one_layer_counts_at_the_profiles_layer_only(make_report, draw, edit_table, rows_of):
    report = make_report(layers=8)
    peak = max(rows_of(report, "profile"), key=lambda row: abs(row["value"]))["dimension"]

    def per_layer(rows):
        rows.append(rows[0] | {"definition": "variance", "layer": 7, "dimension": peak})
        rows.append(rows[0] | {"definition": "median_quantile", "layer": 2, "dimension": peak})

    edit_table(report, "outlier_dimensions", per_layer)
    caption = draw(report)["activation_profile"].caption
    assert met(caption)["variance"] == [peak]
    assert peak in met(caption)["llm_int8"]
    assert "median_quantile" not in caption


def test_values_that_are_not_finite_are_counted_and_leave_a_gap(make_report, draw, edit_table):
    report = make_report()

    def break_two(rows):
        rows[3]["value"], rows[9]["value"] = float("nan"), float("inf")

    edit_table(report, "profile", break_two)
    drawing = draw(report)["activation_profile"]
    assert "Not drawn: 2 values that are not finite." in drawing.caption
    assert not {3, 9} & {index for index, _ in named(drawing)}


def test_of_no_finite_value_there_is_nothing_to_draw(make_report, draw, edit_table):
    report = make_report()
    edit_table(report, "profile", lambda rows: [row.update(value=float("nan")) for row in rows])
    with pytest.raises(NothingToDraw, match=r"no activation in tables/profile\.parquet is finite"):
        draw(report)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_fewer_dimensions_than_labels(make_report, draw, size):
    assert len(labels(draw(make_report(hidden_size=size))["activation_profile"])) == size


def test_a_vector_of_another_size_is_refused(make_report, draw, edit_table):
    report = make_report()
    edit_table(report, "profile", lambda rows: rows.pop())
    with pytest.raises(ReportUnreadable, match=r"profile\.parquet: column 'dimension'.*256.*255 rows"):
        draw(report)
