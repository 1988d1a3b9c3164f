"""Every mark is a row of the table, every color a magnitude of `channels`, and leaving out is said."""

import json
from functools import partial

import numpy as np
import pytest

from workers.reporting.figures import outlier_dimensions
from workers.reporting.figures.outlier_dimensions import SHOWN_DIMENSIONS


@pytest.fixture
def draw(draw_with):
    return partial(draw_with, outlier_dimensions)


def flag(edit_table, report, found, keep=False):
    """Flag (definition, layer, dimension) in the report's table, beside or instead of what it flags."""

    def change(rows):
        pattern = rows[0] if rows else {}
        if not keep:
            rows.clear()
        rows.extend(pattern | {"definition": d, "layer": layer, "dimension": j} for d, layer, j in found)
        rows.extend(
            pattern | {"definition": d, "layer": None, "dimension": j}
            for d, j in dict.fromkeys((d, j) for d, _, j in found)
        )

    edit_table(report, "outlier_dimensions", change)


def parts(drawing):
    axes = drawing.figure.axes[0]
    return {a.get_gid(): a for a in (*axes.collections, *axes.lines) if a.get_gid()}


def dimensions(drawing):
    return [int(text.get_text()) for text in drawing.figure.axes[0].get_yticklabels()]


def marks(drawing, definition):
    """(layer, dimension) of every mark."""
    line = parts(drawing)[f"mark_{definition}"]
    shown = dimensions(drawing)
    return sorted((int(x), shown[round(float(y))]) for x, y in zip(*line.get_data(), strict=True))


FOUND = [
    ("massive_tensor", 0, 7), ("massive_tensor", 5, 7), ("massive_token", 5, 7), ("variance", 5, 7),
    ("median_quantile", 5, 7), ("variance", 1, 31), ("variance", 7, 31), ("median_quantile", 7, 12),
]  # fmt: skip


def test_marks_are_the_tables_rows(make_report, draw, edit_table):
    report = make_report()
    flag(edit_table, report, FOUND)
    drawing = draw(report)["outlier_dimensions"]
    for definition in ("massive_tensor", "massive_token", "median_quantile", "variance"):
        assert marks(drawing, definition) == sorted((layer, j) for d, layer, j in FOUND if d == definition)
    shapes = [parts(drawing)[f"mark_{d}"].get_marker() for d in dict.fromkeys(d for d, _, _ in FOUND)]
    assert len(set(shapes)) == 4
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert sorted(labels) == ["massive_tensor", "massive_token", "median_quantile", "variance"]
    legend_shapes = {t: h.get_marker() for t, h in zip(labels, drawing.figure.legends[0].legend_handles, strict=True)}
    assert all(parts(drawing)[f"mark_{d}"].get_marker() == shape for d, shape in legend_shapes.items())


def test_marks_of_one_cell_do_not_cover_each_other(make_report, draw, edit_table):
    report = make_report()
    flag(edit_table, report, FOUND)
    drawing = draw(report)["outlier_dimensions"]
    row = dimensions(drawing).index(7)
    heights = sorted(
        float(y)
        for name, line in parts(drawing).items()
        if name.startswith("mark_")
        for x, y in zip(*line.get_data(), strict=True)
        if x == 5 and abs(y - row) < 0.5
    )
    assert len(heights) == 4
    assert min(np.diff(heights)) > 0.15


@pytest.mark.parametrize("layers", [1, 8, 80])
def test_colors_are_the_channels_magnitudes(make_report, draw, edit_table, rows_of, layers):
    report = make_report(layers=layers)
    flag(edit_table, report, [("variance", 0, j) for j in (3, 40, 9)])
    drawing = draw(report)["outlier_dimensions"]
    expected = {(r["layer"], r["channel"]): r["abs_max"] for r in rows_of(report, "channels")}
    cells = parts(drawing)["cells"].get_array().filled(np.nan).reshape(3, layers)
    for row, dimension in enumerate(dimensions(drawing)):
        assert cells[row].tolist() == [expected[layer, dimension] for layer in range(layers)]
    left, right = drawing.figure.axes[0].get_xlim()
    assert left <= -0.5
    assert right >= layers - 0.5
    assert [drawing.hover["cells"][layer] for layer in range(layers)] == [
        text for text in drawing.hover["cells"] if text.startswith(f"dimension {dimensions(drawing)[0]}, ")
    ]


@pytest.mark.parametrize("known", [True, False])
def test_cells_without_a_magnitude_are_hatched(make_report, draw, edit_table, known):
    report = make_report(layers=8)
    flag(edit_table, report, [("variance", 0, 3), ("variance", 0, 60)])

    def lose(rows):
        for row in rows:
            if row["channel"] == 60 and row["layer"] in (2, 3) and not known:
                row["abs_max"] = None

    edit_table(report, "channels", lose)
    drawing = draw(report)["outlier_dimensions"]
    below = [patch for patch in drawing.figure.axes[0].patches if patch.get_hatch()]
    assert [patch.get_bbox().bounds for patch in below] == ([] if known else [(-0.5, -0.5, 8, 2)])
    assert all(patch.get_zorder() < parts(drawing)["cells"].get_zorder() for patch in below)
    assert int(parts(drawing)["cells"].get_array().mask.sum()) == (0 if known else 2)
    assert ("Hatched, n/a" in drawing.caption) is not known


def test_magnitudes_over_more_than_a_decade_have_a_logarithmic_scale(make_report, draw, edit_table):
    report = make_report(layers=8)
    flag(edit_table, report, [("variance", 0, 3), ("variance", 0, 60)])
    drawing = draw(report)["outlier_dimensions"]
    mesh = parts(drawing)["cells"]
    values = mesh.get_array().compressed()
    assert values.max() > 10 * values.min()
    middle = np.sqrt(values.max() * values.min())
    assert float(mesh.norm(middle)) == pytest.approx(0.5, abs=0.01)
    assert "Logarithmic colors." in drawing.caption


def test_a_definition_of_all_layers_has_its_mark_beside_the_row(make_report, draw, rows_of):
    report = make_report()
    drawing = draw(report)["outlier_dimensions"]
    line = parts(drawing)["mark_llm_int8"]
    shown = dimensions(drawing)
    assert sorted(shown[round(float(y))] for y in line.get_ydata()) == sorted(
        row["dimension"] for row in rows_of(report, "outlier_dimensions")
    )
    assert min(line.get_xdata()) > 7.5
    assert max(line.get_xdata()) < drawing.figure.axes[0].get_xlim()[1]


def test_of_many_the_most_important_stay_and_the_rest_is_counted(make_report, draw, edit_table):
    report = make_report()
    many = [("variance", 0, j) for j in range(200)] + [("median_quantile", 3, 150), ("variance", 1, 149)]
    flag(edit_table, report, many)
    drawing = draw(report)["outlier_dimensions"]
    assert len(dimensions(drawing)) == SHOWN_DIMENSIONS
    assert dimensions(drawing)[:2] == [150, 149]
    assert f"Left out: {200 - SHOWN_DIMENSIONS} of 200 dimensions" in drawing.caption


def test_nothing_flagged_is_said_with_the_thresholds(make_report, draw):
    drawing = draw(make_report(outliers=0))["outlier_dimensions"]
    said = drawing.figure.axes[0].get_title() + " ".join(text.get_text() for text in drawing.figure.axes[0].texts)
    assert "No dimension meets any definition" in said
    for part in ("abs(x) >= 6 ", "25% of layers", "6% of positions", "abs(x) > 100", "1000 times", "99%", "5 times"):
        assert part in said
        assert part in drawing.caption
    assert "None is flagged" in drawing.caption


def test_a_dimension_without_magnitudes_keeps_its_marks(make_report, draw, edit_table):
    report = make_report()
    flag(edit_table, report, [("variance", 2, 200), ("variance", 2, 3), ("variance", 3, 3)])
    drawing = draw(report)["outlier_dimensions"]
    assert dimensions(drawing) == [3, 200]
    assert marks(drawing, "variance") == [(2, 3), (2, 200), (3, 3)]
    assert "dimension 200, layer 2: n/a; variance" in drawing.hover["cells"]


def test_hovering_tells_magnitude_and_definitions(make_report, draw, edit_table, tmp_path):
    report = make_report()
    flag(edit_table, report, FOUND)
    drawing = draw(report)["outlier_dimensions"]
    drawing.save(tmp_path)
    svg = (tmp_path / "outlier_dimensions.svg").read_text()
    assert "; massive_tensor, massive_token, median_quantile, variance</title>" in svg
    assert svg.count("<title>") == 3 * 8


def restate(report, change):
    content = json.loads((report / "report.json").read_text())
    change(content["outliers"])
    (report / "report.json").write_text(json.dumps(content))


def test_both_definitions_of_all_layers_have_marks_of_their_own(make_report, draw, edit_table):
    report = make_report()
    flag(edit_table, report, [("llm_int8_relative", None, 7), ("llm_int8", None, 7), ("llm_int8_relative", None, 9)])
    drawing = draw(report)["outlier_dimensions"]
    fixed, relative = (parts(drawing)[f"mark_{name}"] for name in ("llm_int8", "llm_int8_relative"))
    shown = dimensions(drawing)
    assert [sorted({shown[round(float(y))] for y in line.get_ydata()}) for line in (fixed, relative)] == [[7], [7, 9]]
    assert fixed.get_marker() != relative.get_marker()
    assert max(drawing.figure.axes[0].get_xticks()) <= 7
    assert max(fixed.get_xdata()) < min(relative.get_xdata()) < drawing.figure.axes[0].get_xlim()[1]
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert labels == ["llm_int8 (over all layers)", "llm_int8_relative (over all layers)"]
    assert "llm_int8 (llm_int8_relative): abs(x) >= 6 (times the token's rms) at" in drawing.caption


def test_a_definition_that_does_not_discriminate_has_no_marks(make_report, draw, edit_table):
    report = make_report()
    flag(edit_table, report, [("llm_int8", None, j) for j in range(254)] + [("variance", 2, 31)])
    restate(report, lambda outliers: outliers["llm_int8"].update(
        dimensions=[outliers["llm_int8"]["dimensions"][0] | {"dimension": j} for j in range(254)]
    ))  # fmt: skip
    drawing = draw(report)["outlier_dimensions"]
    assert dimensions(drawing) == [31]
    assert "mark_llm_int8" not in parts(drawing)
    assert "Left out: llm_int8, which flags 254 of 256 dimensions and does not discriminate." in drawing.caption
