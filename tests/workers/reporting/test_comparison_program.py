"""`python -m workers.reporting.comparison`: figures from both reports' tables, one page, all of it or nothing."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest

from service.contracts.comparison import Change, Comparison
from service.contracts.report import Estimate
from workers.reporting.comparison.__main__ import main
from workers.reporting.comparison.figures import difference_maps, divergence, growth, labelled, ranges
from workers.reporting.comparison.gathering import gather
from workers.reporting.comparison.program import compare_reports
from workers.reporting.comparison.topics import headlines, topics
from workers.reporting.drawing import style

STORED = Path(__file__).parent / "stored" / "schema_1_0"


@pytest.fixture
def pair(tmp_path, make_report):
    """The stored example, and a made-up report of another depth and width."""
    return Path(shutil.copytree(STORED, tmp_path / "stored")), make_report("made")


@pytest.fixture
def twins(make_report):
    """Two reports of one depth and width that differ in every number."""
    return make_report("before"), make_report("after", seed=1)


def drawn(module, directories):
    with style.applied():
        [drawing] = list(module.draw(gather(directories)))
        drawing.figure.draw_without_rendering()
    return drawing


def restate(directory, **changes):
    path = directory / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def table(directory, name):
    return pq.read_table(directory / "tables" / f"{name}.parquet").to_pylist()


def test_the_command_as_a_process(pair, tmp_path):
    out = tmp_path / "deep" / "out"
    command = [sys.executable, "-m", "workers.reporting.comparison", str(out), *map(str, pair)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (run.returncode, run.stderr) == (0, "")
    assert {path.name for path in out.iterdir()} == {"comparison.json", "comparison.html", "summary.md", "figures"}
    assert list(out.parent.iterdir()) == [out]
    comparison = Comparison.model_validate_json((out / "comparison.json").read_bytes())
    assert [report.label for report in comparison.reports] == ["example/tiny-llama", "example/llama-small"]
    files = {file for figure in comparison.figures for file in figure.files}
    assert files == {f"figures/{path.name}" for path in (out / "figures").iterdir()}
    assert {"comparison_divergence", "comparison_error_growth", "comparison_range"} <= {
        figure.name for figure in comparison.figures
    }
    assert {warning.code for warning in comparison.warnings} >= {"calibration-differs", "models-differ"}


def test_the_page_stands_alone_and_says_what_differs(pair, tmp_path):
    compare_reports(tmp_path / "out", pair)
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    for said in (
        "example/tiny-llama",
        "example/llama-small",
        "calibration-differs",
        "different numbers of layers, 5 and 8",
        "no shared sequence",
    ):
        assert said in page
    assert page.count("<svg") == len(list((tmp_path / "out" / "figures").glob("*.svg")))
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert summary.startswith("# Headroom comparison: example/tiny-llama, example/llama-small\n")
    assert "Not compared: range, example/llama-small: different numbers of layers, 5 and 8" in summary


def test_foreign_names_do_nothing_on_the_page(make_report, tmp_path):
    evil = "<script>alert(1)</script>"
    compare_reports(tmp_path / "out", [make_report("a", source=evil), make_report("b", source="[x](http://e.example)")])
    assert "<script>" not in (tmp_path / "out" / "comparison.html").read_text()
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "<script>" not in summary
    assert "](http" not in summary


def test_points_and_intervals_are_those_of_the_reports(twins):
    axes = drawn(divergence, twins).figure.axes[0]
    places = {container.get_label(): container for container in axes.containers}
    for directory in twins:
        schemes = json.loads((directory / "report.json").read_text())["schemes"]
        label = f"example/llama-small ({directory.name})"
        line, _, [bars] = places[label].lines
        kl = [scheme["kl_divergence"] for scheme in schemes.values()]
        assert line.get_ydata() == pytest.approx([one["mean"] for one in kl])
        reach = [(top - bottom) / 2 for (_, bottom), (_, top) in bars.get_segments()]
        assert reach == pytest.approx([(one["interval"][1] - one["interval"][0]) / 2 for one in kl])
        low, high = axes.get_ylim()
        assert all(low <= y <= high for segment in bars.get_segments() for _, y in segment)


def test_points_of_one_scheme_do_not_lie_on_each_other(make_report):
    axes = drawn(divergence, [make_report(str(number), seed=number) for number in range(8)]).figure.axes[0]
    places = np.sort(np.concatenate([container.lines[0].get_xdata() for container in axes.containers]))
    assert len(places) == 16
    assert np.diff(places).min() > 0.05
    assert np.abs(places - places.round()).max() < 0.5


def test_lines_of_growth_are_those_of_the_tables(twins):
    drawing = drawn(growth, twins)
    assert [axes.get_title().split()[0] for axes in drawing.figure.axes] == ["int8", "nf4"]
    for axes, scheme in zip(drawing.figure.axes, ("int8", "nf4"), strict=True):
        for line, directory in zip(axes.get_lines(), twins, strict=True):
            wanted = {"scheme": scheme, "component": "block", "mode": "accumulated"}
            rows = [row for row in table(directory, "errors") if wanted.items() <= row.items()]
            assert line.get_ydata() == pytest.approx([row["sqnr_db"] for row in rows])


def test_a_scheme_of_one_report_alone_has_no_panel(make_report):
    directories = [make_report("a", schemes=("int8",)), make_report("b", schemes=("int8", "nf4"))]
    assert len(drawn(growth, directories).figure.axes) == 1
    names = [label.get_text() for label in drawn(divergence, directories).figure.axes[1].get_xticklabels()]
    assert names == ["int8", "nf4"]


def test_growth_that_a_report_does_not_have_was_not_measured(make_report):
    directories = [make_report("a"), make_report("b"), make_report("c", schemes=("int8",))]
    assert "(c) not measured" in drawn(growth, directories).alt


def test_another_text_is_never_better_or_worse(twins, edit_table):
    other = twins[1]
    content = json.loads((other / "report.json").read_text())
    restate(other, calibration=content["calibration"] | {"fingerprint": f"sha256:{'0' * 64}"})
    edit_table(other, "tokens", lambda rows: [row.update(token_id=6) for row in rows])
    (line,) = headlines(gather(twins))
    assert line.endswith("(after): int8, nf4 cannot be compared, because no scored sequence is shared.")
    told = next(topic for topic in topics(gather(twins)) if topic.name == "divergence")
    (grid,) = told.grids
    assert [row[-1] for row in grid.rows] == ["no shared sequence"] * 2
    assert not any("*" in cell for row in grid.rows for cell in row)


@pytest.mark.parametrize(
    ("kl", "ratio", "top", "told"),
    [(-0.002, 0.0, 0.1, "better: lower mean KL by {kl}"),
     (-0.002, 0.0, -0.171, "better: lower mean KL by {kl}, but the share of same top tokens is lower by 0.171 (95% "
                           "interval 0.161 to 0.181)"),
     (0.002, -0.02, 0.1, "worse: higher mean KL by {kl}, but the perplexity ratio is lower by 0.020 (95% interval "
                         "0.010 to 0.030) and the share of same top tokens is higher by 0.100 (95% interval 0.090 to "
                         "0.110)"),
     (0.002, 0.03, -0.1, "worse: higher mean KL by {kl}")],
)  # fmt: skip
def test_the_headline_names_what_clearly_points_the_other_way(twins, kl, ratio, top, told):
    gathered = gather(twins)
    (difference,) = gathered.comparison.differences

    def changed(by, error):
        by_much = Estimate(value=by, standard_error=error, interval=(by - 2 * error, by + 2 * error))
        return Change(baseline=None, other=None, difference=by_much, paired=True, positions=99, sequences=9,
                      clear=abs(by) > 2 * error)  # fmt: skip

    changes = {
        "kl_divergence": changed(kl, 0.0001),
        "perplexity_ratio": changed(ratio, 0.005),
        "same_top_token": changed(top, 0.005),
    }
    one = difference.model_copy(update={"schemes": {"nf4": difference.schemes["nf4"].model_copy(update=changes)}})
    comparison = gathered.comparison.model_copy(update={"differences": (one,), "warnings": ()})
    (line,) = headlines(gathered._replace(comparison=comparison))
    by = "0.00200 nats (95% interval 0.00180 to 0.00220)"
    assert line == f"{one.label}: nf4 is {told.format(kl=by)} (over 9 shared sequences)."


@pytest.mark.parametrize(("factor", "word"), [(0.5, "better"), (2.0, "worse")])
def test_differences_in_the_headline_have_no_sign_but_a_word(make_report, edit_table, factor, word):
    directories = [make_report("before"), make_report("after")]

    def change(rows):
        for row in rows:
            if row["scheme"] == "nf4" and row["kl_divergence"] is not None:
                row["kl_divergence"] *= factor

    edit_table(directories[1], "tokens", change)
    before = [row["kl_divergence"] for row in table(directories[0], "tokens") if row["scheme"] == "nf4"]
    (line,) = headlines(gather(directories))
    (found,) = re.findall(rf"nf4 is {word}: (?:low|high)er mean KL by (\S+) nats \(", line)
    assert float(found) == pytest.approx(np.nanmean(np.array(before, float)) * abs(factor - 1), rel=0.01)
    assert line.endswith("(over 1 shared sequence; rerun both with --sequences 8 or more).")


def test_a_scheme_has_one_line_in_every_row(make_report):
    schemes = ("int8", "nf4", "fp4", "mxfp4", "int4-group128")
    drawing = drawn(labelled, [make_report("a", schemes=schemes), make_report("b", schemes=("nf4", "mxfp4"))])
    lines = {}
    for axes in drawing.figure.axes:
        for key in axes.get_legend().legend_handles:
            if key.get_linestyle() != "None":
                lines.setdefault(key.get_label().split()[0], set()).add(key.get_linestyle())
    assert set(map(len, lines.values())) == {1}
    assert len(set.union(*lines.values())) > 1


def test_a_simulated_scheme_is_marked_in_figure_and_tables(make_report):
    directories = [make_report(name, schemes=("int8", "w8a8-tensor")) for name in ("a", "b")]
    names = [label.get_text() for label in drawn(divergence, directories).figure.axes[1].get_xticklabels()]
    assert names == ["int8", "w8a8-tensor (sim.)"]
    for topic in topics(gather(directories)):
        for grid in topic.grids:
            for told in (grid.caption, *(row[0] for row in grid.rows)):
                assert told.count("w8a8-tensor") == told.count("w8a8-tensor (simulated)")
    assert any("w8a8-tensor" in row[0] for topic in topics(gather(directories)) for g in topic.grids for row in g.rows)


def test_ranges_are_those_of_the_tables(pair):
    drawing = drawn(ranges, pair)
    lines = drawing.figure.axes[0].get_lines()
    for report, directory in enumerate(pair):
        rows = [row for row in table(directory, "sites") if (row["component"], row["port"]) == ("block", "output")]
        assert lines[2 * report].get_ydata() == pytest.approx([row["abs_max"] for row in rows])
        assert lines[2 * report + 1].get_ydata() == pytest.approx([row["median_abs"] for row in rows])
    low, high = drawing.figure.axes[0].get_ylim()
    values = np.concatenate([line.get_ydata() for line in lines])
    assert low < values.min()
    assert high > values.max()


def test_a_massive_activation_carried_through_layers_is_one_row(twins, edit_table):
    def carry(rows):
        for row in rows:
            if (row["component"], row["port"]) == ("block", "output") and 2 <= row["layer"] <= 6:
                row.update(abs_max=27776.0, range_bits=20.0 + row["layer"])

    edit_table(
        twins[0], "sites", lambda rows: [row.update(abs_max=90.0) for row in rows if row["component"] == "block"]
    )
    edit_table(twins[1], "sites", carry)
    grids = next(topic for topic in topics(gather(twins)) if topic.name == "range").grids
    largest = next(grid for grid in grids if grid.caption.startswith("Largest increases"))
    assert [row for row in largest.rows if "block.output" in row[0]] == [largest.rows[0]]
    site, _, _, after, *peaks = largest.rows[0]
    assert (site, after, peaks) == ("layers 2-6 block.output", "22.0 to 26.0", ["90.0", "27,776"])


def cells_of(drawing):
    [mesh] = [artist for artist in drawing.figure.axes[0].collections if artist.get_gid() == "cells"]
    return np.ma.filled(mesh.get_array().reshape(8, 7), np.nan), mesh.norm


def isolated(directory, scheme, component):
    wanted = {"scheme": scheme, "component": component, "mode": "isolated", "port": "output"}
    rows = [row for row in table(directory, "errors") if wanted.items() <= row.items()]
    return np.array([row["relative_l2"] for row in sorted(rows, key=lambda row: row["layer"])])


def test_maps_of_change_are_those_of_the_tables(twins):
    with style.applied():
        maps = {drawing.name: drawing for drawing in difference_maps.draw_errors(gather(twins))}
        [ranges_map] = difference_maps.draw_ranges(gather(twins))
    assert list(maps) == ["comparison_heatmap_int8_relative_l2_1", "comparison_heatmap_nf4_relative_l2_1"]
    cells, norm = cells_of(maps["comparison_heatmap_nf4_relative_l2_1"])
    for column, component in ((3, "attn.o"), (5, "mlp.down")):
        before, after = (isolated(directory, "nf4", component) for directory in twins)
        assert cells[:, column] == pytest.approx(20 * np.log10(after / before))
    assert norm(0) == pytest.approx(0.5)
    assert (norm.vmin, norm.vmax) == (-np.abs(cells).max(), np.abs(cells).max())
    bits = [
        {row["layer"]: row["range_bits"] for row in table(directory, "sites") if (row["component"], row["port"]) == k}
        for directory in twins
        for k in [("mlp.down", "input")]
    ]
    cells, _ = cells_of(ranges_map)
    assert cells[:, 5] == pytest.approx([bits[1][layer] - bits[0][layer] for layer in range(8)])
    assert "White is no change" in ranges_map.caption


def test_models_of_other_depth_have_no_map_of_change(pair):
    assert list(difference_maps.draw_errors(gather(pair))) == []
    assert list(difference_maps.draw_ranges(gather(pair))) == []


def test_a_component_of_one_report_alone_is_hatched(make_report):
    directories = [make_report("a"), make_report("b", absent={"mlp.gate": None})]
    with style.applied():
        drawing = next(difference_maps.draw_errors(gather(directories)))
    cells, _ = cells_of(drawing)
    assert np.isnan(cells[:, 6]).all()
    assert np.isfinite(cells[:, :6]).all()
    assert "Hatched, n/a" in drawing.caption


def test_every_report_with_prompts_has_its_row(make_report):
    directories = [make_report("a", labelled=40), make_report("b", labelled=0), make_report("c", labelled=30)]
    drawing = drawn(labelled, directories)
    names = [axes.get_ylabel().split()[-1] for axes in drawing.figure.axes if axes.get_ylabel()]
    assert names == ["(a)", "(c)"]
    for said in (
        "40 prompts of statements.jsonl",
        "30 prompts of",
        "int8 (LLM.int8()), threshold 6.0",
    ):
        assert said in drawing.caption
    assert list(labelled.draw(gather(directories[1:2] * 2))) == []


def test_every_caption_says_what_was_measured_on_what(pair, tmp_path):
    comparison = compare_reports(tmp_path / "out", pair)
    assert len(comparison.figures) > 3
    for directory in pair:
        calibration = json.loads((directory / "report.json").read_text())["calibration"]
        named = f"calibration {calibration['source']}, {calibration['sequences']} sequence"
        for figure in comparison.figures:
            assert named in figure.caption
            assert f"seed {calibration['seed']}" in figure.caption


def test_reports_without_schemes_are_compared_by_range(make_report, tmp_path):
    directories = [make_report("a", schemes=()), make_report("b", schemes=(), seed=1)]
    comparison = compare_reports(tmp_path / "out", directories)
    assert {figure.name for figure in comparison.figures} >= {"comparison_range"}
    assert "shares no scheme with the baseline" in (tmp_path / "out" / "comparison.html").read_text()


def test_a_report_without_a_table_is_compared_without_it(twins, tmp_path):
    content = json.loads((twins[1] / "report.json").read_text())
    restate(twins[1], tables=[entry for entry in content["tables"] if entry["name"] not in ("errors", "tokens")])
    comparison = compare_reports(tmp_path / "out", twins)
    left_out = {figure.name: figure.reason for figure in comparison.figures_left_out}
    assert "no table 'errors'" in left_out["comparison_growth"]
    change = comparison.differences[0].schemes["nf4"].kl_divergence
    assert (change.paired, change.positions) == (False, None)
    assert "Not drawn: <code>comparison_growth</code>" in (tmp_path / "out" / "comparison.html").read_text()


def refused(arguments, capsys):
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_what_cannot_be_compared_is_refused_by_name_and_leaves_nothing(twins, tmp_path, capsys):
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    assert "compare needs 2 to 8 reports; got 1" in refused([out, twins[0]], capsys)
    restate(twins[1], definitions_version="2.0")
    assert "after: compare needs definitions_version 1.x, as in the baseline; got '2.0'" in refused(
        [out, *twins], capsys
    )
    restate(twins[1], definitions_version="1.0", schema_version="3.1")
    assert f"{twins[1]}: report.json: schema_version: '3.1' is not allowed" in refused([out, *twins], capsys)
    assert "none" in refused([out, twins[0], tmp_path / "none"], capsys)
    (twins[0] / "tables" / "tokens.parquet").write_bytes(b"PAR1")
    assert f"{twins[0]}: tables/tokens.parquet: not a whole Parquet file" in refused([out, *twins], capsys)
    assert list(out.parent.iterdir()) == []
    assert "OUT must be a new or empty directory" in refused([tmp_path, *twins], capsys)


def test_a_full_disk_leaves_nothing(twins, tmp_path, capsys, monkeypatch):
    write = Path.write_text

    def full(path, *arguments, **options):
        if path.name == "comparison.json":
            raise OSError(28, "No space left on device", str(path))
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    (tmp_path / "place").mkdir()
    assert main([str(tmp_path / "place" / "out"), *map(str, twins)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "place").iterdir()) == []


def test_the_same_reports_give_the_same_bytes(twins, tmp_path):
    for name in ("one", "two"):
        compare_reports(tmp_path / name, twins)
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    svg = ElementTree.parse(tmp_path / "one" / "figures" / "comparison_divergence.svg")
    assert "Divergence of the predictions" in "".join(svg.getroot().itertext())


def test_dimensions_of_a_definition_that_flags_most_are_counted_not_named(twins):
    before, after = twins
    outliers = json.loads((after / "report.json").read_text())["outliers"]
    one = outliers["llm_int8"]["dimensions"][0]
    outliers["llm_int8"]["dimensions"] = [one | {"dimension": j} for j in range(129)]
    outliers["llm_int8_relative"]["dimensions"] = [one | {"dimension": 77}]
    restate(after, outliers=outliers)
    own = {
        d["dimension"] for d in json.loads((before / "report.json").read_text())["outliers"]["llm_int8"]["dimensions"]
    }
    (grid,) = next(topic for topic in topics(gather([before, after])) if topic.name == "outliers").grids
    rows = {row[0].partition(",")[0]: row[1:] for row in grid.rows}
    kept = len(own & set(range(129)))
    assert rows["llm_int8"] == tuple(
        f"{count} (does not discriminate)" for count in (129 - kept, len(own) - kept, kept)
    )
    assert rows["llm_int8_relative"] == ("77", "-", "-")
