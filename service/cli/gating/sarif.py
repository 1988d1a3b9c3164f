"""Writes the outcome of a gate as SARIF 2.1.0, for code scanning.

Only what fails the gate is a result: viewers raise an alert for each, whatever its level. Limits that were broken
within noise, not confirmed or not judged are notifications of the invocation.
"""

import json
from datetime import datetime
from pathlib import PurePath
from typing import Any

from service.cli.gating import figures
from service.cli.gating.outcome import Gated, State, states
from service.contracts.audits.audit import Finding

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS: dict[State, str] = {"unconfirmed": "warning", "warned": "warning", "not judged": "note"}


def sarif(gated: Gated) -> str:
    """Return the outcome as one JSON document."""
    limits = states(gated.run)
    figures_named = list(dict.fromkeys(finding.figure for finding, _ in limits))
    run = {
        "tool": {
            "driver": {
                "name": "Headroom",
                "version": gated.version,
                "semanticVersion": gated.version,
                "rules": [_rule(figure) for figure in figures_named],
            }
        },
        "automationDetails": {"id": f"headroom-gate/{gated.model}/"},
        "invocations": [_invocation(gated)],
        "results": [
            _result(gated, finding, figures_named.index(finding.figure))
            for finding, state in limits
            if state == "failed"
        ],
        "columnKind": "unicodeCodePoints",
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(figure: str) -> dict[str, Any]:
    return {
        "id": figure,
        "shortDescription": {"text": f"Limit on {figure}"},
        "defaultConfiguration": {"level": "error"},
    }


def _result(gated: Gated, finding: Finding, rule: int) -> dict[str, Any]:
    where = {
        "artifactLocation": {"uri": _uri(gated.limits_file)},
        "region": {"startLine": gated.lines.get(finding.limit, 1)},
    }
    return {
        "ruleId": finding.figure,
        "ruleIndex": rule,
        "kind": "fail",
        "level": "error",
        "message": {"text": f"{finding.limit}: {finding.reason}"},
        "locations": [{"physicalLocation": where, "logicalLocations": [{"fullyQualifiedName": finding.figure}]}],
        "partialFingerprints": {"limit/v1": f"{gated.model} {finding.limit}"},
        "properties": {
            "model": gated.model,
            "value": figures.value(finding),
            "baseline": figures.baseline(finding.baseline),
            "bound": figures.bound(finding.limit, finding.bound),
        },
    }


def _invocation(gated: Gated) -> dict[str, Any]:
    run = gated.run
    failed = run.verdict == "error"
    said = [("error" if failed else "note", reason) for reason in run.reasons] if failed or not run.findings else []
    said += [("warning", caution) for caution in gated.cautions]
    said += [
        (_LEVELS[state], f"{finding.limit}: {state}. {finding.reason}")
        for finding, state in states(run)
        if state in _LEVELS
    ]
    times = {"startTimeUtc": _utc(run.started_at), "endTimeUtc": _utc(run.finished_at)}
    return {
        "executionSuccessful": not failed,
        **{name: time for name, time in times.items() if time},
        "toolExecutionNotifications": [{"level": level, "message": {"text": text}} for level, text in said],
        "properties": {"verdict": run.verdict, "baseline": gated.baseline},
    }


def _utc(time: datetime | None) -> str | None:
    return None if time is None else f"{time:%Y-%m-%dT%H:%M:%S}.000Z"


def _uri(path: str) -> str:
    """Return a path as a URI: relative ones stay so, for code scanning resolves them in the repository."""
    from urllib.parse import quote

    pure = PurePath(path)
    return pure.as_uri() if pure.is_absolute() else quote(pure.as_posix())
