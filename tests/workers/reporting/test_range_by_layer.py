"""Every point of the range figure is a value of the table, on an axis that covers it."""

import itertools

import numpy as np
import pytest

from service.errors import ReportUnreadable
from workers.reporting.figures import range_by_layer

COLUMNS = {"abs_max": "abs max", "p99_9_abs": "p99.9", "p99_abs": "p99", "median_abs": "median"}
SITES = [("block", "output"), ("attn.q", "input"), ("mlp.up", "input")]


@pytest.fixture
def draw(draw_with):
    return lambda directory: draw_with(range_by_layer, directory)["range_by_layer"]


@pytest.fixture
def set_sites(edit_table):
    """A function that changes the rows of one site."""

    def change(directory, component, port, layers, **values):
        def apply(rows):
            for row in rows:
                if (row["component"], row["port"]) == (component, port) and row["layer"] in layers:
                    row.update(values)

        edit_table(directory, "sites", apply)

    return change


def line(drawing, column, site):
    return next(
        line
        for axes in drawing.figure.axes
        for line in axes.get_lines()
        if line.get_gid() == f"{column}-{site[0]}.{site[1]}"
    )


def levels(drawing):
    """The levels that are drawn across, by panel."""
    return [
        {line.get_ydata()[0] for line in axes.get_lines() if str(line.get_gid()).startswith("level")}
        for axes in drawing.figure.axes
    ]


@pytest.mark.parametrize("layers", [1, 8, 80])
def test_points_are_the_tables_values(make_report, draw, rows_of, layers):
    report = make_report(layers=layers)
    drawing, rows = draw(report), rows_of(report, "sites")
    for site in SITES:
        for column in COLUMNS:
            drawn = line(drawing, column, site)
            here = {row["layer"]: row[column] for row in rows if (row["component"], row["port"]) == site}
            assert drawn.get_xdata().tolist() == list(range(layers))
            assert drawn.get_ydata().tolist() == [here[layer] for layer in range(layers)]
    assert ("single layer" in drawing.caption) == (layers == 1)


def test_axes_say_what_they_are_and_cover_the_data(make_report, draw):
    drawing = draw(make_report(layers=80))
    assert [axes.get_title().split("\n")[0] for axes in drawing.figure.axes] == [".".join(site) for site in SITES]
    for axes in drawing.figure.axes:
        assert axes.get_yscale() == "log"
        assert axes.get_xlabel() == "Layer"
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert left < 0
        assert right > 79
        for drawn in axes.get_lines():
            assert low < np.nanmin(drawn.get_ydata())
            assert np.nanmax(drawn.get_ydata()) < high
    assert drawing.figure.axes[0].get_ylabel() == "abs(x)"
    assert len({axes.get_ylim() for axes in drawing.figure.axes}) == 1


def test_ticks_of_layers_do_not_touch_at_any_depth(make_report, draw):
    for layers in (8, 80, 126):
        axes = draw(make_report(f"depth{layers}", layers=layers)).figure.axes[1]
        left, right = axes.get_xlim()
        shown = [tick for tick in axes.get_xticklabels() if left <= tick.get_position()[0] <= right]
        boxes = [tick.get_window_extent() for tick in shown]
        assert len(boxes) >= 4
        assert all(one.x1 + 3 < other.x0 for one, other in itertools.pairwise(boxes))


def test_the_legend_names_every_line_and_looks_differ(make_report, draw):
    drawing = draw(make_report())
    legend = drawing.figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == list(COLUMNS.values())
    keys = [(key.get_color(), key.get_marker(), key.get_linestyle()) for key in legend.get_lines()]
    drawn = [line(drawing, column, SITES[0]) for column in COLUMNS]
    assert keys == [(own.get_color(), own.get_marker(), own.get_linestyle()) for own in drawn]
    assert all(len(set(looks)) == 4 for looks in zip(*keys, strict=True))


def test_a_level_is_drawn_where_it_is_in_view(make_report, draw, set_sites):
    report = make_report()
    assert levels(draw(report)) == [{6.0}] * 3
    set_sites(report, "block", "output", {3}, abs_max=80000.0)
    drawing = draw(report)
    assert levels(drawing) == [{6.0, 65504.0}] * 3
    assert [text.get_text() for text in drawing.figure.axes[2].texts] == ["6\nLLM.int8()", "65504\nfp16 max"]
    small = make_report("small")
    for component, port in SITES:
        set_sites(small, component, port, range(8), **dict.fromkeys(COLUMNS, 0.5))
    assert levels(draw(small)) == [set()] * 3


def test_the_level_of_llm_int8_is_the_reports_own(make_report, draw):
    report = make_report()
    text = (report / "report.json").read_text()
    (report / "report.json").write_text(text.replace('"magnitude": 6.0', '"magnitude": 4.5'))
    drawing = draw(report)
    assert levels(drawing) == [{4.5}] * 3
    assert "4.5 (threshold of llm_int8)" in drawing.caption


def test_a_site_that_the_model_does_not_have_is_hatched(make_report, draw):
    drawing = draw(make_report(absent={"mlp.up": None}))
    absent = drawing.figure.axes[2]
    assert [patch.get_hatch() for patch in absent.patches] == ["////"]
    assert "n/a" in [text.get_text() for text in absent.texts]
    assert "the model has no mlp.up.input" in drawing.caption
    assert "mlp.up.input: not there" in drawing.alt
    assert line(drawing, "abs_max", SITES[0]).get_ydata().size == 8


def test_layers_without_the_site_break_the_line(make_report, draw):
    drawing = draw(make_report(absent={"attn.q": (2, 3, 6)}))
    values = line(drawing, "abs_max", SITES[1]).get_ydata()
    assert np.flatnonzero(np.isnan(values)).tolist() == [2, 3, 6]
    assert "No attn.q.input, or no finite value there, in layer 2-3, 6." in drawing.caption


def test_zeros_are_marked_at_the_foot_of_the_log_scale(make_report, draw, set_sites):
    report = make_report()
    set_sites(report, "mlp.up", "input", {4, 5}, median_abs=0.0)
    drawing = draw(report)
    marks = [own for own in drawing.figure.axes[2].get_lines() if own.get_gid() == "zero-median_abs-mlp.up.input"]
    assert marks[0].get_xdata().tolist() == [4, 5]
    low, _ = drawing.figure.axes[2].get_ylim()
    smallest = min(np.nanmin(line(drawing, "median_abs", site).get_ydata()) for site in SITES)
    assert low < marks[0].get_ydata()[0] < smallest
    assert "mlp.up.input: median is 0 in layer 4-5" in drawing.caption


def test_nothing_but_zeros_still_has_a_scale(make_report, draw, set_sites):
    report = make_report(layers=2)
    for component, port in SITES:
        set_sites(report, component, port, range(2), **dict.fromkeys(COLUMNS, 0.0))
    low, high = draw(report).figure.axes[0].get_ylim()
    assert 0 < low < high


def test_the_caption_and_alternative_text_say_what_is_seen(make_report, draw, rows_of):
    report = make_report()
    drawing = draw(report)
    for part in (
        "99.9th and 99th percentile, and median",
        "65504",
        "Model example/llama-small",
        "calibration.txt",
        "sites.parquet",
    ):
        assert part in drawing.caption
    rows = [row for row in rows_of(report, "sites") if (row["component"], row["port"]) == SITES[0]]
    widest = max(rows, key=lambda row: row["abs_max"])
    assert f"in layer {widest['layer']};" in drawing.alt.split("attn.q")[0]


def test_a_layer_that_the_model_does_not_have_is_refused(make_report, draw, edit_table):
    report = make_report(layers=4)
    edit_table(report, "sites", lambda rows: rows[-1].update(layer=9))
    with pytest.raises(ReportUnreadable, match=r"sites\.parquet: column 'layer' holds 9"):
        draw(report)
