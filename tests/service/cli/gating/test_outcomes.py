"""The outcome of a run as exit status, table, Markdown, JUnit XML and SARIF, read back by other programs' rules."""

import io
import json
import re
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from service.cli.gating.junit import junit
from service.cli.gating.markdown import markdown
from service.cli.gating.outcome import Gated, exit_code, run_document, states
from service.cli.gating.sarif import sarif
from service.cli.gating.table import show
from service.contracts.audits.audit import AuditRun, Finding, Rerun


def finding(limit, verdict, **more):
    figure = limit.split(" ")[0]
    return Finding(
        limit=limit, figure=figure, verdict=verdict, reason=f"{figure} is {verdict}.", **{"value": None} | more
    )


FAILED = finding(
    "int8.kl_divergence.mean <= baseline * 1.2", "broken", value=0.0239, baseline=0.015, bound=0.018,
    interval=(0.0214, 0.0264),
)  # fmt: skip
UNCONFIRMED = finding("nf4.perplexity_ratio <= 1.05", "broken", value=1.06, bound=1.05, interval=(1.05, 1.07))
WARNED = finding("nf4.same_top_token >= 0.9", "warn", value=0.89, bound=0.9)
PASSED = finding(
    "int8.verdict no worse than baseline", "pass", value="noticeable", baseline="noticeable", bound="noticeable"
)
GAINED = finding("outliers.llm_int8 none gained", "not_judged", value=(), baseline=None)
ALL = (FAILED, UNCONFIRMED, WARNED, PASSED, GAINED)


def rerun(*verdicts, status="completed"):
    """Return a rerun that found these verdicts of the broken limits, in their order; None of one that it left out."""
    findings = [
        one.model_copy(update={"verdict": verdict})
        for one, verdict in zip((FAILED, UNCONFIRMED), verdicts, strict=False)
        if verdict
    ]
    return Rerun(seed=1, status=status, findings=tuple(findings))


CONFIRMED_IN_PART = (rerun("broken", "pass"),)


def run(verdict="fail", findings=ALL, reruns=CONFIRMED_IN_PART, reasons=("It is <worse> & so | on.",)):
    return AuditRun(
        id="r" * 32,
        audit_id="a" * 32,
        trigger="gate",
        scheduled_at=None,
        started_at=datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC),
        finished_at=datetime(2027, 1, 2, 3, 5, 6, tzinfo=UTC),
        verdict=verdict,
        reasons=reasons,
        job_id="j1",
        report_id="j1",
        findings=findings,
        reruns=reruns,
    )


def gated(of=None, **changes):
    lines = {one.limit: number for number, one in enumerate(ALL, 3)}
    facts = {"model": "/m/a|b_c*", "baseline": "report j0", "run": of or run(), "limits_file": "gates/my limits.txt"}
    return Gated(**{**facts, "lines": lines, "version": "0.2.0", **changes})


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        ("pass", 0),
        ("warn", 0),
        ("unchanged", 0),
        ("unconfirmed", 0),
        ("skipped", 0),
        ("fail", 4),
        ("error", 1),
        (None, 1),
    ],
)
def test_the_exit_status_is_that_of_the_verdict(verdict, code):
    assert exit_code(verdict) == code


@pytest.mark.parametrize(
    ("reruns", "expected"),
    [
        ((), ["failed", "failed"]),
        ((rerun("broken", "pass"),), ["failed", "unconfirmed"]),
        ((rerun("warn", "broken"),), ["unconfirmed", "failed"]),
        ((rerun("broken", "broken"), rerun("broken", "not_judged")), ["failed", "unconfirmed"]),
        ((rerun(status="failed"),), ["failed", "failed"]),
        ((rerun(None, "broken"),), ["unconfirmed", "failed"]),
        ((rerun(None, "broken", status="baseline_gone"),), ["unconfirmed", "failed"]),
    ],
)
def test_a_broken_limit_has_failed_unless_a_rerun_says_otherwise(reruns, expected):
    assert [state for _, state in states(run(findings=(FAILED, UNCONFIRMED), reruns=reruns))] == expected


def test_what_no_rerun_could_tell_has_failed_at_once():
    final = FAILED.model_copy(update={"final": True})
    assert [state for _, state in states(run(findings=(final,), reruns=(rerun(None, "pass"),)))] == ["failed"]


def test_nothing_has_failed_in_a_run_that_was_not_confirmed():
    found = states(run("unconfirmed", reruns=(rerun("pass", "pass"),)))
    assert [state for _, state in found] == ["unconfirmed", "unconfirmed", "warned", "passed", "not judged"]


def test_the_json_names_the_job():
    document = run_document(run().model_dump(mode="json"))["run"]
    assert (document["id"], document["job"], document["verdict"]) == ("r" * 32, "j1", "fail")
    assert set(document["findings"][0]) >= {"limit", "value", "baseline", "interval", "verdict", "reason"}


def test_the_table_has_a_row_for_each_limit_then_reasons_and_verdict():
    out = io.StringIO()
    show(Console(file=out, width=160), "m", run().model_copy(update={"report_id": "c" * 32}))
    lines = [re.split(r"\s{2,}", line.strip()) for line in out.getvalue().splitlines()]
    limits = [one.limit for one in ALL]
    assert lines[1] == ["failed", limits[0], "0.0239 (0.0214 to 0.0264)", "0.01500", "0.01800"]
    assert lines[2] == ["unconfirmed", limits[1], "1.060 (1.050 to 1.070)", "-", "1.05"]
    assert lines[3] == ["warned", limits[2], "0.8900", "-", "0.9"]
    assert lines[4] == ["passed", limits[3], "noticeable", "noticeable", "noticeable"]
    assert lines[5] == ["not judged", limits[4], "none gained", "-", "-"]
    assert lines[6:] == [["It is <worse> & so | on."], [f"Measured in report {'c' * 32}"], ["Verdict on m: fail"]]


def test_gained_dimensions_are_named():
    out = io.StringIO()
    gained = GAINED.model_copy(update={"value": tuple(range(10)), "verdict": "broken"})
    show(Console(file=out, width=160), "m", run(findings=(gained,), reruns=(), reasons=()))
    assert "10 gained: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more" in out.getvalue()


def test_markdown_renders_as_a_table_with_every_character_as_it_is():
    html = MarkdownIt("commonmark").enable("table").render(markdown(gated(cautions=("Texts *differ*.",))))
    tree = ElementTree.fromstring(f"<html>{html}</html>")
    assert tree.findtext("h2") == "Headroom: fail"
    assert tree.find("p").text == "/m/a|b_c*, compared with report j0"
    assert [cell.text for cell in tree.iter("th")] == [None, "limit", "value (95% interval)", "baseline", "bound"]
    rows = [[cell.text for cell in row.iter("td")] for row in tree.find("table").find("tbody")]
    assert rows[0] == ["failed", FAILED.limit, "0.0239 (0.0214 to 0.0264)", "0.01500", "0.01800"]
    assert [row[0] for row in rows] == ["failed", "unconfirmed", "warned", "passed", "not judged"]
    assert [item.text for item in tree.iter("li")] == ["Texts *differ*.", "It is <worse> & so | on."]
    assert tree.findall("p")[-1].text == "Report j1, Headroom 0.2.0"


def test_junit_fails_what_has_failed_and_nothing_else():
    suite = ElementTree.fromstring(junit(gated())).find("testsuite")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert list(cases) == ["measurement", *(one.limit for one in ALL)]
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["6", "1", "0", "2"]
    assert (suite.get("time"), suite.get("timestamp")) == ("61.000", "2027-01-02T03:04:05+00:00")
    assert suite.get("name") == "headroom gate /m/a|b_c*"
    [failure] = suite.iter("failure")
    assert failure.get("message") == FAILED.reason
    assert "0.0239 (0.0214 to 0.0264)" in failure.text
    assert cases[FAILED.limit].find("failure") is failure
    assert cases[UNCONFIRMED.limit].find("skipped").get("message") == f"unconfirmed: {UNCONFIRMED.reason}"
    assert cases[GAINED.limit].find("skipped").get("message") == f"not judged: {GAINED.reason}"
    assert [cases[one.limit].findtext("system-out") for one in (WARNED, PASSED)] == [WARNED.reason, PASSED.reason]
    properties = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert properties == {"verdict": "fail", "baseline": "report j0", "report": "j1"}


def test_junit_of_a_run_without_a_report_is_an_error():
    text = junit(gated(run("error", findings=(), reruns=(), reasons=("The job failed: \x00 no <config>.",))))
    suite = ElementTree.fromstring(text).find("testsuite")
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["1", "0", "1", "0"]
    assert suite.find("testcase").find("error").get("message") == "The job failed: \ufffd no <config>."
    skipped = junit(gated(run("skipped", findings=(), reruns=(), reasons=("Overlap.",))))
    assert ElementTree.fromstring(skipped).find("testsuite").get("skipped") == "1"


def check_sarif(log):
    """Check what the schema of SARIF 2.1.0 requires of the parts that are used, and its rules in prose."""
    assert set(log) <= {"$schema", "version", "runs"}
    assert log["version"] == "2.1.0"
    for one in log["runs"]:
        driver = one["tool"]["driver"]
        assert driver["name"]
        ids = [rule["id"] for rule in driver["rules"]]
        assert len(set(ids)) == len(ids)
        assert one["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
        for invocation in one["invocations"]:
            assert isinstance(invocation["executionSuccessful"], bool)
            for key in ("startTimeUtc", "endTimeUtc"):
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", invocation[key])
            for notification in invocation["toolExecutionNotifications"]:
                assert notification["message"]["text"]
                assert notification["level"] in ("none", "note", "warning", "error")
        for result in one["results"]:
            assert result["message"]["text"]
            assert ids[result["ruleIndex"]] == result["ruleId"]
            assert (result["kind"], result["level"]) in {("fail", "error"), ("fail", "warning"), ("fail", "note")}
            assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
            for location in result["locations"]:
                physical = location["physicalLocation"]
                assert re.fullmatch(r"[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]+", physical["artifactLocation"]["uri"])
                assert physical["region"]["startLine"] >= 1


def test_sarif_has_a_result_for_what_has_failed_alone():
    log = json.loads(sarif(gated()))
    check_sarif(log)
    [one] = log["runs"]
    [result] = one["results"]
    assert result["ruleId"] == FAILED.figure
    assert result["message"]["text"] == f"{FAILED.limit}: {FAILED.reason}"
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "gates/my%20limits.txt"},
        "region": {"startLine": 3},
    }
    [invocation] = one["invocations"]
    assert invocation["executionSuccessful"] is True
    assert [(said["level"], said["message"]["text"]) for said in invocation["toolExecutionNotifications"]] == [
        ("warning", f"{UNCONFIRMED.limit}: unconfirmed. {UNCONFIRMED.reason}"),
        ("warning", f"{WARNED.limit}: warned. {WARNED.reason}"),
        ("note", f"{GAINED.limit}: not judged. {GAINED.reason}"),
    ]


def test_sarif_of_a_run_without_a_report_is_a_failed_invocation():
    failed = run("error", findings=(), reruns=(), reasons=("The job failed.",))
    log = json.loads(sarif(gated(failed, limits_file="/a/limits.txt", cautions=("Other text.",))))
    check_sarif(log)
    [one] = log["runs"]
    assert one["results"] == []
    [invocation] = one["invocations"]
    assert invocation["executionSuccessful"] is False
    assert [(said["level"], said["message"]["text"]) for said in invocation["toolExecutionNotifications"]] == [
        ("error", "The job failed."),
        ("warning", "Other text."),
    ]


def test_the_same_breach_has_the_same_fingerprint_in_every_run():
    first, second = (json.loads(sarif(gated(run(reasons=(reason,))))) for reason in ("One.", "Other."))
    prints = [log["runs"][0]["results"][0]["partialFingerprints"] for log in (first, second)]
    assert prints[0] == prints[1]
