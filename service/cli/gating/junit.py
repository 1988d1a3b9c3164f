"""Writes the outcome of a gate as JUnit XML: one test for the measurement, and one for each limit.

Only what fails the gate is a failure. A limit that was not judged, or broken and not on other text, is a skipped test
with its reason, so that a pipeline shows it and goes on.
"""

import re
from xml.etree import ElementTree

from service.cli.gating import figures
from service.cli.gating.outcome import Gated, State, states
from service.contracts.audits.audit import AuditRun, Finding

MEASUREMENT = "measurement"
"""The test that fails with an error where there is no report."""
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write."""


def junit(gated: Gated) -> str:
    """Return the outcome as one XML document."""
    run = gated.run
    suite = ElementTree.Element("testsuite", name=_text(f"headroom gate {gated.model}"))
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(gated):
        ElementTree.SubElement(properties, "property", name=name, value=_text(value))
    _measurement(suite, gated)
    for finding, state in states(run):
        _limit(_case(suite, gated, finding.limit), finding, state)
    for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(list(suite.iter(tag)))))
    suite.set("time", f"{_seconds(run):.3f}")
    if run.started_at:
        suite.set("timestamp", run.started_at.isoformat(timespec="seconds"))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _properties(gated: Gated) -> list[tuple[str, str]]:
    run = gated.run
    listed = [("verdict", run.verdict), ("baseline", gated.baseline), ("report", run.report_id)]
    return [(name, value) for name, value in listed if value] + [("caution", text) for text in gated.cautions]


def _measurement(suite: ElementTree.Element, gated: Gated) -> None:
    run = gated.run
    case = _case(suite, gated, MEASUREMENT)
    case.set("time", f"{_seconds(run):.3f}")
    said = _text(" ".join(run.reasons))
    if run.verdict == "error":
        ElementTree.SubElement(case, "error", message=said, type="error")
    elif run.verdict == "skipped":
        ElementTree.SubElement(case, "skipped", message=said)


def _limit(case: ElementTree.Element, finding: Finding, state: State) -> None:
    reason = _text(finding.reason)
    if state == "failed":
        failure = ElementTree.SubElement(case, "failure", message=reason, type="limit")
        failure.text = _text(
            f"{finding.figure}: {figures.value(finding)}\nbaseline: {figures.baseline(finding.baseline)}\n"
            f"bound: {figures.bound(finding.limit, finding.bound)}"
        )
    elif state in ("unconfirmed", "not judged"):
        ElementTree.SubElement(case, "skipped", message=f"{state}: {reason}")
    else:
        ElementTree.SubElement(case, "system-out").text = reason


def _case(suite: ElementTree.Element, gated: Gated, name: str) -> ElementTree.Element:
    of_model = _text(f"headroom.{gated.model}")
    return ElementTree.SubElement(suite, "testcase", classname=of_model, name=_text(name), time="0")


def _seconds(run: AuditRun) -> float:
    if run.started_at is None or run.finished_at is None:
        return 0.0
    return (run.finished_at - run.started_at).total_seconds()


def _text(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
