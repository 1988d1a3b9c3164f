"""Every cell of a heat map is a value of the table, and every cell without one is hatched."""

from functools import partial
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from workers.reporting.drawing import style
from workers.reporting.drawing.color_scales import median_norm, rising_norm
from workers.reporting.drawing.component_map import COMPONENTS, draw_map
from workers.reporting.figures import component_heatmap

ORDER = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down", "mlp.gate"]
REFERENCE = {"range_bits": "input", "crest_db": "input", "abs_max": "output"}
NAMES = [
    f"component_heatmap_{scheme}_{metric}" for scheme in ("int8", "nf4") for metric in ("weight_error", "relative_l2")
]
SHARED = {"attn.k": "attn.q", "attn.v": "attn.q", "mlp.gate": "mlp.up"}


@pytest.fixture
def draw(draw_with):
    return partial(draw_with, component_heatmap)


def mesh(drawing):
    return next(part for part in drawing.figure.axes[0].collections if part.get_gid() == "cells")


def table_cells(rows, scheme, metric, layers):
    cells = np.full((layers, 7), np.nan)
    for row in rows:
        if (row["scheme"], row["mode"], row["port"]) == (scheme, "isolated", "output") and row["component"] in ORDER:
            cells[row["layer"], ORDER.index(row["component"])] = row[metric]
    return cells


def shown(drawing):
    """The values of the drawn cells, [layers, 7]."""
    return mesh(drawing).get_array().filled(np.nan).reshape(-1, 7)


def hatched(drawing):
    """(layer, column) of every cell under a hatched patch."""
    cells = set()
    for patch in drawing.figure.axes[0].patches:
        assert patch.get_hatch()
        bottom = round(patch.get_y() + 0.5)
        cells |= {(bottom + step, round(patch.get_x() + 0.5)) for step in range(round(patch.get_height()))}
    return cells


@pytest.mark.parametrize("layers", [1, 8, 80])
def test_cells_are_the_tables_values(make_report, draw, rows_of, layers):
    report = make_report(layers=layers)
    drawings, rows = draw(report), rows_of(report, "errors")
    assert list(drawings) == [f"component_heatmap_{metric}" for metric in REFERENCE] + NAMES
    for name in NAMES:
        _, _, scheme, metric = name.split("_", 3)
        np.testing.assert_array_equal(shown(drawings[name]), table_cells(rows, scheme, metric, layers))


@pytest.mark.parametrize("layers", [1, 80])
def test_cells_of_the_reference_are_the_sites(make_report, draw, rows_of, layers):
    report = make_report(layers=layers, schemes=())
    sites = {(row["layer"], row["component"], row["port"]): row for row in rows_of(report, "sites")}
    drawings = draw(report)
    for metric, port in REFERENCE.items():
        drawing = drawings[f"component_heatmap_{metric}"]
        for layer, row in enumerate(shown(drawing)):
            for component, value in zip(ORDER, row, strict=True):
                measured = SHARED.get(component, component) if port == "input" else component
                assert value == sites[layer, measured, port][metric], (layer, component)
        assert ("have one input" in drawing.caption) == (port == "input")
        assert metric in drawing.figure.axes[1].get_ylabel()


def test_a_shared_input_is_not_shown_for_a_component_that_is_absent(make_report, draw):
    report = make_report(absent={"mlp.gate": None, "attn.v": (2,)}, schemes=())
    for drawing in draw(report).values():
        assert hatched(drawing) == {(layer, 6) for layer in range(8)} | {(2, 2)}


def test_an_input_measured_on_its_own_is_not_replaced_by_a_shared_one(make_report, draw, edit_table):
    report = make_report(schemes=())

    def add(rows):
        found = next(row for row in rows if (row["layer"], row["component"], row["port"]) == (3, "attn.q", "input"))
        rows.append(found | {"component": "attn.v", "crest_db": 99.0})

    edit_table(report, "sites", add)
    cells = shown(draw(report)["component_heatmap_crest_db"])
    assert cells[3, 2] == 99
    assert cells[3, 1] == cells[3, 0] != 99


def test_hovering_tells_layer_component_and_value(make_report, draw, tmp_path):
    drawings = draw(make_report(layers=9, schemes=("nf4",), absent={"mlp.up": (4, 5)}))
    for name in ("component_heatmap_nf4_relative_l2", "component_heatmap_range_bits"):
        drawings[name].save(tmp_path)
        root = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
        cells = shown(drawings[name])
        assert len(titles) == cells.size + name.endswith("l2") + 2 * name.endswith("bits")
        for layer, row in enumerate(cells):
            for component, value in zip(ORDER, row, strict=True):
                said = next(title for title in titles if title.startswith(f"layer {layer}, {component}"))
                value_said = said.rpartition(": ")[2]
                assert value_said == "n/a" if np.isnan(value) else float(value_said) == pytest.approx(value, rel=1e-3)
        assert any(title.startswith("layers 4-5, mlp.up: n/a") for title in titles)
    assert "layer 0, attn.v (measured as attn.q): " in "".join(titles)


def test_axes_are_those_of_the_contract(make_report, draw):
    axes, bar = draw(make_report(layers=28))["component_heatmap_int8_weight_error"].figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "attn. q", "attn. k", "attn. v", "attn. o", "mlp. up", "mlp. down", "mlp. gate"
    ]  # fmt: skip
    assert axes.get_yticks().tolist() == list(range(0, 28, 3))
    assert axes.get_ylim() == (-0.5, 27.5)
    assert "weight_error" in bar.get_ylabel()


def test_absent_components_are_hatched_and_never_a_number(make_report, draw):
    report = make_report(layers=8, absent={"mlp.gate": None, "attn.q": (2, 3, 6)})
    drawing = draw(report)["component_heatmap_nf4_relative_l2"]
    expected = {(layer, 6) for layer in range(8)} | {(2, 0), (3, 0), (6, 0)}
    assert hatched(drawing) == expected
    masked = np.argwhere(np.ma.getmaskarray(mesh(drawing).get_array()).reshape(8, 7))
    assert set(map(tuple, masked.tolist())) == expected
    assert [text.get_text() for text in drawing.figure.axes[0].texts] == ["n/a"] * 3
    assert "n/a" in drawing.caption


@pytest.mark.parametrize("absent", [{}, {"mlp.gate": None}])
def test_of_a_gate_only_a_model_that_has_one_is_told(make_report, draw, absent):
    caption = draw(make_report(absent=absent))["component_heatmap_range_bits"].caption
    assert ("so do up and gate" in caption) is (not absent)


def test_a_module_that_was_left_alone_is_hatched_in_the_weights_map(make_report, draw, edit_table):
    report = make_report()

    def leave(rows):
        for row in rows:
            if row["component"] == "mlp.up" and row["layer"] == 5:
                row["weight_error"] = None

    edit_table(report, "errors", leave)
    assert hatched(draw(report)["component_heatmap_int8_weight_error"]) == {(5, 4)}


def test_a_full_map_has_no_hatching(make_report, draw):
    drawing = draw(make_report())["component_heatmap_int8_relative_l2"]
    assert not hatched(drawing)
    assert "n/a" not in drawing.caption


def test_other_components_are_named_in_the_caption(make_report, draw, rows_of):
    report = make_report(extra=("linear_attn.in_proj",), absent=dict.fromkeys(ORDER[:4], (0, 1)))
    values = [
        row["relative_l2"]
        for row in rows_of(report, "errors")
        if (row["component"], row["scheme"], row["mode"]) == ("linear_attn.in_proj", "nf4", "isolated")
    ]
    caption = draw(report)["component_heatmap_nf4_relative_l2"].caption
    assert f"linear_attn.in_proj ({max(values):.3g})" in caption


def test_an_architecture_without_any_of_the_seven_is_still_drawn(make_report, draw):
    extra = tuple(f"mixer.part_{index}" for index in range(20))
    drawings = draw(make_report(layers=3, absent=dict.fromkeys(ORDER), extra=extra))
    for name in NAMES:
        assert len(hatched(drawings[name])) == 21
        assert "and 8 more" in drawings[name].caption
        assert "no value" in drawings[name].alt


def test_the_smallest_is_blue_the_median_white_the_largest_orange(make_report, draw):
    drawing = draw(make_report(layers=9))["component_heatmap_nf4_weight_error"]
    values = mesh(drawing).get_array().compressed()
    colors = mesh(drawing).to_rgba([values.min(), np.median(values), values.max()])[:, :3]
    assert colors[0, 2] > colors[0, 0] + 0.3
    assert colors[1].min() > 0.94
    assert colors[2, 0] > colors[2, 2] + 0.3


@given(st.lists(st.floats(1e-6, 1e6) | st.floats(-5, 5), min_size=1, max_size=30))
def test_a_rising_scale_runs_from_the_smallest_to_the_largest(values):
    array = np.sort(values)
    norm, ticks = rising_norm(array)
    placed = np.asarray(norm(array))
    assert (np.diff(placed) >= 0).all()
    assert placed.min() >= -1e-9
    assert placed.max() <= 1 + 1e-9
    if array[0] < array[-1]:
        np.testing.assert_allclose([placed[0], placed[-1]], [0, 1], atol=1e-9)
    assert ticks == sorted(ticks)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30))
def test_colors_never_reverse_an_order(values):
    array = np.array(values)
    norm, ticks = median_norm(array)
    placed = np.asarray(norm(np.sort(array)))
    assert (np.diff(placed) >= 0).all()
    assert placed.min() >= -1e-9
    assert placed.max() <= 1 + 1e-9
    assert ticks == sorted(ticks)
    np.testing.assert_allclose(norm(np.quantile(array, 0.5)), 0.5, atol=1e-3)


def test_exact_zeros_and_equal_values_have_a_scale():
    for values in ([0.0, 0.0], [0.1, 0.1], [0.0, 1.0], []):
        norm, ticks = median_norm(np.array(values))
        assert norm.vmin < norm.vmax
        assert len(ticks) == 5


def test_more_than_a_decade_is_colored_by_its_logarithm(make_report, draw, edit_table):
    report = make_report()
    edit_table(report, "errors", lambda rows: rows[0].update(relative_l2=50.0))
    drawings = draw(report)
    assert "Logarithmic colors." in drawings["component_heatmap_int8_relative_l2"].caption
    assert "Logarithmic" not in drawings["component_heatmap_int8_weight_error"].caption


def test_data_is_never_colored_like_the_page():
    maps = (style.DIVERGING, style.SEQUENTIAL)
    data = {to_hex(colors(step)) for colors in maps for step in range(colors.N)}
    data |= {style.mark(position).color for position in range(11)} | {
        style.CYAN,
        style.BLUE,
        style.ORANGE,
        style.PALE_BLUE,
    }
    assert not data & set(style.NEUTRALS.values())


@pytest.mark.parametrize(
    "title",
    ["Change of the isolated error: int4-group128-sym, /srv/models/some-large-model-70b-instru", "n" * 120, "Short"],
)
def test_a_title_however_long_stays_inside_the_figure(title):
    with style.applied():
        figure, _ = draw_map(np.arange(56.0).reshape(8, 7), title, "bar", COMPONENTS)
        figure.draw_without_rendering()
    box = figure.axes[0].title.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
