"""The history of an audit: series, gaps, steps and what changed at them."""

import csv
import io

import numpy as np
import pytest
from made_runs import BEGIN, KL, LIMIT, finding, run, state, states
from scipy import stats

from service.audits.history.measured_state import changes
from service.audits.history.series import history
from service.audits.history.table import COLUMNS, history_csv
from service.audits.limits import parse_all

SCHEMES = ("int8", "nf4")
LIMITS = parse_all([LIMIT], SCHEMES)


def of(runs, limits=LIMITS, known=None):
    return history("watch", limits, runs, states(runs) if known is None else known)


def test_runs_come_by_their_time_with_gaps_and_repeats():
    runs = [
        run(3, finding(0.5, reach=0.1, baseline=0.4, bound=0.48, verdict="warn"), verdict="warn"),
        run(0, verdict="unchanged"),
        run(1, finding(0.4, reach=0.1)),
        run(2, verdict="skipped", reasons=("The run before has not ended.",)),
        run(4, verdict="unchanged"),
        run(5, verdict="error", reasons=("There is no model.",)),
        run(6).model_copy(update={"verdict": None}),
    ]
    made = of(runs)
    [figure] = made.figures
    assert [one.run_id for one in made.runs] == [f"{place:032x}" for place in range(6)]
    assert (figure.figure, figure.limits) == (KL, (LIMIT,))
    assert [p.status for p in figure.points] == ["gap", "measured", "gap", "measured", "unchanged", "gap"]
    assert [p.value for p in figure.points] == [None, 0.4, None, 0.5, 0.5, None]
    assert [p.reason for p in figure.points] == [
        "Nothing was measured yet.", None, "The run before has not ended.", None, None, "There is no model.",
    ]  # fmt: skip
    repeated = figure.points[4]
    assert (repeated.interval, repeated.baseline) == ((0.4, 0.6), 0.4)
    assert [(one.bound, one.verdict) for one in repeated.limits] == [(0.48, "warn")]
    assert repeated.at == BEGIN.replace(day=5)


def test_the_two_limits_of_a_figure_share_its_series():
    absolute = "int8.kl_divergence <= 0.5"
    limits = parse_all([absolute, LIMIT, "nf4.verdict no worse than severe"], SCHEMES)
    runs = [
        run(0, finding(0.6, limit=absolute, bound=0.5, verdict="broken"), finding(0.6, baseline=0.4, bound=0.48),
            finding("severe", figure="schemes.nf4.verdict.level", limit=limits[2].text))
    ]  # fmt: skip
    kl, verdict = of(runs, limits).figures
    assert kl.limits == (absolute, LIMIT)
    assert kl.points[0].baseline == 0.4
    assert [(one.limit, one.bound, one.verdict) for one in kl.points[0].limits] == [
        (absolute, 0.5, "broken"), (LIMIT, 0.48, "pass"),
    ]  # fmt: skip
    assert (verdict.points[0].value, verdict.no_steps) == ("severe", "Steps are detected in numbers only.")


def test_a_figure_without_a_limit_today_is_left_out_and_one_without_a_value_is_a_gap():
    bytes_limit = "int8.model_bytes <= 10"
    runs = [
        run(0, finding(0.4)),
        run(1, finding(None, verdict="broken"), finding(7.0, limit=bytes_limit, figure="schemes.int8.model_bytes")),
    ]
    [kl] = of(runs).figures
    assert kl.points[1].status == "gap"
    assert kl.points[1].reason == "A sentence."
    assert kl.points[1].limits[0].verdict == "broken"
    [size] = of(runs, parse_all([bytes_limit], SCHEMES)).figures
    assert [p.reason for p in size.points] == ["The figure had no limit at this run.", None]


def test_an_unchanged_run_repeats_that_there_was_no_value():
    gained = parse_all(["outliers.llm_int8 none gained"], SCHEMES)
    about = {"limit": gained[0].text, "figure": gained[0].figure.path}
    runs = [run(0, finding(None, verdict="not_judged", **about)), run(1, verdict="unchanged"),
            run(2, finding((3,), verdict="broken", **about)), run(3, verdict="unchanged")]  # fmt: skip
    [figure] = of(runs, gained).figures
    assert [(p.status, p.value, p.reason) for p in figure.points] == [
        ("gap", None, "A sentence."), ("gap", None, "A sentence."), ("measured", (3,), None), ("unchanged", (3,), None),
    ]  # fmt: skip


def test_a_step_shows_both_levels_and_what_changed():
    random = np.random.default_rng(7)
    values = [*random.normal(1.0, 0.01, 12), *random.normal(1.2, 0.01, 5)]
    runs = [run(place, finding(value, reach=0.5)) for place, value in enumerate(values)]
    known = [state(revision="a" * 40)] * 12 + [state("1", revision="b" * 40, transformers="5.21.0")] * 5
    [figure] = of(runs, known=states(runs, known)).figures
    [step] = figure.steps
    assert step.run_id == runs[12].id
    assert [change.text for change in step.changes] == [
        "revision aaaaaaaaaaaa -> bbbbbbbbbbbb",
        "weights 000000000000 -> 111111111111",
        "transformers 5.20.0 -> 5.21.0",
    ]
    assert {change.kind for change in step.changes} == {"model", "software"}
    assert (step.before.value, step.after.value) == pytest.approx((stats.gmean(values[:12]), stats.gmean(values[12:])))
    assert figure.noise.source == "series"
    deviation = figure.noise.standard_deviation
    assert deviation == pytest.approx(0.01, rel=0.6)
    reach = stats.t.ppf(0.975, 16) * deviation / 12**0.5
    assert np.log(step.before.interval) == pytest.approx(np.log(step.before.value) + np.array([-reach, reach]))
    assert (step.before.runs, step.after.runs) == (12, 5)
    assert (step.after.first, step.after.last) == (runs[12].scheduled_at, runs[16].scheduled_at)


def test_repeated_measurements_of_one_state_count_once():
    runs = [run(place, finding(1.0 if place < 20 else 1.1, reach=0.098)) for place in range(40)]
    known = states(runs, [state("0")] * 20 + [state("1")] * 20)
    [figure] = of(runs, known=known).figures
    # Two measurements, 2 deviations apart: that 20 runs repeat each does not make them surer.
    assert (figure.noise.source, figure.noise.measurements) == ("intervals", 2)
    assert figure.steps == ()
    [level] = figure.levels
    assert level.runs == 40
    clear = [run(place, finding(1.0 if place < 20 else 1.4, reach=0.098)) for place in range(40)]
    [figure] = of(clear, known=known).figures
    reach = 0.098 * np.median([1 / 1.0, 1 / 1.4])
    assert [step.run_id for step in figure.steps] == [clear[20].id]
    assert figure.steps[0].after.interval == pytest.approx(1.4 * np.exp([-reach, reach]), rel=1e-4)


def test_unchanged_runs_belong_to_the_level_before_them():
    runs = [run(0, finding(1.0, reach=0.1)), run(1, verdict="unchanged"), run(2, verdict="skipped"),
            run(3, finding(2.0, reach=0.1)), run(4, verdict="unchanged")]  # fmt: skip
    [figure] = of(runs).figures
    assert [(level.runs, level.value) for level in figure.levels] == [(2, 1.0), (2, 2.0)]
    assert (figure.levels[0].last, figure.levels[1].first) == (runs[1].scheduled_at, runs[3].scheduled_at)


def test_a_figure_of_the_model_alone_steps_at_every_change_without_an_interval():
    limits = parse_all(["int8.model_bytes <= baseline * 2"], SCHEMES)
    sizes = [100.0, 100.0, 140.0]
    runs = [run(n, finding(v, limit=limits[0].text, figure=limits[0].figure.path)) for n, v in enumerate(sizes)]
    [figure] = of(runs, limits).figures
    assert [(s.before.value, s.after.value, s.after.interval) for s in figure.steps] == [(100.0, 140.0, None)]


def test_steps_are_not_told_where_the_noise_is_not_known():
    limits = parse_all(["block.abs_max <= baseline * 2"], SCHEMES)
    runs = [run(n, finding(float(v), limit=limits[0].text, figure="block.abs_max")) for n, v in enumerate((3, 4, 9, 3))]
    [figure] = of(runs, limits).figures
    assert figure.steps == figure.levels == ()
    assert "its noise is not known" in figure.no_steps
    [alone] = of(runs[:1], limits).figures
    assert alone.no_steps == "One measurement alone has no step."
    [nothing] = of([], limits).figures
    assert nothing.no_steps == "Nothing was measured yet."


def test_what_changed_is_unknown_where_a_report_is_gone():
    runs = [run(n, finding(v, reach=0.01)) for n, v in enumerate((1.0, 1.0, 2.0))]
    known = states(runs)
    del known[runs[1].report_id]
    made = of(runs, known=known)
    assert [one.changes for one in made.runs] == [None, None, None]
    [step] = made.figures[0].steps
    assert (step.run_id, step.changes) == (runs[2].id, None)


def test_what_differs_is_named_by_kind():
    before, after = state(), state(seed=3)
    assert [(c.kind, c.text) for c in changes(before, after)] == [("settings", "seed 0 -> 3")]
    device = before._replace(device={"device": "cuda"}, software=before.software | {"python": None})
    assert [(c.kind, c.text) for c in changes(before, device)] == [("device", "device cpu -> cuda")]
    assert changes(before, before) == ()
    longer = before._replace(settings={"thresholds": "x" * 200})
    texts = [c.text for c in changes(before, longer)]
    assert texts == ["sequences 16 -> none", "seed 0 -> none", f"thresholds none -> {'x' * 57}..."]


def test_the_table_has_a_row_for_every_run_and_limit():
    absolute = "int8.kl_divergence <= 0.5"
    limits = parse_all([absolute, LIMIT, "outliers.llm_int8 none gained"], SCHEMES)
    runs = [
        run(0, finding(0.1, reach=0.01)),
        run(1, verdict="skipped", reasons=('"Late", by a day.',)),
        run(2, finding(0.6, reach=0.01, limit=absolute, bound=0.5, verdict="broken"),
            finding(0.6, reach=0.01, baseline=0.1, bound=0.12, verdict="broken"),
            finding((3, 17), limit=limits[2].text, figure="outliers.llm_int8", verdict="broken"), verdict="fail"),
    ]  # fmt: skip
    text = history_csv(of(runs, limits))
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert text.splitlines()[0] == ",".join(COLUMNS)
    kl = [row for row in rows if row["figure"] == KL]
    assert [row["limit"] for row in kl] == [LIMIT, "", absolute, LIMIT]
    assert [row["value"] for row in kl] == ["0.1", "", "0.6", "0.6"]
    assert (kl[1]["status"], kl[1]["reason"], kl[1]["verdict"]) == ("gap", '"Late", by a day.', "")
    step = kl[3]
    assert (step["bound"], step["verdict"], step["run_verdict"]) == ("0.12", "broken", "fail")
    assert (step["step_from"], step["step_to"]) == ("0.1", "0.6")
    assert step["changed"] == "revision 000000000000 -> 000000000000"
    assert [float(step[key]) for key in ("low", "high")] == pytest.approx([0.59, 0.61])
    assert rows[-1]["value"] == "3 17"
    assert rows[0]["time"] == "2026-01-01T03:00:00+00:00"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("timing.wall_seconds", None),
        ("calibration.tokens", None),
        ("model.weight_bytes", "exact"),
        ("schemes.int8.model_bytes", "exact"),
    ],
)
def test_only_figures_of_the_models_files_are_exact(path, source):
    """The time that a measurement takes is another at every run: from two values no step can be told."""
    limits = parse_all([f"{path} <= 1000"], SCHEMES)
    values = (100.0, 101.0)
    runs = [run(place, finding(value, figure=path, limit=limits[0].text)) for place, value in enumerate(values)]
    [figure] = of(runs, limits).figures
    assert (figure.noise and figure.noise.source) == source
    assert len(figure.steps) == (1 if source else 0)
