"""The landscape holds the table's largest cells, at their own places, inside axes that cover them."""

import json
import re
from functools import partial
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up_states import surface_rows, surface_section
from matplotlib.text import Text

from service.errors import ReportUnreadable
from workers.reporting.drawing.figure import NothingToDraw
from workers.reporting.figures import channel_surface
from workers.reporting.figures.channel_surface import LABELED_CELLS, MAX_LINES, MAX_POINTS
from workers.reporting.loading import TableAbsent

SVG = "{http://www.w3.org/2000/svg}"
SIZES = [(1, 1), (1, 256), (48, 256), (2048, 8192)]


@pytest.fixture
def draw(draw_with):
    return partial(draw_with, channel_surface)


def columns(drawing):
    """(position, channel, height) of every column that is named."""
    lines = [line for line in drawing.figure.axes[0].get_lines() if (line.get_gid() or "").startswith("column")]
    found = []
    for line in lines:
        (channel, same), (position, too), (foot, height) = (part.tolist() for part in line.get_data_3d())
        assert (channel, position, foot) == (same, too, 0)
        found.append((position, channel, height))
    return found


def ridges(drawing):
    """Every ridge line, [points, 3]: channel, position, height."""
    parts = [c for c in drawing.figure.axes[0].collections if (c.get_gid() or "").startswith("ridge")]
    return [np.array(part._faces[0]) for part in parts]


@pytest.mark.parametrize(("positions", "channels"), SIZES)
def test_the_largest_are_named_and_stand_on_a_ridge(make_report, draw, rows_of, positions, channels):
    report = make_report(schemes=(), labelled=0, layers=2, positions=positions, hidden_size=channels)
    rows = sorted(rows_of(report, "surface"), key=lambda row: -abs(row["value"]))[:LABELED_CELLS]
    drawing = draw(report)["channel_surface"]
    assert columns(drawing) == [(row["position"], row["channel"], abs(row["value"])) for row in rows]
    said = " ".join(text.get_text() for text in drawing.figure.axes[0].texts)
    for row in rows:
        assert f"channel {row['channel']}, position {row['position']}" in said
    peak = rows[0]
    points = np.concatenate(ridges(drawing))
    assert [peak["channel"], peak["position"], abs(peak["value"])] in points.tolist()
    assert points[:, 2].max() == abs(peak["value"])


def points_of(path):
    """The points [n, 2] of an SVG path's straight lines and curves."""
    return np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path), float)


def test_in_the_svg_names_are_tied_to_the_tops_of_their_columns(make_report, draw, tmp_path):
    drawing = draw(make_report(schemes=(), labelled=0, layers=2, positions=48, hidden_size=256))["channel_surface"]
    drawing.save(tmp_path)
    svg = ElementTree.parse(tmp_path / "channel_surface.svg").getroot()
    groups = {g.get("id", ""): [p.get("d", "") for p in g.iter(f"{SVG}path")] for g in svg.iter(f"{SVG}g")}
    tops = [points_of(paths[0])[:, :2].min(axis=0) for name, paths in groups.items() if name.startswith("column")]
    assert len(tops) == LABELED_CELLS
    ends = np.concatenate([points_of(path) for g, paths in groups.items() if g.startswith("patch") for path in paths])
    for top in tops:
        assert np.linalg.norm(ends - top, axis=1).min() < 3  # points; the tie ends two before the top


@pytest.mark.parametrize(("positions", "channels"), SIZES)
def test_every_cell_lies_under_the_line_of_its_group(make_report, draw, rows_of, positions, channels):
    report = make_report(schemes=(), labelled=0, layers=2, positions=positions, hidden_size=channels)
    drawing = draw(report)["channel_surface"]
    rows = rows_of(report, "surface")
    down, across = -(-positions // MAX_LINES), -(-channels // MAX_POINTS)
    highest = {}
    for row in rows:
        group = row["position"] // down, row["channel"] // across
        highest[group] = max(highest.get(group, 0), abs(row["value"]))
    floor = 0.003 * max(highest.values())
    lines = ridges(drawing)
    assert len(lines) == len({group[0] for group in highest}) <= MAX_LINES
    drawn = {}
    for line in lines:
        for channel, position, height in line.tolist():
            if height > floor:
                drawn[position // down, channel // across] = height
    assert drawn == {group: height for group, height in highest.items() if height > floor}


@pytest.mark.parametrize(("positions", "channels"), SIZES)
def test_axes_cover_the_data_and_say_what_they_are(make_report, draw, rows_of, positions, channels):
    report = make_report(schemes=(), labelled=0, layers=2, positions=positions, hidden_size=channels)
    axes = draw(report)["channel_surface"].figure.axes[0]
    assert axes.get_xlim()[0] <= 0
    assert axes.get_xlim()[1] >= channels - 1
    assert axes.get_ylim()[0] <= 0
    assert axes.get_ylim()[1] >= positions - 1
    assert axes.get_zlim()[0] <= 0
    assert axes.get_zlim()[1] >= max(abs(row["value"]) for row in rows_of(report, "surface"))
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_zlabel()) == ("Channel", "Token position", "abs(x)")


def test_nearer_lines_are_drawn_over_farther_ones(make_report, draw):
    lines = ridges(draw(make_report(schemes=()))["channel_surface"])
    depths = [line[0, 1] for line in lines]
    assert depths == sorted(depths, reverse=True)


def test_labels_do_not_overlap(make_report, draw):
    drawing = draw(make_report(schemes=()))["channel_surface"]
    boxes = [Text.get_window_extent(text) for text in drawing.figure.axes[0].texts]
    assert len(boxes) == LABELED_CELLS
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.x1 <= drawing.figure.bbox.x1 for box in boxes)


def test_the_file_is_small_and_its_text_is_text(make_report, draw, tmp_path):
    drawing = draw(make_report(schemes=(), labelled=0, layers=2, positions=2048, hidden_size=8192))["channel_surface"]
    drawing.save(tmp_path)
    svg = (tmp_path / "channel_surface.svg").read_text()
    assert len(svg) < 400_000
    assert "<image" not in svg
    for text in ("Token position", "channel ", "position "):
        assert text in svg


def test_hovering_over_a_column_tells_its_place_and_value(make_report, draw, tmp_path):
    draw(make_report(schemes=()))["channel_surface"].save(tmp_path)
    svg = (tmp_path / "channel_surface.svg").read_text()
    assert "<title>channel 0, position 0: 400.5</title>" in svg
    assert svg.count("<title>") == LABELED_CELLS


def test_the_caption_says_which_state_it_is(make_report, draw):
    caption = draw(make_report(layers=8))["channel_surface"].caption
    for part in (
        "block.output of layer 4",
        "sequence 2",
        "48 positions by 256 channels",
        "example/llama-small",
        "tables/surface",
    ):
        assert part in caption


def test_cells_without_a_finite_value_are_left_out(make_report, draw, edit_table):
    report = make_report(schemes=())

    def lose(rows):
        max(rows, key=lambda row: abs(row["value"]))["value"] = None

    edit_table(report, "surface", lose)
    assert columns(draw(report)["channel_surface"])[0][2] == 310.25


def test_a_state_without_a_finite_value_is_left_out_with_its_reason(make_report, draw, edit_table):
    report = make_report(schemes=(), layers=2)
    edit_table(report, "surface", lambda rows: [row.update(value=None) for row in rows])
    with pytest.raises(NothingToDraw, match="no value of the hidden state after layer 1 is finite"):
        draw(report)


def test_a_state_of_zeros_is_drawn(make_report, draw, edit_table):
    report = make_report(schemes=(), positions=4, hidden_size=8)
    edit_table(report, "surface", lambda rows: [row.update(value=0.0) for row in rows])
    assert {height for _, _, height in columns(draw(report)["channel_surface"])} == {0}


def test_a_place_outside_the_state_is_refused(make_report, draw, edit_table):
    report = make_report(schemes=())
    edit_table(report, "surface", lambda rows: rows[3].update(channel=256))
    with pytest.raises(ReportUnreadable, match=r"surface\.parquet: column 'channel' holds 256; .* 256 channels"):
        draw(report)


def test_a_report_from_before_the_table_has_no_figure(make_report, draw):
    report = make_report(schemes=())
    stated = json.loads((report / "report.json").read_text())
    stated["tables"] = [table for table in stated["tables"] if table["name"] != "surface"]
    (report / "report.json").write_text(json.dumps(stated))
    with pytest.raises(TableAbsent):
        draw(report)


def test_the_made_up_table_is_like_a_real_one():
    rows = surface_rows(np.random.default_rng(0), 300, 1000)
    assert len(rows) == 150 * 500
    assert surface_section(rows, 0, 300, 1000)["positions_per_cell"] == 2
