"""Runs of audits that have ended, made by hand, and noted as a scheduler does."""

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from service.contracts.audits.audit import AuditDefinition, AuditRun, Finding
from service.store.alerts import note_run
from service.store.audit_records import audit_row
from service.store.database import writer
from service.store.job_records import new_id

KL = "int8.kl_divergence.mean <= baseline * 1.2"
TOP = "int8.same_top_token >= 0.98"
FIGURES = {KL: "schemes.int8.kl_divergence.mean", TOP: "schemes.int8.same_top_token.value"}
HOOK = "https://example.org/hook"
NOTIFY = ({"webhook": HOOK}, {"email": "team@example.org"})


def definition(**changes: Any) -> AuditDefinition:
    """Return an audit with two limits and two receivers."""
    facts = {"name": "shipping", "model": "/models/llama", "limits": (KL, TOP), "notify": NOTIFY}
    return AuditDefinition.model_validate(facts | changes)


def finding(limit: str, verdict: str) -> Finding:
    """Return what a run says of a limit."""
    return Finding(
        limit=limit, figure=FIGURES[limit], value=0.5, bound=0.4, verdict=verdict, reason=f"It is {verdict}."
    )


def end_run(engine: Engine, clock: Any, first: str = "", *, audit: str = "shipping", **facts: Any) -> AuditRun:
    """End a run of an audit: `first` is what it says of `KL`, unless the facts say more."""
    findings = facts.pop("findings", (finding(KL, first),) if first else ())
    with Session(writer(engine)) as session, session.begin():
        row = audit_row(session, audit, lock=True)
        run = AuditRun.model_validate(
            {
                "id": new_id(clock.now),
                "audit_id": row.id,
                "trigger": "schedule",
                "scheduled_at": clock.now,
                "finished_at": clock.now,
                "verdict": {"broken": "fail", "pass": "pass", "warn": "warn"}.get(first, "pass"),
                "findings": findings,
            }
            | facts
        )
        note_run(session, row, run, clock.now)
    return run
