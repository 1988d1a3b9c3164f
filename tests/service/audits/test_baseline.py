"""Which report a run is held against."""

import random
from datetime import UTC, datetime, timedelta
from statistics import median

import pytest
from made_reports import made_up, report

from service.audits.baseline import Rule, check_pinned, mismatches, rule, select, text_mismatch
from service.contracts.audits.audit import AuditDefinition, PastRun
from service.contracts.files import StoredFile
from service.errors import InvalidRequest

BEGIN = datetime(2027, 1, 1, tzinfo=UTC)


def past(day, verdict="pass", report_id="", **values):
    """Return a run that ended on a day; its report is called like the day unless it has none."""
    name = f"r{day}" if report_id == "" else report_id
    return PastRun(report_id=name, finished_at=BEGIN + timedelta(days=day), verdict=verdict, values=values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("last-passing", Rule("last-passing")),
        ("median:1", Rule("median", runs=1)),
        ("median:100", Rule("median", runs=100)),
        ("report:0123-ab_C", Rule("pinned", report_id="0123-ab_C")),
    ],
)
def test_a_rule_is_read(text, expected):
    assert rule(text) == expected


@pytest.mark.parametrize("text", ["", "last", "median", "median:0", "median:101", "median:-1", "median:1.5", "median:٣",
                                  "report:", "report:a/b", "report:a b", "Last-Passing"])  # fmt: skip
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(InvalidRequest) as refused:
        rule(text)
    allowed = "last-passing, median:K with K from 1 to 100, or report:ID, such as median:5"
    assert str(refused.value) == f"baseline: {text!r} is not allowed; allowed: {allowed}"


def test_the_last_passing_run_is_the_last_that_passed():
    runs = [past(3), past(1), past(7, "fail"), past(6, "warn"), past(5, "error", None), past(4, "unconfirmed"),
            past(8, "unchanged", None), past(9, "skipped", None), past(10, "pass", None)]  # fmt: skip
    assert select(rule("last-passing"), runs, ["x"]) == "r3"
    assert select(rule("last-passing"), [], ["x"]) is None
    assert select(rule("last-passing"), [past(1, "fail"), past(2, "error", None)], ["x"]) is None


def test_a_pinned_report_needs_no_run():
    assert select(rule("report:abc"), [past(3)], ["x"]) == "abc"


def test_a_pinned_report_of_a_failed_run_is_refused():
    for verdict in ("fail", "error"):
        with pytest.raises(
            InvalidRequest, match=f"baseline: 'report:r2' is the report of a run that ended as {verdict}; "
        ):
            check_pinned(rule("report:r2"), [past(1), past(2, verdict)])
    check_pinned(rule("report:r2"), [past(1, "fail"), past(2, "warn")])
    check_pinned(rule("last-passing"), [past(1, "fail"), past(2, "error", None)])


@pytest.mark.parametrize("seed", range(20))
def test_the_median_of_one_figure_is_held_by_the_report_with_the_middle_value(seed):
    values = random.Random(seed)
    runs = [past(day, x=values.random()) for day in range(12)]
    values.shuffle(runs)
    last = sorted(runs, key=lambda run: run.finished_at)[-5:]
    chosen = select(rule("median:5"), runs, ["x"])
    assert next(run.values["x"] for run in last if run.report_id == chosen) == median(run.values["x"] for run in last)


def test_runs_that_did_not_pass_are_in_no_median():
    runs = [past(1, x=1.0), past(2, x=2.0), past(3, x=3.0)]
    worse = [
        past(4, "fail", x=100.0),
        past(5, "warn", x=100.0),
        past(6, "unconfirmed", x=100.0),
        past(7, "error", None),
    ]
    assert select(rule("median:3"), runs + worse, ["x"]) == "r2"


def test_the_median_of_few_runs_is_of_those_there_are():
    assert select(rule("median:5"), [past(1, x=1.0)], ["x"]) == "r1"
    assert select(rule("median:5"), [], ["x"]) is None


def test_of_two_in_the_middle_the_newer_is_taken():
    assert select(rule("median:4"), [past(1, x=4.0), past(2, x=2.0), past(3, x=3.0), past(4, x=1.0)], ["x"]) == "r3"
    assert select(rule("median:3"), [past(1, x=2.0), past(2, x=2.0), past(3, x=2.0)], ["x"]) == "r3"
    assert select(rule("median:3"), [past(1), past(2), past(3)], []) == "r3"


def test_of_several_figures_the_report_closest_to_the_middle_of_all_is_taken():
    # In ranks from the middle: r1 has 1 and 0, r2 has 0 and 1, r3 has 1 and 1, so that r1 and r2 tie.
    runs = [past(1, x=1.0, y=2.0), past(2, x=2.0, y=3.0), past(3, x=3.0, y=1.0)]
    assert select(rule("median:3"), runs, ["x", "y"]) == "r2"
    # One that is in the middle of both.
    assert (
        select(rule("median:3"), [past(1, x=2.0, y=2.0), past(2, x=1.0, y=9.0), past(3, x=3.0, y=1.0)], ["x", "y"])
        == "r1"
    )


def test_a_report_without_the_figure_is_taken_last():
    assert select(rule("median:3"), [past(1, x=1.0), past(2, x=9.0), past(3)], ["x"]) == "r2"


def audit(**changes):
    """Return the audit whose reports are like the made-up one."""
    analysis = report(made_up(1)).report.analysis
    same = {
        name: getattr(analysis, name) for name in ("sequences", "sequence_length", "seed", "bos", "score", "schemes")
    }
    return AuditDefinition(**({"name": "x", "model": "sample"} | same | changes))


def test_a_baseline_like_the_audits_reports_has_no_mismatch():
    schemes = [one for one in report(made_up(1)).report.analysis.schemes if one.name in ("int8", "nf4")]
    assert mismatches(report(made_up(1)).report, audit(schemes=schemes)) == ()


def test_other_definitions_calibration_or_schemes_are_named():
    baseline = report(made_up(1), definitions_version="2.0").report
    reasons = mismatches(baseline, audit(schemes=["int8:threshold=4", "nf4", "fp4"], seed=7, score="second_half"))
    assert reasons == (
        "Its definitions are 2.0; reports now have 1.1.",
        "Its seed is 0; the audit's is 7, so that the calibration texts differ.",
        "Its score is all; the audit's is second_half, so that the calibration texts differ.",
        "It lacks the schemes int8-threshold-4, fp4.",
    )
    reasons = mismatches(report(made_up(1)).report, audit(schemes=["int8=int8:threshold=4"]))
    assert reasons == ("Its settings differ for the schemes int8.",)


def test_another_calibration_file_is_named():
    one, same, other = (
        StoredFile(name=name, sha256=digit * 64, size=1) for name, digit in (("a", "1"), ("b", "1"), ("a", "2"))
    )
    assert text_mismatch(None, None) == text_mismatch(one, same) == ()
    end = ", so that the calibration texts differ."
    assert text_mismatch(None, one) == (f"Its calibration text is the bundled text; the audit's is the file a{end}",)
    assert text_mismatch(one, None) == (f"Its calibration text is the file a; the audit's is the bundled text{end}",)
    assert text_mismatch(one, other) == (
        f"Its calibration text is the file a; the audit's file has other content{end}",
    )
