"""Runs of an audit with made-up figures, and what their reports were measured from."""

from datetime import UTC, datetime, timedelta

from service.audits.history.measured_state import measured_state
from service.contracts.audits.audit import AuditRun, Finding

BEGIN = datetime(2026, 1, 1, 3, tzinfo=UTC)
KL = "schemes.int8.kl_divergence.mean"
LIMIT = "int8.kl_divergence <= baseline * 1.2"


def finding(value, *, limit=LIMIT, figure=KL, reach=None, baseline=None, bound=None, verdict="pass"):
    """Return a finding; `reach` is half the width of its interval."""
    interval = None if reach is None else (value - reach, value + reach)
    return Finding(
        limit=limit, figure=figure, value=value, interval=interval, baseline=baseline, bound=bound, verdict=verdict,
        reason="A sentence.",
    )  # fmt: skip


def run(place, *findings, verdict="pass", reasons=(), report=True):
    """Return the run of the day `place`."""
    measured = report and verdict not in ("skipped", "error", "unchanged")
    return AuditRun(
        id=f"{place:032x}",
        audit_id="a" * 32,
        trigger="schedule",
        scheduled_at=BEGIN + timedelta(days=place),
        verdict=verdict,
        reasons=reasons,
        report_id=f"{place + 1000:032x}" if measured else None,
        findings=findings,
    )


def state(weights="0", *, revision="main", transformers="5.20.0", seed=0):
    """Return what a report was measured from."""
    return measured_state(
        {
            "headroom_version": "0.2.0",
            "definitions_version": "1.1",
            "model": {"source": "org/model", "revision": revision, "fingerprint": f"sha256:{weights * 64}"[:71]},
            "calibration": {"source": "bundled", "fingerprint": f"sha256:{'c' * 64}", "seed": seed},
            "environment": {"device": "cpu", "torch": "2.11", "transformers": transformers, "kernels": {"int8": "cpu"}},
            "analysis": {"sequences": 16, "seed": seed},
        }
    )


def states(runs, of=None):
    """Return the state of every report: `of` by the run's place, else weights of its own."""
    return {
        one.report_id: of[place] if of else state(revision=f"{place:040x}")
        for place, one in enumerate(runs)
        if one.report_id
    }
