"""The growth figure's lines are the table's rows, and what has no number is shown as such."""

from functools import partial
from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text

from service.contracts.schemes import SCHEMES
from service.errors import ReportUnreadable
from workers.reporting.figures import error_growth


@pytest.fixture
def draw(draw_with):
    return partial(draw_with, error_growth)


def lines(drawing):
    return {
        line.get_gid(): line for axes in drawing.figure.axes for line in axes.get_lines() if line.get_gid() != "exact"
    }


def exact_marks(axes):
    return sorted(int(x) for line in axes.get_lines() if line.get_gid() == "exact" for x in line.get_xdata())


def stream(rows, scheme):
    return {
        row["layer"]: row["sqnr_db"]
        for row in rows
        if (row["scheme"], row["mode"], row["component"], row["port"]) == (scheme, "accumulated", "block", "output")
    }


def worst(rows, scheme, layer):
    return max(
        row["relative_l2"]
        for row in rows
        if (row["scheme"], row["mode"], row["layer"]) == (scheme, "isolated", layer) and row["component"] != "block"
    )


@pytest.mark.parametrize("layers", [1, 8, 80])
def test_lines_are_the_tables_rows(make_report, draw, rows_of, layers):
    report = make_report(layers=layers)
    rows, drawn = rows_of(report, "errors"), lines(draw(report)["error_growth"])
    for scheme in ("int8", "nf4"):
        expected = stream(rows, scheme)
        assert drawn[f"sqnr_{scheme}"].get_xdata().tolist() == list(range(layers))
        assert drawn[f"sqnr_{scheme}"].get_ydata().tolist() == [expected[layer] for layer in range(layers)]
        below = [worst(rows, scheme, layer) for layer in range(layers)]
        assert drawn[f"worst_{scheme}"].get_ydata().tolist() == below


@pytest.mark.parametrize(("column", "panel", "said"), [("sqnr_db", 0, "no SQNR"), ("relative_l2", 1, "no isolated")])
def test_a_column_without_a_value_is_told(make_report, draw, edit_table, column, panel, said):
    report = make_report()
    edit_table(report, "errors", lambda rows: [row.update({column: None}) for row in rows])
    axes = draw(report)["error_growth"].figure.axes
    assert [any(said in text.get_text() for text in one.texts) for one in axes] == [panel == 0, panel == 1]
    assert [any(patch.get_hatch() for patch in one.patches) for one in axes] == [panel == 0, panel == 1]


def test_isolated_errors_of_blocks_are_not_taken_for_a_component(make_report, draw, edit_table):
    report = make_report()

    def add_block(rows):
        rows.append(rows[0] | {"component": "block", "mode": "isolated", "relative_l2": 99.0})

    edit_table(report, "errors", add_block)
    assert lines(draw(report)["error_growth"])["worst_int8"].get_ydata().max() < 1


def test_axes_cover_the_data_and_say_what_they_are(make_report, draw):
    drawing = draw(make_report(layers=12))["error_growth"]
    upper, lower = drawing.figure.axes
    assert upper.get_ylabel() == "SQNR at block.output, dB"
    assert "relative_l2" in lower.get_ylabel()
    assert lower.get_yscale() == "log"
    assert lower.get_xlabel() == "Layer"
    for axes in (upper, lower):
        (bottom, top), (left, right) = axes.get_ylim(), axes.get_xlim()
        for line in axes.get_lines():
            assert bottom <= np.nanmin(line.get_ydata())
            assert np.nanmax(line.get_ydata()) <= top
            assert left <= 0
            assert right >= 11


def test_every_line_carries_its_schemes_name_even_where_lines_meet(make_report, draw, edit_table):
    report = make_report()

    def same(rows):
        for row in rows:
            if row["component"] == "block":
                row["sqnr_db"] = 20.0

    edit_table(report, "errors", same)
    upper = draw(report)["error_growth"].figure.axes[0]
    names = {text.get_text(): Text.get_window_extent(text) for text in upper.texts}
    assert set(names) == {"int8", "nf4"}
    assert not names["int8"].overlaps(names["nf4"])


def test_the_worst_component_of_all_is_named(make_report, draw, rows_of):
    report = make_report()
    rows = [row for row in rows_of(report, "errors") if row["mode"] == "isolated" and row["scheme"] == "nf4"]
    expected = max(rows, key=lambda row: row["relative_l2"])
    drawing = draw(report)["error_growth"]
    assert f"{expected['component']}, layer {expected['layer']}" == drawing.figure.axes[1].texts[1].get_text()
    ring = lines(drawing)["ring_nf4"]
    assert (ring.get_xdata().tolist(), ring.get_ydata().tolist()) == ([expected["layer"]], [expected["relative_l2"]])


@pytest.mark.parametrize("layers", [8, 80])
def test_all_schemes_at_once_are_told_apart(make_report, draw, layers):
    report = make_report(layers=layers, schemes=tuple(SCHEMES), exact_layers=2, labelled=0)
    drawing = draw(report)["error_growth"]
    drawn = lines(drawing)
    looks = [drawn[f"sqnr_{scheme}"] for scheme in SCHEMES]
    assert len({line.get_marker() for line in looks}) == len(SCHEMES)
    assert len({line.get_color() for line in looks}) == len(SCHEMES)
    for axes, count in zip(drawing.figure.axes, (len(SCHEMES) + 1, len(SCHEMES)), strict=True):
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        assert len(boxes) == count
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        assert all(box.x1 <= drawing.figure.bbox.x1 and box.y0 >= 0 for box in boxes)
    names = [
        text.get_text().replace(" (sim.)", "") for text in drawing.figure.axes[0].texts if text.get_text() != "exact"
    ]
    assert names == list(SCHEMES)


def test_exact_layers_of_several_schemes_do_not_cover_each_other(make_report, draw):
    axes = draw(make_report(schemes=tuple(SCHEMES), exact_layers=3, labelled=0))["error_growth"].figure.axes[0]
    levels = [line.get_ydata()[0] for line in axes.get_lines() if line.get_gid() == "exact"]
    assert len(set(levels)) == len(SCHEMES)
    assert max(levels) < axes.get_ylim()[1]
    assert max(axes.get_yticks()) < min(levels)


def test_simulated_schemes_are_marked(make_report, draw):
    drawing = draw(make_report(schemes=("int8", "w8a8-tensor"), labelled=0))["error_growth"]
    assert [text.get_text() for text in drawing.figure.axes[0].texts] == ["int8", "w8a8-tensor (sim.)"]
    assert "(sim.): simulated" in drawing.caption
    assert "(sim.)" not in draw(make_report("real"))["error_growth"].caption


def test_exact_layers_are_marked_and_said(make_report, draw):
    drawing = draw(make_report(exact_layers=3))["error_growth"]
    upper, _ = drawing.figure.axes
    assert exact_marks(upper) == [0, 0, 1, 1, 2, 2]
    assert np.isnan(lines(drawing)["sqnr_int8"].get_ydata()[:3]).all()
    assert "int8 equals the reference after layers 0-2: exact" in drawing.caption
    assert "exact" in [text.get_text() for text in upper.texts]


def test_a_scheme_that_is_exact_everywhere(make_report, draw):
    drawing = draw(make_report(layers=4, exact_layers=4, schemes=("int8",)))["error_growth"]
    assert exact_marks(drawing.figure.axes[0]) == [0, 1, 2, 3]
    assert "int8: 4 exact layers" in drawing.alt


def test_components_without_error_are_marked_at_the_foot_of_the_log_scale(make_report, draw, edit_table):
    report = make_report(schemes=("int8",))

    def no_error(rows):
        for row in rows:
            if row["mode"] == "isolated" and row["layer"] in (2, 5):
                row.update(relative_l2=0.0, sqnr_db=None, exact=True)

    edit_table(report, "errors", no_error)
    drawing = draw(report)["error_growth"]
    assert exact_marks(drawing.figure.axes[1]) == [2, 5]
    assert "exact in layers 2, 5" in drawing.caption


def test_a_single_layer_is_said(make_report, draw):
    assert "single layer" in draw(make_report(layers=1))["error_growth"].caption
    assert "single layer" not in draw(make_report("deeper", layers=2))["error_growth"].caption


def test_without_schemes_there_is_no_growth_figure(make_report, draw):
    assert not draw(make_report(schemes=()))


def test_a_scheme_without_rows_does_not_stop_the_others(make_report, draw, edit_table):
    report = make_report()

    def drop_int8(rows):
        rows[:] = [row for row in rows if row["scheme"] != "int8"]

    edit_table(report, "errors", drop_int8)
    assert np.isfinite(lines(draw(report)["error_growth"])["sqnr_nf4"].get_ydata()).all()


def test_a_layer_that_the_model_does_not_have_is_refused(make_report, draw, edit_table):
    report = make_report(layers=4)
    edit_table(report, "errors", lambda rows: rows[-1].update(layer=4))
    with pytest.raises(ReportUnreadable, match=r"errors\.parquet: column 'layer' holds 4; .* 4 layers"):
        draw(report)


def test_a_second_line_leaves_massive_dimensions_out(make_report, draw, edit_table):
    report = make_report()
    drawn = lines(draw(report)["error_growth"])
    assert not any(name.startswith("typical_") for name in drawn)  # it would cover the first

    def hide(rows):
        for row in rows:
            if row["sqnr_db_typical"] is not None:
                row["sqnr_db_typical"] -= 15.0 * (row["layer"] > 2)

    edit_table(report, "errors", hide)
    drawing = draw(report)["error_growth"]
    drawn = lines(drawing)
    low, high = drawing.figure.axes[0].get_ylim()
    for scheme in ("int8", "nf4"):
        typical, whole = (drawn[f"{name}_{scheme}"] for name in ("typical", "sqnr"))
        apart = np.asarray(whole.get_ydata()) - np.asarray(typical.get_ydata())
        assert apart == pytest.approx([0, 0, 0, 15, 15, 15, 15, 15])
        assert typical.get_color() == whole.get_color()
        assert typical.get_linewidth() < whole.get_linewidth()
        assert not whole.get_alpha()
        assert typical.get_alpha() < 1
        assert low < min(typical.get_ydata()) < max(whole.get_ydata()) < high
    legend = [text.get_text() for text in drawing.figure.axes[0].get_legend().get_texts()]
    assert legend == ["all dimensions", "without massive dimensions"]
    assert "Dotted: sqnr_db_typical" in drawing.caption
