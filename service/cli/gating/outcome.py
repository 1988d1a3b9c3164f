"""The outcome of a gate or a run for a calling program: exit status, the state of every limit, one JSON document."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from service.audits.judgment import confirmed
from service.cli.running import DONE, JOB_FAILED, LIMIT_BROKEN
from service.contracts.audits.audit import AuditRun, Finding

State = Literal["passed", "failed", "unconfirmed", "warned", "not judged"]
"""`failed`: broken beyond noise, and again on other text. `unconfirmed`: broken beyond noise, and not on other text."""


class Gated(NamedTuple):
    """A gate that has ended: its run, and the facts that written outcomes state beside it."""

    model: str
    """As it was typed."""
    baseline: str
    """What it was compared with, in a few words."""
    run: AuditRun
    limits_file: str
    """Path of the file with the limits, as it was typed."""
    lines: Mapping[str, int]
    """Line of every limit in it, from 1."""
    version: str
    """Of Headroom."""
    cautions: tuple[str, ...] = ()
    """Why limits against the baseline mean little, where somebody insisted on it; sentences."""


def exit_code(verdict: str | None) -> int:
    """Return the exit status of a run with this verdict; of one that has not ended it is 1."""
    if verdict == "fail":
        return LIMIT_BROKEN
    return JOB_FAILED if verdict in ("error", None) else DONE


def states(run: AuditRun) -> tuple[tuple[Finding, State], ...]:
    """Return the state of every limit of a run, in their order."""
    failed = [one.limit for one in confirmed(run.findings, run.reruns)] if run.verdict == "fail" else []
    return tuple((finding, _state(finding, failed=finding.limit in failed)) for finding in run.findings)


def run_document(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `--json` prints for a run: all that the service says of it, and its job as `job`."""
    return {"run": {**run, "job": run["job_id"]}}


def _state(finding: Finding, *, failed: bool) -> State:
    if finding.verdict == "broken":
        return "failed" if failed else "unconfirmed"
    words: dict[str, State] = {"pass": "passed", "warn": "warned", "not_judged": "not judged"}
    return words[finding.verdict]
