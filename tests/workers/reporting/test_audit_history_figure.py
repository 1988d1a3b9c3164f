"""The figure of an audit's history: what it draws of every run, for one run, a year of them and unusual ones."""

import itertools
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.dates import date2num

from service.contracts.audits.history import AuditHistory
from workers.reporting.drawing import style
from workers.reporting.history.__main__ import main
from workers.reporting.history.figures import draw
from workers.reporting.history.series import LOOKS

BEGIN = datetime(2026, 1, 1, 3, tzinfo=UTC)
LIMIT = "int8.kl_divergence <= baseline * 1.2"
KL = "schemes.int8.kl_divergence.mean"


def held(verdict="pass", bound=1.2, limit=LIMIT):
    return {"limit": limit, "bound": bound, "verdict": verdict}


def point(value, verdict="pass", *, status="measured", run=None, bound=1.2, **facts):
    return {"value": value, "status": status, "limits": [held(verdict, bound)], "run": run or verdict, **facts}


def gap(run, reason="The run before has not ended."):
    return {"value": None, "status": "gap", "run": run, "reason": reason}


def figure(points, *, name=KL, kind="number", limits=(LIMIT,), **facts):
    placed = [
        {"run_id": f"{n:032x}", "at": (BEGIN + timedelta(days=n)).isoformat(), **one} for n, one in enumerate(points)
    ]
    for one in placed:
        one.pop("run")
    return {"figure": name, "kind": kind, "limits": limits, "points": placed, "levels": [], "steps": [],
            "noise": None, "no_steps": None, **facts}  # fmt: skip


def history(points, *figures, name="watch"):
    runs = [
        {"run_id": f"{n:032x}", "at": (BEGIN + timedelta(days=n)).isoformat(), "trigger": "schedule",
         "verdict": one["run"], "reasons": [], "report_id": None, "baseline_report_id": None, "changes": None}
        for n, one in enumerate(points)
    ]  # fmt: skip
    return AuditHistory.model_validate({"audit": name, "runs": runs, "figures": figures or [figure(points)]})


def drawn(of):
    with style.applied():
        drawings = list(draw(of))
        for one in drawings:
            one.figure.draw_without_rendering()
    return drawings


def marks(axes):
    return {line.get_gid().partition("-")[2]: line for line in axes.get_lines() if "-" in (line.get_gid() or "")}


def with_step(points, *steps, **facts):
    """Return a figure with steps at runs of the given places, and the levels between them."""
    ends = [0, *(at for at, _ in steps), len(points)]
    levels = [
        {"value": 1.0 + place, "interval": [0.9 + place, 1.1 + place], "first": BEGIN.isoformat(),
         "last": BEGIN.isoformat(), "runs": end - start}
        for place, (start, end) in enumerate(itertools.pairwise(ends))
    ]  # fmt: skip
    listed = [
        {"run_id": f"{at:032x}", "at": (BEGIN + timedelta(days=at)).isoformat(), "before": levels[place],
         "after": levels[place + 1], "changes": changes}
        for place, (at, changes) in enumerate(steps)
    ]  # fmt: skip
    return figure(points, levels=levels, steps=listed, **facts)


def change(text):
    return {"kind": "software", "name": "transformers", "before": "1", "after": "2", "text": text}


def test_every_run_has_the_mark_of_its_verdict_at_its_value():
    points = [
        point(1.0, "not_judged", run="pass", bound=None), point(1.0), point(1.0, status="unchanged", run="unchanged"),
        point(1.3, "warn"), point(1.6, "broken", run="fail"), point(1.5, "broken", run="unconfirmed"),
        gap("skipped"), gap("error"), point(None, "broken", status="gap", run="fail"),
        point(None, "not_judged", status="gap", run="pass"),
    ]  # fmt: skip
    [drawing] = drawn(history(points))
    [axes] = drawing.figure.axes
    at = {kind: (line.get_xdata().tolist(), line.get_ydata().tolist()) for kind, line in marks(axes).items()}
    day = date2num(BEGIN)
    expected = {"not_judged": (0, 1.0), "pass": (1, 1.0), "unchanged": (2, 1.0), "warn": (3, 1.3), "fail": (4, 1.6),
                "unconfirmed": (5, 1.5)}  # fmt: skip
    for kind, (place, value) in expected.items():
        assert at[kind] == ([day + place], [value]), kind
    assert {kind: at[kind][0] for kind in ("skipped", "error", "fail-none", "no_value")} == {
        "skipped": [day + 6], "error": [day + 7], "fail-none": [day + 8], "no_value": [day + 9],
    }  # fmt: skip
    assert drawing.hover["panel0-skipped"] == ["2026-01-07 03:00 UTC: skipped: The run before has not ended."]
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert labels[:3] == ["pass", "unchanged", "warn"]
    assert {"skipped", "error", "no value", "limit"} < set(labels)
    assert "baseline" not in labels


def test_marks_are_told_apart_by_shape_and_by_color():
    shapes = {(look.marker, look.face == style.PAPER, look.size < 4) for look in LOOKS.values()}
    assert len(shapes) == len(LOOKS)


def test_the_value_breaks_at_gaps_and_limits_go_on():
    points = [point(1.0, baseline=1.0), gap("skipped"), point(1.1, baseline=1.1, bound=1.32)]
    [axes] = drawn(history(points))[0].figure.axes
    by_color = {line.get_color(): line for line in axes.get_lines() if line.get_marker() == "None"}
    np.testing.assert_array_equal(by_color[style.BLUE].get_ydata(), [1.0, np.nan, 1.1])
    np.testing.assert_array_equal(by_color[style.ORANGE].get_ydata(), [1.2, 1.2, 1.2, 1.2, 1.32, 1.32])
    np.testing.assert_array_equal(by_color[style.MUTED].get_ydata(), [1.0, 1.0, 1.0, 1.0, 1.1, 1.1])
    edges = by_color[style.ORANGE].get_xdata()
    assert (edges[0], edges[-1]) == axes.get_xlim()


@pytest.mark.parametrize("count", [1, 5, 60, 61, 365])
def test_axes_cover_values_and_intervals(count):
    random = np.random.default_rng(count)
    values = random.normal(1, 0.1, count).tolist()
    [drawing] = drawn(history([point(v, interval=[v - 0.3, v + 0.3]) for v in values]))
    [axes] = drawing.figure.axes
    low, high = axes.get_ylim()
    assert low < min(values) - 0.3
    assert high > max(values) + 0.3
    left, right = axes.get_xlim()
    assert left < date2num(BEGIN)
    assert right > date2num(BEGIN) + count - 1
    bars = [one for one in axes.collections if one.get_paths()]
    assert len(bars) == 1
    assert len(bars[0].get_paths()) == (count if count <= 60 else 1)


def test_a_limit_far_off_is_stated_and_one_close_is_drawn():
    points = [point(1.0, bound=50.001), point(1.01, bound=50.001)]
    [drawing] = drawn(history(points))
    [axes] = drawing.figure.axes
    assert axes.get_title(loc="left").splitlines() == [LIMIT, "Not in view: the limit 50.001"]
    assert axes.get_ylim()[1] < 2
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == ["pass"]
    [axes] = drawn(history([point(1.0, bound=2.0), point(1.01, bound=2.0)]))[0].figure.axes
    assert axes.get_title(loc="left") == LIMIT
    assert axes.get_ylim()[1] > 2


def test_several_limits_on_one_figure_are_numbered_alike_in_title_and_panel():
    limits = ("int8.kl_divergence <= 1.4", "int8.kl_divergence <= baseline * 1.2", "int8.kl_divergence <= 1.2")
    held_to = [held(bound=bound, limit=limit) for bound, limit in zip((1.4, 1.2, 1.2), limits, strict=True)]
    points = [point(1.0) | {"limits": held_to} for _ in range(3)]
    [one] = drawn(history(points, figure(points, limits=limits)))
    axes = one.figure.axes[0]
    assert {(text.get_text(), text.xy[1]) for text in axes.texts} == {("(1)", 1.4), ("(2, 3)", 1.2)}
    assert axes.get_title(loc="left").startswith(f"(1) {limits[0]}; (2) {limits[1]}; (3) {limits[2]}")
    [alone] = drawn(history(points))
    assert not alone.figure.axes[0].texts


@pytest.mark.parametrize("count", [1, 3])
def test_a_figure_without_any_value_has_no_scale(count):
    [drawing] = drawn(history([gap("skipped"), gap("error"), point(None, "broken", status="gap", run="fail")][:count]))
    [axes] = drawing.figure.axes
    assert (axes.get_ylabel(), list(axes.get_yticks())) == ("no value", [])


@pytest.mark.parametrize("kind", ["dimensions", "level"])
def test_a_set_or_level_that_was_never_judged_is_drawn(kind):
    points = [point(None, "not_judged", bound=None, run="pass")]
    of = history(points, figure(points, name="outliers.llm_int8", kind=kind, limits=("outliers.llm_int8 none gained",)))
    [drawing] = drawn(of)
    assert drawing.figure.axes[0].get_ylabel() == ("no value" if kind == "dimensions" else "")


@pytest.mark.parametrize(("count", "label"), [(1, "UTC"), (2, "2026-01-01 03:00 to 2026-01-02 03:00 UTC")])
def test_the_time_axis_says_of_which_days_and_zone_it_is(count, label):
    [drawing] = drawn(history([point(1.0)] * count))
    assert drawing.figure.axes[0].get_xlabel() == label


def test_steps_have_their_levels_and_say_what_changed():
    points = [point(1.0), point(1.0), point(2.0), point(2.0)]
    long = [change(f"part{n} before -> after") for n in range(12)]
    one = with_step(points, (2, [change("transformers 1 -> 2")]), (3, long))
    [axes] = drawn(history(points, one))[0].figure.axes
    lines = axes.get_title(loc="left").splitlines()
    assert lines[1] == "1  2026-01-03: 1.00 (0.90 to 1.10) -> 2.00 (1.90 to 2.10); transformers 1 -> 2"
    assert lines[2].startswith("2  2026-01-04: 2.00 (1.90 to 2.10) -> 3.00")
    assert len(lines) == 4
    assert lines[3].endswith("...")
    levels = [line for line in axes.get_lines() if line.get_linewidth() == 3]
    day = date2num(BEGIN)
    assert [list(line.get_xdata()) for line in levels] == [
        [day, day + 1.5],
        [day + 1.5, day + 2.5],
        [day + 2.5, day + 3],
    ]
    assert [line.get_ydata()[0] for line in levels] == [1.0, 2.0, 3.0]
    assert [text.get_text() for text in axes.texts] == ["1", "2"]
    [unknown] = drawn(history(points, with_step(points, (2, None))))
    assert "a report is gone, so that what changed is not known" in unknown.figure.axes[0].get_title(loc="left")
    [nothing] = drawn(history(points, with_step(points, (2, []))))
    assert "no recorded setting, library or model changed" in nothing.figure.axes[0].get_title(loc="left")


def test_the_numbers_of_many_steps_do_not_overlap():
    points = [point(float(n % 2 + 1)) for n in range(365)]
    steps = [(at, []) for at in range(300, 320)]
    [drawing] = drawn(history(points, with_step(points, *steps)))
    [axes] = drawing.figure.axes
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.x0)
    assert [text.get_text() for text in axes.texts] == ["16", "17", "18", "19", "20"]
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))
    assert "Steps before these: 15 steps, in the table" in axes.get_title(loc="left")


def test_levels_and_sets_have_axes_of_their_own():
    words = [point("negligible", baseline="negligible", bound="negligible"), point("severe", "broken", run="fail")]
    sets = [point((), bound=None), point((3, 17), "broken", run="fail", bound=None)]
    limits = ("int8.verdict no worse than baseline", "outliers.llm_int8 none gained")
    of = history(
        words,
        figure(words, name="schemes.int8.verdict.level", kind="level", limits=limits[:1]),
        figure(sets, name="outliers.llm_int8", kind="dimensions", limits=limits[1:]),
    )
    [drawing] = drawn(of)
    verdict, outliers = drawing.figure.axes
    assert [text.get_text() for text in verdict.get_yticklabels()] == ["negligible", "noticeable", "severe"]
    assert marks(verdict)["fail"].get_ydata().tolist() == [2.0]
    assert marks(outliers)["fail"].get_ydata().tolist() == [2.0]
    assert drawing.hover["panel1-fail"] == ["2026-01-02 03:00 UTC: fail: 2 gained"]
    assert "last value 2 gained" in drawing.alt


def test_figures_of_many_limits_hold_six_panels_each():
    points = [point(1.0)]
    of = history(points, *[figure(points, name=f"schemes.s{n}.compression") for n in range(8)])
    first, second = drawn(of)
    assert (first.name, second.name) == ("audit_history_1", "audit_history_2")
    assert (len(first.figure.axes), len(second.figure.axes)) == (6, 2)
    assert list(draw(history([]))) == []


def test_the_command_as_a_process(tmp_path):
    points = [point(1.0), gap("error", "No model: $x$ <b>"), point(2.0, "broken", run="fail")]
    source, out = tmp_path / "source", tmp_path / "deep" / "out"
    source.mkdir()
    (source / "history.json").write_text(history(points).model_dump_json())
    (source / "history.csv").write_text("time,run\r\n", newline="")
    command = [sys.executable, "-m", "workers.reporting.history", str(out), str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (run.returncode, run.stderr) == (0, "")
    assert list(out.parent.iterdir()) == [out]
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {"history.json", "history.csv", "figures/audit_history.svg", "figures/audit_history.png"}
    assert json.loads((out / "history.json").read_text())["audit"] == "watch"
    titles = [
        e.text for e in ElementTree.parse(out / "figures" / "audit_history.svg").iter() if e.tag.endswith("title")
    ]
    assert "2026-01-02 03:00 UTC: error: No model: $x$ <b>" in titles


def test_what_cannot_be_drawn_is_refused(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    assert main([str(tmp_path / "out"), str(source)]) == 2
    assert "has no history.json" in capsys.readouterr().err
    (source / "history.json").write_text("{}")
    (source / "history.csv").write_text("")
    assert main([str(tmp_path / "out"), str(source)]) == 2
    assert "history.json is not the history of an audit" in capsys.readouterr().err
    (source / "history.json").write_text(history([point(1.0)]).model_dump_json())
    assert main([str(source), str(source)]) == 2
    assert "OUT must be a new or empty directory" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
