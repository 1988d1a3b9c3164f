"""Bars of heads: every head is counted once, every segment carries its share, and no case is a silent zero."""

import collections
import itertools
import json
from functools import partial

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text

from service.errors import ReportUnreadable
from workers.reporting.drawing import style
from workers.reporting.figures import head_agreement, head_severity
from workers.reporting.render import render

GRADES = ["≥ 30 dB", "20 to 30 dB", "10 to 20 dB", "< 10 dB"]
SIDES = ["outlier and damaged", "neither", "damaged, no outlier", "outlier, not damaged"]
SCHEMES = ("int8", "nf4")
GREEN, YELLOW, ORANGE, RED = (to_rgb(color) for color in style.SEVERITY)
DARK_GREEN, LIME, LIGHT_RED, DARK_RED = (to_rgb(color) for color in style.AGREEMENT)


@pytest.fixture
def severity(draw_with):
    return partial(draw_with, head_severity)


@pytest.fixture
def agreement(draw_with):
    return partial(draw_with, head_agreement)


def bars(drawing):
    """Heights by (quarter, color), as drawn; every bar must stand on the one beneath."""
    heights, tops = {}, collections.Counter()
    for patch in drawing.figure.axes[0].patches:
        quarter = round(patch.get_x() + patch.get_width() / 2)
        assert patch.get_y() == tops[quarter]
        tops[quarter] += patch.get_height()
        heights[quarter, tuple(patch.get_facecolor()[:3])] = patch.get_height()
    return heights


def shares(drawing):
    """The text of every share, by the segment that it labels: (quarter, color)."""
    axes = drawing.figure.axes[0]
    found = {}
    for text in (text for text in axes.texts if text.get_gid()):
        x, y = getattr(text, "xy", text.get_position())
        for patch in axes.patches:
            inside = patch.get_x() - 1e-9 <= x <= patch.get_x() + patch.get_width() + 1e-9
            if inside and abs(patch.get_y() + patch.get_height() / 2 - y) < 1e-9:
                found[round(patch.get_x() + patch.get_width() / 2), tuple(patch.get_facecolor()[:3])] = text
    return found


def quarter_of(layer, layers):
    edges = [int(np.floor(i * layers / 4)) for i in range(5)]
    spans = [(low, high) for low, high in itertools.pairwise(edges) if high > low]
    return next(place for place, (low, high) in enumerate(spans) if low <= layer < high)


def grade_by_hand(ratio):
    return GREEN if ratio >= 30 else YELLOW if ratio >= 20 else ORANGE if ratio >= 10 else RED


def side_by_hand(row, scheme):
    names = {(True, True): DARK_GREEN, (False, False): LIME, (False, True): LIGHT_RED, (True, False): DARK_RED}
    return names[row["measured_outlier"], row[f"sqnr_db_{scheme}"] < 20]


@pytest.mark.parametrize("layers", [1, 2, 3, 8, 10, 80])
def test_severity_bars_are_the_measured_outliers_by_damage(make_report, severity, rows_of, layers):
    report = make_report(layers=layers, heads=32)
    rows = [row for row in rows_of(report, "heads") if row["measured_outlier"]]
    for scheme in ("int8", "nf4"):
        expected = collections.Counter(
            (quarter_of(row["layer"], layers), grade_by_hand(row[f"sqnr_db_{scheme}"])) for row in rows
        )
        assert bars(severity(report)[f"head_severity_{scheme}"]) == expected


@pytest.mark.parametrize(("ratio", "color"), [(30, GREEN), (29.99, YELLOW), (20, YELLOW), (10, ORANGE), (9.99, RED)])
def test_a_ratio_on_a_limit_belongs_to_the_better_class(make_report, severity, edit_table, ratio, color):
    report = make_report(outlier_heads=False)
    edit_table(report, "heads", lambda rows: [row.update(sqnr_db_nf4=float(ratio)) for row in rows])
    assert bars(severity(report)["head_severity_nf4"]) == {(quarter, color): 16 for quarter in range(4)}


@pytest.mark.parametrize("layers", [3, 8, 80])
def test_every_segment_is_labelled_with_its_share(make_report, severity, agreement, layers):
    report = make_report(layers=layers, heads=24)
    for drawing in (*severity(report).values(), *agreement(report).values()):
        heights, texts = bars(drawing), shares(drawing)
        assert set(texts) == set(heights)
        for quarter in {quarter for quarter, _ in heights}:
            total = sum(height for (here, _), height in heights.items() if here == quarter)
            stated = {key: float(text.get_text().removesuffix("%")) for key, text in texts.items() if key[0] == quarter}
            assert sum(stated.values()) == pytest.approx(100, abs=0.2)
            for key, percent in stated.items():
                assert percent == pytest.approx(100 * heights[key] / total, abs=0.0501)


def test_the_total_of_every_bar_stands_over_it(make_report, agreement):
    drawing = agreement(make_report(layers=12, heads=200))["head_agreement_nf4"]
    axes = drawing.figure.axes[0]
    totals = collections.Counter()
    for (quarter, _), height in bars(drawing).items():
        totals[quarter] += height
    over = {round(text.xy[0]): text for text in axes.texts if not text.get_gid()}
    assert {quarter: (text.xy[1], text.get_text()) for quarter, text in over.items()} == {
        quarter: (total, f"{round(total):,}") for quarter, total in totals.items()
    }
    assert max(totals.values()) < axes.get_ylim()[1]
    assert axes.get_ylim()[0] == 0


def test_shares_of_slivers_stand_beside_the_bar_and_apart(make_report, severity, edit_table):
    report = make_report(layers=4, heads=500, outlier_heads=False)

    def slivers(rows):
        for row in rows:
            row["sqnr_db_int8"] = {0: 5.0, 1: 15.0, 2: 15.0, 3: 25.0}.get(row["head"], 40.0)

    edit_table(report, "heads", slivers)
    drawing = severity(report)["head_severity_int8"]
    axes = drawing.figure.axes[0]
    texts = shares(drawing)
    assert {key: text.get_text() for key, text in texts.items() if key[0] == 3} == {
        (3, GREEN): "99.2%", (3, YELLOW): "0.2%", (3, ORANGE): "0.4%", (3, RED): "0.2%"
    }  # fmt: skip
    for quarter in range(4):
        boxes = [Text.get_window_extent(texts[quarter, color]) for color in (YELLOW, ORANGE, RED)]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        bar = max((p for p in axes.patches if round(p.get_x() + 0.31) == quarter), key=lambda p: p.get_height())
        assert all(box.x0 > bar.get_window_extent().x1 for box in boxes)
        assert all(box.x1 < axes.get_window_extent().x1 for box in boxes)
        for color in (YELLOW, ORANGE, RED):
            assert texts[quarter, color].get_bbox_patch().get_facecolor()[:3] == color
        inside = Text.get_window_extent(texts[quarter, GREEN])
        assert inside.y0 > bar.get_window_extent().y0
        assert inside.y1 < bar.get_window_extent().y1


def test_axes_are_those_of_the_contract(make_report, severity, agreement):
    report = make_report(layers=48, source="openai/GPT-2-xl")
    drawings = [*severity(report).values(), *agreement(report).values()]
    assert [drawing.name for drawing in drawings] == [
        f"{figure}_{scheme}" for figure in ("head_severity", "head_agreement") for scheme in SCHEMES
    ]
    for drawing in drawings:
        axes = drawing.figure.axes[0]
        assert axes.get_title() == "GPT-2-xl"
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("Layer", "# heads")
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["[0, 12)", "[12, 24)", "[24, 36)", "[36, 48)"]


@pytest.mark.parametrize(
    ("layers", "labels"),
    [(1, ["[0, 1)"]), (3, ["[0, 1)", "[1, 2)", "[2, 3)"]), (6, ["[0, 1)", "[1, 3)", "[3, 4)", "[4, 6)"])],
)
def test_quarters_of_depths_that_four_does_not_divide(make_report, agreement, layers, labels):
    drawing = agreement(make_report(layers=layers))["head_agreement_int8"]
    assert [tick.get_text() for tick in drawing.figure.axes[0].get_xticklabels()] == labels
    assert ("fewer than four layers" in drawing.caption) == (layers < 4)


def test_legends_name_the_colors_from_the_bottom_up(make_report, severity, agreement):
    report = make_report(layers=20, heads=40)
    for drawing, names, colors, title in (
        (
            severity(report)["head_severity_nf4"],
            GRADES,
            style.SEVERITY,
            "SQNR of the head under nf4 (4-bit NormalFloat)",
        ),
        (
            agreement(report)["head_agreement_nf4"],
            SIDES,
            style.AGREEMENT,
            "Heads under nf4 (4-bit NormalFloat)",
        ),
    ):
        legend = drawing.figure.legends[0]
        assert [text.get_text() for text in legend.get_texts()] == names
        assert [to_hex(patch.get_facecolor()) for patch in legend.get_patches()] == list(colors)
        assert legend.get_title().get_text() == title
        for quarter in range(4):
            stacked = [to_hex(color) for here, color in bars(drawing) if here == quarter]
            assert stacked == [color for color in colors if color in stacked]


def test_hover_says_the_exact_count(make_report, agreement):
    drawing = agreement(make_report(layers=80, heads=30))["head_agreement_nf4"]
    texts = {gid: text for gid, (text,) in drawing.hover.items()}
    for patch in drawing.figure.axes[0].patches:
        place = list(style.AGREEMENT).index(to_hex(patch.get_facecolor()))
        low = 20 * round(patch.get_x() + patch.get_width() / 2)
        height = round(patch.get_height())
        expected = f"layers {low}-{low + 19}, {SIDES[place]}: {height} head{'' if height == 1 else 's'}"
        assert texts.pop(patch.get_gid()) == expected
    assert not texts


def test_without_outlier_heads_all_are_counted_and_the_caption_says_so(make_report, severity, rows_of):
    report = make_report(outlier_heads=False)
    for drawing in severity(report).values():
        assert sum(bars(drawing).values()) == 64
        assert "Counted: all 64 heads, because none is a measured outlier" in drawing.caption
        assert "the largest is 8.00)." in drawing.caption
    measured = sum(row["measured_outlier"] for row in rows_of(make_report("other"), "heads"))
    caption = severity(make_report("another"))["head_severity_nf4"].caption
    assert f"Counted: {measured} measured outlier heads (" in caption


def test_exact_heads_are_in_the_best_class(make_report, severity, edit_table):
    report = make_report(outlier_heads=False)

    def exact(rows):
        for row in rows:
            row["sqnr_db_int8"] = None if row["layer"] < 2 else 5.0

    edit_table(report, "heads", exact)
    drawing = severity(report)["head_severity_int8"]
    assert bars(drawing) == {(0, GREEN): 16, (1, RED): 16, (2, RED): 16, (3, RED): 16}
    assert "16 heads without any error" in drawing.caption


def test_heads_with_nothing_to_compare_are_a_class_of_their_own(make_report, severity, edit_table):
    report = make_report(outlier_heads=False)

    def silence(rows):
        for row in rows:
            if row["layer"] == 0:
                row.update(sqnr_db_int8=None, rms=0.0, abs_max=0.0, relative_peak=0.0)
            elif row["layer"] == 1:
                row.update(sqnr_db_int8=None, rms=None, abs_max=None, relative_peak=None)
            elif row["layer"] == 2:
                row.update(sqnr_db_int8=None)
            else:
                row.update(sqnr_db_int8=40.0)

    def overflow(rows):
        where = {"layer": 2, "component": "attn.o", "port": "input", "mode": "accumulated", "scheme": "int8"}
        rows.append(rows[0] | where | {"relative_l2": None, "sqnr_db": None, "exact": True})

    edit_table(report, "heads", silence)
    edit_table(report, "errors", overflow)
    drawing = severity(report)["head_severity_int8"]
    unknown = to_rgb(style.UNKNOWN)
    assert bars(drawing) == {
        (0, unknown): 16, (1, unknown): 8, (1, GREEN): 8, (2, GREEN): 16, (3, GREEN): 16
    }  # fmt: skip
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == [*GRADES, "no ratio"]
    assert "No ratio: 24 heads" in drawing.caption


@pytest.mark.parametrize("layers", [2, 8, 80])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_agreement_counts_each_head_once(make_report, agreement, rows_of, layers, scheme):
    report = make_report(layers=layers, heads=16)
    rows = rows_of(report, "heads")
    flagged = [row for row in rows if row["measured_outlier"] or row[f"sqnr_db_{scheme}"] < 20]
    expected = collections.Counter((quarter_of(row["layer"], layers), side_by_hand(row, scheme)) for row in flagged)
    assert {color for _, color in expected} == {DARK_GREEN, LIGHT_RED, DARK_RED} or layers == 2
    drawn = bars(agreement(report)[f"head_agreement_{scheme}"])
    assert {key: height for key, height in drawn.items() if key[1] != LIME} == expected
    others = collections.Counter(quarter_of(row["layer"], layers) for row in rows if row not in flagged)
    drawn_others = {quarter: height for (quarter, color), height in drawn.items() if color == LIME}
    assert sum(drawn_others.values()) == min(len(flagged), len(rows) - len(flagged))
    assert all(height <= others[quarter] for quarter, height in drawn_others.items())


def test_the_population_holds_no_head_twice_and_follows_the_seed():
    random = np.random.default_rng(5)
    outlier, damaged, known = random.random(300) < 0.1, random.random(300) < 0.1, random.random(300) < 0.95
    chosen = head_agreement.population(outlier, damaged, known, 0)
    flagged = np.flatnonzero((outlier | damaged) & known)
    assert len(set(chosen)) == len(chosen) == 2 * len(flagged)
    assert set(flagged) <= set(chosen) <= set(np.flatnonzero(known))
    np.testing.assert_array_equal(chosen, head_agreement.population(outlier, damaged, known, 0))
    assert set(chosen) != set(head_agreement.population(outlier, damaged, known, 1))
    most = random.random(300) < 0.8
    assert head_agreement.population(most, damaged, known, 0).tolist() == np.flatnonzero(known).tolist()


@pytest.mark.parametrize("layers", [3, 8, 80])
def test_a_severity_bar_is_dark_green_and_dark_red(make_report, severity, agreement, layers):
    report = make_report(layers=layers, heads=32)
    for scheme in SCHEMES:
        outliers, totals = collections.Counter(), collections.Counter()
        for (quarter, color), height in bars(agreement(report)[f"head_agreement_{scheme}"]).items():
            outliers[quarter] += height * (color in (DARK_GREEN, DARK_RED))
        for (quarter, _), height in bars(severity(report)[f"head_severity_{scheme}"]).items():
            totals[quarter] += height
        assert totals == +outliers


@pytest.mark.parametrize(("ratio", "color"), [(20, DARK_RED), (19.99, DARK_GREEN)])
def test_a_head_on_the_limit_is_not_damaged(make_report, agreement, edit_table, ratio, color):
    report = make_report(layers=1, heads=1)
    edit_table(report, "heads", lambda rows: rows[0].update(measured_outlier=True, sqnr_db_nf4=float(ratio)))
    assert bars(agreement(report)["head_agreement_nf4"]) == {(0, color): 1}


def test_the_captions_state_definition_and_settings(make_report, severity, agreement, rows_of):
    report = make_report()
    for part in ("nf4 (4-bit NormalFloat), quant_type nf4", "10 log10", "Model example/llama-small",
                 "calibration.txt", "tables/heads.parquet"):  # fmt: skip
        assert part in severity(report)["head_severity_nf4"].caption
    content = json.loads((report / "report.json").read_text())
    content["heads"]["thresholds"] = {"relative_peak": 17.5, "damaged_sqnr_db": 12.25}
    content["calibration"]["seed"] = 77
    (report / "report.json").write_text(json.dumps(content))
    caption = agreement(report)["head_agreement_nf4"].caption
    for part in ("is 17.5 or more", "is below 12.25 dB", "others (seed 77)", "quant_type nf4", "Model example/"):
        assert part in caption
    rows = rows_of(report, "heads")
    outliers = [row for row in rows if row["measured_outlier"]]
    damaged = [row for row in rows if row["sqnr_db_nf4"] < 12.25]
    both = sum(row["measured_outlier"] for row in damaged)
    assert f"Damaged: {both} of {len(outliers)} outlier heads (" in caption
    assert f", {len(damaged) - both} of {len(rows) - len(outliers)} others (" in caption


def test_no_flag_on_either_side_is_said_with_the_legend(make_report, agreement, edit_table):
    report = make_report(outlier_heads=False)
    edit_table(report, "heads", lambda rows: [row.update(sqnr_db_int8=21.0 + row["head"]) for row in rows])
    drawing = agreement(report)["head_agreement_int8"]
    assert not drawing.figure.axes[0].patches
    said = drawing.figure.axes[0].texts[-1].get_text()
    assert "No head is an outlier, and none is damaged." in said
    assert "Largest relative_peak: 8.00; an outlier from 20" in said
    assert "Lowest SQNR in dB: 21.0; damaged below 20" in said
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == SIDES


def test_exact_heads_are_not_damaged_and_heads_without_a_ratio_are_left_out(make_report, agreement, edit_table):
    report = make_report(layers=4, heads=8)

    def change(rows):
        for row in rows:
            row.update(measured_outlier=True, sqnr_db_int8=None if row["layer"] < 2 else 5.0)
            if row["layer"] == 1:
                row.update(rms=0.0, abs_max=0.0, relative_peak=0.0)

    edit_table(report, "heads", change)
    drawing = agreement(report)["head_agreement_int8"]
    assert bars(drawing) == {(0, DARK_RED): 8, (2, DARK_GREEN): 8, (3, DARK_GREEN): 8}
    assert "8 heads without a ratio" in drawing.caption
    assert "8 of them outliers" in drawing.caption


def test_a_model_without_heads_has_neither_figure(make_report):
    report = make_report(layers=2, heads=0)
    left_out = {figure.name: figure.reason for figure in render(report).figures_left_out}
    assert set(left_out) == {"head_severity", "head_agreement"}
    assert set(left_out.values()) == {"the model has no attention heads that are known"}


def test_without_schemes_there_is_no_damage_to_show(make_report, severity, agreement):
    assert severity(make_report(schemes=())) == agreement(make_report("other", schemes=())) == {}


def test_a_single_head_of_a_single_layer(make_report, severity, agreement, edit_table):
    report = make_report(layers=1, heads=1)
    edit_table(report, "heads", lambda rows: rows[0].update(measured_outlier=True, sqnr_db_int8=5.0))
    assert bars(agreement(report)["head_agreement_int8"]) == {(0, DARK_GREEN): 1}
    drawing = severity(report)["head_severity_int8"]
    assert list(bars(drawing).values()) == [1]
    assert [text.get_text() for text in shares(drawing).values()] == ["100.0%"]
    assert "Counted: 1 measured outlier head (" in drawing.caption


def test_a_head_with_two_rows_is_refused(make_report, severity, edit_table):
    report = make_report()
    edit_table(report, "heads", lambda rows: rows.append(rows[9]))
    with pytest.raises(
        ReportUnreadable, match=r"heads\.parquet: columns 'layer' and 'head' name head 1 of layer 1 2 times"
    ):
        severity(report)


def test_a_head_without_a_number_is_refused(make_report, severity, edit_table):
    report = make_report()
    edit_table(report, "heads", lambda rows: rows[5].update(head=None))
    with pytest.raises(ReportUnreadable, match=r"heads\.parquet: column 'head' is null in 1 rows"):
        severity(report)


LINEAR_FROM = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3),
}
"""Machado, Oliveira and Fernandes 2009, full severity, linear RGB."""
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def cielab(color, blindness):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    seen = np.clip(np.array(LINEAR_FROM[blindness]) @ linear, 0, 1)
    x, y, z = np.cbrt(np.array(TO_XYZ) @ seen / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", list(LINEAR_FROM))
@pytest.mark.parametrize("palette", [(*style.SEVERITY, style.UNKNOWN), style.AGREEMENT, (style.TRUE, style.FALSE)])
def test_colors_are_told_apart_with_any_color_blindness(palette, blindness):
    for one, other in itertools.combinations(palette, 2):
        assert np.linalg.norm(cielab(one, blindness) - cielab(other, blindness)) > 20


def test_shares_can_be_read_on_their_color():
    def luminance(color):
        return np.dot(TO_XYZ[1], [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)])

    for color in (*style.SEVERITY, style.UNKNOWN, *style.AGREEMENT):
        light, dark = sorted((luminance(color), luminance(style.text_on(color))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
        assert style.text_on(color) not in style.NEUTRALS.values()
