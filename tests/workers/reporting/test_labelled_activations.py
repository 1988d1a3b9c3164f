"""Every histogram holds each prompt once, on its own side; what has no figure is said, not drawn."""

import itertools
import json
import re
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from scipy import stats

from service.contracts.sections.labelled import Separation
from service.errors import ReportUnreadable
from workers.reporting.drawing import style
from workers.reporting.drawing.separation_grid import Panel, Row, bin_edges, grid, outlined
from workers.reporting.figures import labelled_activations
from workers.reporting.render import render

DIMENSIONS = (201, 14, 35, 67)


@pytest.fixture
def draw(draw_with):
    return partial(draw_with, labelled_activations)


@pytest.fixture
def edit_labelled():
    """A function that changes what report.json says of the labeled prompts."""

    def edit(directory, change):
        path = directory / "report.json"
        content = json.loads(path.read_text())
        change(content["labelled"])
        path.write_text(json.dumps(content))

    return edit


def panels(drawing):
    """The axes that hold histograms, by dimension."""
    return {int(axes.get_xlabel().split("-")[0]): axes for axes in drawing.figure.axes if axes.patches}


def steps(axes, variant, side):
    """The histogram of a variant: heights and edges."""
    patch = next(patch for patch in axes.patches if patch.get_gid().startswith(f"{variant}-{side}-"))
    data = patch.get_data()
    return np.asarray(data.values), np.asarray(data.edges)


def counted_by_hand(values, edges):
    counts = [sum(low <= value < high for value in values) for low, high in itertools.pairwise(edges)]
    counts[-1] += sum(value == edges[-1] for value in values)
    return counts


def one_panel(dimension=7, records=50, schemes=(), aurocs=(), seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(records) % 2 == 0
    values = {name: random.normal(size=records).astype(np.float32) for name in ("reference", *schemes)}
    given = dict(zip(values, (0.9, *aurocs), strict=True))
    return Panel(dimension, labels, values, {v: Separation(spearman_rho=0.5, auroc=a) for v, a in given.items()})


def test_every_bin_says_on_hover_what_is_in_it(make_report, draw, tmp_path):
    drawing = draw(make_report(labelled=160))["labelled_activations"]
    drawn = panels(drawing)
    assert len(drawing.hover) == len(drawn)
    for (gid, texts), axes in zip(drawing.hover.items(), drawn.values(), strict=True):
        for variant in ("reference", "int8", "nf4"):
            for side in ("true", "false"):
                counts = [int(re.search(rf"; {variant}[^;]* (\d+) {side}", text)[1]) for text in texts]
                assert counts == steps(axes, variant, side)[0].tolist()
        (unseen,) = (one for one in axes.collections if one.get_gid() == gid)
        boxes = [path.get_extents() for path in unseen.get_paths()]
        edges = steps(axes, "reference", "true")[1].tolist()
        np.testing.assert_allclose([(box.x0, box.x1) for box in boxes], list(itertools.pairwise(edges)))
    drawing.save(tmp_path)
    svg = (tmp_path / "labelled_activations.svg").read_text()
    assert svg.count("<title>") == sum(map(len, drawing.hover.values())) > 30


@pytest.mark.parametrize("records", [4, 160, 2000])
def test_blue_sums_to_the_true_prompts_and_red_to_the_false(make_report, draw, rows_of, records):
    report = make_report(labelled=records)
    true = sum(row["label"] for row in rows_of(report, "labelled"))
    drawn = panels(draw(report)["labelled_activations"])
    assert list(drawn) == list(DIMENSIONS)
    for axes in drawn.values():
        for variant in ("reference", "int8", "nf4"):
            assert steps(axes, variant, "true")[0].sum() == true
            assert steps(axes, variant, "false")[0].sum() == records - true


def test_heights_are_the_tables_values_counted_in_shared_bins(make_report, draw, rows_of):
    report = make_report()
    rows = rows_of(report, "labelled")
    for dimension, axes in panels(draw(report)["labelled_activations"]).items():
        _, edges = steps(axes, "reference", "true")
        for variant in ("reference", "int8", "nf4"):
            for side, label in (("true", True), ("false", False)):
                heights, own_edges = steps(axes, variant, side)
                values = [row[f"{variant}_{dimension}"] for row in rows if row["label"] is label]
                np.testing.assert_array_equal(own_edges, edges)
                assert heights.tolist() == counted_by_hand(values, edges)


def test_true_is_blue_and_false_is_red_and_a_legend_says_so(make_report, draw):
    figure = draw(make_report())["labelled_activations"].figure
    blue, red = to_rgb(style.TRUE), to_rgb(style.FALSE)
    assert blue[2] > blue[0] + 0.3
    assert red[0] > red[2] + 0.3
    for axes in figure.axes:
        for patch in axes.patches:
            color = patch.get_facecolor() if patch.get_fill() else patch.get_edgecolor()
            assert tuple(color[:3]) == pytest.approx(blue if "-true-" in patch.get_gid() else red)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["true answer", "false answer"]
    shown = [tuple(patch.get_facecolor()[:3]) for patch in figure.legends[0].get_patches()]
    assert shown == [pytest.approx(blue), pytest.approx(red)]


def test_labels_are_those_of_the_contract(make_report, draw):
    figure = draw(make_report(source="example/llama-small"))["labelled_activations"].figure
    assert [axes.get_xlabel() for axes in figure.axes] == [f"{d}-th neuron act." for d in DIMENSIONS]
    assert [axes.get_ylabel() for axes in figure.axes] == ["# Samples / llama-small", "", "", ""]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert [any(label.get_visible() for label in axes.get_yticklabels()) for axes in figure.axes] == [True] + 3 * [
        False
    ]


def test_titles_and_panels_state_the_figures_as_scipy_has_them(make_report, draw, rows_of):
    report = make_report()
    rows = rows_of(report, "labelled")
    labels = np.array([row["label"] for row in rows])

    def auroc(variant, dimension):
        values = np.array([row[f"{variant}_{dimension}"] for row in rows])
        return stats.mannwhitneyu(values[labels], values[~labels]).statistic / (labels.sum() * (~labels).sum())

    for dimension, axes in panels(draw(report)["labelled_activations"]).items():
        rho = stats.spearmanr([row[f"reference_{dimension}"] for row in rows], labels).statistic
        assert axes.get_title() == f"rho {rho:.3f}, AUROC {auroc('reference', dimension):.3f}"
        legend = axes.get_legend()
        assert legend.get_title().get_text() == "AUROC under"
        assert [text.get_text() for text in legend.get_texts()] == [
            f"{scheme} {auroc(scheme, dimension):.3f}" for scheme in ("int8", "nf4")
        ]


def test_axes_cover_the_data_and_leave_what_is_written_free(make_report, draw, rows_of):
    report = make_report()
    rows = rows_of(report, "labelled")
    for dimension, axes in panels(draw(report)["labelled_activations"]).items():
        values = [row[f"{variant}_{dimension}"] for row in rows for variant in ("reference", "int8", "nf4")]
        left, right = axes.get_xlim()
        assert left < min(values)
        assert right > max(values)
        peak = max(patch.get_data().values.max() for patch in axes.patches)
        bottom, top = axes.get_ylim()
        assert bottom == 0
        assert peak < top
        assert axes.get_legend().get_window_extent().y0 > axes.transData.transform((0, peak))[1]


def test_densities_have_an_area_of_one_and_an_axis_each(make_report, draw_with):
    drawing = draw_with(labelled_activations, make_report(), density=True)["labelled_activations"]
    for axes in panels(drawing).values():
        for variant in ("reference", "nf4"):
            for side in ("true", "false"):
                heights, edges = steps(axes, variant, side)
                assert (heights * np.diff(edges)).sum() == pytest.approx(1)
                assert heights.max() < axes.get_ylim()[1]
    assert len({axes.get_ylim() for axes in drawing.figure.axes}) == 4
    assert drawing.figure.axes[0].get_ylabel() == "Density / llama-small"
    assert "density" in drawing.caption


def test_the_caption_says_what_is_drawn(make_report, draw):
    drawing = draw(make_report())["labelled_activations"]
    for part in (
        "after the final norm", "160 labeled prompts of statements.jsonl", "106 true, 54 false", "abs(AUROC - 0.5)",
        "int8 (LLM.int8()), threshold 6.0", "nf4 (4-bit NormalFloat), quant_type nf4", "Model example/llama-small",
        "calibration calibration.txt", "tables/labelled.parquet",
    ):  # fmt: skip
        assert part in drawing.caption
    assert "dimension 201: reference 0.9" in drawing.alt


def test_scores_are_said_with_their_threshold_and_depth(make_report, draw, edit_labelled):
    report = make_report()
    edit_labelled(
        report, lambda labelled: labelled.update(given="score", threshold=0.25, ranked_by="spearman_rho", depth=5)
    )
    caption = draw(report)["labelled_activations"].caption
    for part in ("true: score over 0.25", "after layer 5", "largest abs(rho)", "with the score"):
        assert part in caption


def test_without_labelled_prompts_there_is_no_figure(make_report, draw):
    assert draw(make_report(labelled=0)) == {}


def test_without_schemes_there_is_the_reference_alone(make_report, draw):
    drawing = draw(make_report(schemes=()))["labelled_activations"]
    for axes in panels(drawing).values():
        assert len(axes.patches) == 2
        assert axes.get_legend() is None
    assert "Outlines" not in drawing.caption


def test_a_rho_that_is_not_there_is_not_a_number(make_report, draw, edit_labelled):
    report = make_report()
    edit_labelled(report, lambda labelled: labelled["dimensions"][1]["reference"].update(spearman_rho=None))
    assert panels(draw(report)["labelled_activations"])[14].get_title().startswith("rho n/a, AUROC 0.")


def test_labels_that_are_all_equal_are_said_in_place_of_histograms(make_report, draw, edit_labelled, edit_table):
    report = make_report(labelled=30)
    edit_table(report, "labelled", lambda rows: [row.update(label=True) for row in rows])
    edit_labelled(report, lambda labelled: labelled.update(true_records=30, dimensions=[], ranked_by=None))
    drawing = draw(report)["labelled_activations"]
    said = [text.get_text() for axes in drawing.figure.axes for text in axes.texts]
    assert said == ["llama-small: All 30 labeled prompts are true: there is nothing to separate."]
    assert "AUROC is not defined" in drawing.caption
    assert "All 30 labeled prompts are true" in drawing.alt


def test_scores_on_one_side_of_the_threshold_are_drawn_without_an_auroc(make_report, draw, edit_labelled, edit_table):
    report = make_report(labelled=30, schemes=())
    edit_table(report, "labelled", lambda rows: [row.update(label=False) for row in rows])

    def one_sided(labelled):
        labelled.update(true_records=0, given="score", threshold=9.0, ranked_by="spearman_rho")
        for dimension in labelled["dimensions"]:
            dimension["reference"].update(auroc=None)

    edit_labelled(report, one_sided)
    drawing = draw(report)["labelled_activations"]
    for axes in panels(drawing).values():
        assert axes.get_title().endswith("AUROC n/a")
        assert steps(axes, "reference", "true")[0].sum() == 0
        assert steps(axes, "reference", "false")[0].sum() == 30
    assert "AUROC is not defined" in drawing.caption


def test_values_that_are_not_finite_are_left_out_and_counted(make_report, draw, edit_table):
    report = make_report(labelled=60)

    def spoil(rows):
        for row, value in zip(rows, (None, float("inf"), float("-inf")), strict=False):
            row["int8_14"] = value

    edit_table(report, "labelled", spoil)
    drawing = draw(report)["labelled_activations"]
    axes = panels(drawing)[14]
    assert sum(steps(axes, "int8", side)[0].sum() for side in ("true", "false")) == 57
    assert sum(steps(axes, "reference", side)[0].sum() for side in ("true", "false")) == 60
    assert "Not drawn: 3 values of dimension 14 under int8, not finite." in drawing.caption


def test_figures_of_a_scheme_that_are_missing_are_named(make_report, draw, edit_labelled):
    report = make_report()
    edit_labelled(report, lambda labelled: labelled["dimensions"][2]["schemes"].pop("nf4"))
    with pytest.raises(ReportUnreadable, match=r"labelled\.dimensions\.2\.schemes: 'nf4' is missing; found int8"):
        draw(report)


def test_a_report_that_does_not_list_the_table_says_so(make_report):
    report = make_report()
    content = json.loads((report / "report.json").read_text())
    content["tables"] = [table for table in content["tables"] if table["name"] != "labelled"]
    (report / "report.json").write_text(json.dumps(content))
    left_out = {figure.name: figure.reason for figure in render(report).figures_left_out}
    assert "has no table 'labelled'" in left_out["labelled_activations"]


def test_a_table_of_other_prompts_is_refused(make_report, draw, edit_table):
    report = make_report(labelled=60)
    edit_table(report, "labelled", lambda rows: rows.pop())
    with pytest.raises(ReportUnreadable, match=r"labelled\.parquet: column 'label' has 39 true of 59 .* 40 of 60"):
        draw(report)


def test_a_grid_has_a_row_for_each_model():
    rows = [
        Row("first", [one_panel(dimension, schemes=("int8",), aurocs=(0.8,)) for dimension in (5, 6, 8191)]),
        Row("second", [], "All 9 labeled prompts are false."),
        Row("a-model-with-a-name-of-some-length", [one_panel(3, records=400)]),
    ]
    with style.applied():
        figure, _ = grid(rows)
    drawn = [axes for axes in figure.axes if axes.patches]
    assert [axes.get_xlabel() for axes in drawn] == [f"{d}-th neuron act." for d in (5, 6, 8191, 3)]
    tops = [axes.get_window_extent().y0 for axes in figure.axes]
    assert tops[0] == tops[1] == tops[2] > tops[3] > tops[4]
    assert drawn[0].get_ylim() == drawn[1].get_ylim() != drawn[3].get_ylim()
    assert drawn[3].get_ylabel() == "# Samples / \na-model-with-a-name-of-some-length"
    assert figure.axes[3].texts[0].get_text() == "second: All 9 labeled prompts are false."


def test_a_grid_without_outlines_shows_references_alone():
    with style.applied():
        figure, _ = grid([Row("m", [one_panel(schemes=("int8",), aurocs=(0.8,))])], outlines=False)
    assert [patch.get_gid() for patch in figure.axes[0].patches] == ["reference-true-0-0", "reference-false-0-0"]
    assert figure.axes[0].get_legend() is None


def test_many_dimensions_go_on_beneath_and_the_rest_is_said(make_report, draw):
    drawing = draw(make_report(label_dimensions=tuple(range(20)), labelled=40))["labelled_activations"]
    lefts = [round(axes.get_window_extent().x0) for axes in drawing.figure.axes]
    assert list(panels(drawing)) == list(range(16))
    assert len(set(lefts)) == 4
    assert "The best 16 of 20" in drawing.caption


def test_of_many_schemes_those_that_move_the_auroc_most_are_outlined():
    schemes, aurocs = ("a", "b", "c", "d", "e"), (0.9, 0.7, 0.88, None, 0.1)
    panel = one_panel(schemes=schemes, aurocs=aurocs)
    assert outlined([panel]) == ("b", "c", "e")
    assert outlined([one_panel(schemes=("x", "y"), aurocs=(None, 0.9))]) == ("x", "y")
    with style.applied():
        axes = grid([Row("m", [panel])])[0].axes[0]
    assert {patch.get_gid().split("-")[0] for patch in axes.patches} == {"reference", "b", "c", "e"}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "a 0.900", "b 0.700", "c 0.880", "d n/a", "e 0.100"
    ]  # fmt: skip
    lines = [line.get_linestyle() for line in axes.get_legend().get_lines()]
    assert lines == ["None", "-", "--", "None", "-."]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40))
def test_no_finite_value_falls_outside_the_bins(values):
    array = np.array([*values, np.nan, np.inf], dtype=np.float32)
    edges = bin_edges(array, len(values))
    assert (np.diff(edges) > 0).all()
    assert 8 <= len(edges) - 1 <= 60
    assert np.histogram(array[np.isfinite(array)].astype(np.float64), edges)[0].sum() == len(values)


@pytest.mark.parametrize(("probability", "said"), [(0.31, True), (0.05, False), (None, False)])
def test_the_caption_says_when_chance_does_as_well(make_report, draw, edit_labelled, probability, said):
    report = make_report()
    edit_labelled(report, lambda counts: counts.update(permutation_probability=probability, permutations=999))
    caption = draw(report)["labelled_activations"].caption
    assert ("no dimension separates beyond chance" in caption) is said
    assert ("p = " in caption) is (probability is not None)
