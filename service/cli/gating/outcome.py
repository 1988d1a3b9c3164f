"""What an ended run means to a calling program: exit status, the state of every limit, one JSON document."""

from collections.abc import Mapping
from typing import Any, Literal

from service.cli.running import DONE, JOB_FAILED, LIMIT_BROKEN
from service.contracts.audit import AuditRun, Finding, Rerun

State = Literal["passed", "failed", "unconfirmed", "warned", "not judged"]
"""`failed`: broken beyond noise, and again on other text. `unconfirmed`: broken beyond noise, and not on other text."""


def exit_code(verdict: str | None) -> int:
    """Return the exit status of a run with this verdict; of one that has not ended it is 1."""
    if verdict == "fail":
        return LIMIT_BROKEN
    return JOB_FAILED if verdict in ("error", None) else DONE


def states(run: AuditRun) -> tuple[tuple[Finding, State], ...]:
    """Return the state of every limit of a run, in their order."""
    return tuple((finding, _state(finding, run)) for finding in run.findings)


def run_document(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `--json` prints for a run: all that the service says of it, and its job as `job`."""
    return {"run": {**run, "job": run["job_id"]}}


def _state(finding: Finding, run: AuditRun) -> State:
    if finding.verdict == "broken":
        stands = not any(_contradicts(rerun, finding) for rerun in run.reruns)
        return "failed" if run.verdict == "fail" and stands else "unconfirmed"
    words: dict[str, State] = {"pass": "passed", "warn": "warned", "not_judged": "not judged"}
    return words[finding.verdict]


def _contradicts(rerun: Rerun, finding: Finding) -> bool:
    """Return whether a rerun did not find a limit broken again; one that failed, or left it out, says nothing."""
    again = next((one for one in rerun.findings if one.limit == finding.limit), None)
    return rerun.status == "baseline_gone" if again is None else again.verdict != "broken"
