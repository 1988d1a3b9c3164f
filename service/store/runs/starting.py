"""Starts waiting runs: the run's job is inserted in the transaction that starts the run."""

from datetime import datetime

from pydantic import ValidationError
from sqlalchemy import and_, exists, func, select
from sqlalchemy.orm import Session, aliased

from service.contracts.audits.audit import AuditDefinition, NewestIn
from service.contracts.audits.resolution import Terms
from service.contracts.request import Analysis, JobRequest
from service.store.audit_tables import AuditRow, AuditRunRow
from service.store.runs.rows import end_run, locked_run
from service.store.statuses import OPEN, RunState
from service.store.transactions import Transactions, insert_job

PAUSED = "The audit was paused."


class Starting(Transactions):
    """Runs that wait for the one before to end, or for a scheduler."""

    def waiting_runs(self, limit: int = 1000) -> list[str]:
        """Return the ids of the runs that can start: of every audit without an open run the first that waits."""
        before = aliased(AuditRunRow)
        under_way = exists().where(before.audit_id == AuditRunRow.audit_id, before.state.in_(OPEN))
        first = (
            select(AuditRunRow.audit_id, func.min(AuditRunRow.number).label("number"))
            .where(AuditRunRow.state == RunState.queued, ~under_way)
            .group_by(AuditRunRow.audit_id)
            .subquery()
        )
        same = (AuditRunRow.audit_id == first.c.audit_id) & (AuditRunRow.number == first.c.number)
        query = select(AuditRunRow.id).join(first, same).order_by(AuditRunRow.id).limit(limit)
        with self._read() as session:
            return list(session.scalars(query))

    def start(self, run_id: str) -> bool:
        """Begin a run: insert its job. False where there was nothing to do, as with a run that has begun."""
        with self._write() as session:
            rows = locked_run(session, run_id)
            if rows is None:
                return False
            audit, run = rows
            under_way = exists().where(AuditRunRow.audit_id == audit.id, AuditRunRow.state.in_(OPEN))
            if run.state is not RunState.queued or session.scalar(select(under_way)):
                return False
            now = self._clock()
            run.started_at = now
            if audit.paused and run.trigger == "schedule":
                end_run(session, audit, run, "skipped", [f"{PAUSED} {audit.pause_reason or ''}".strip()], now)
                return True
            try:
                definition = AuditDefinition.model_validate(audit.definition)
            except ValidationError as error:
                end_run(session, audit, run, "error", [f"The audit's definition cannot be used: {error}"], now)
                return True
            _insert(session, audit, run, definition, now)
            return True


def request_of(definition: AuditDefinition, **changes: object) -> JobRequest:
    """Return the job request of an audit; of a model that moves, `model` is the directory that it moves in."""
    model = definition.model
    asked = {name: getattr(definition, name) for name in (*Analysis.model_fields, "calibration", "labelled")}
    asked["model"] = model.newest_in if isinstance(model, NewestIn) else model
    return JobRequest.model_validate(asked | changes)


def _insert(session: Session, audit: AuditRow, run: AuditRunRow, definition: AuditDefinition, now: datetime) -> None:
    known = _last_identity(session, audit, definition) if definition.skip_unchanged else None
    terms = Terms(newest_in=isinstance(definition.model, NewestIn), unless_identity=known)
    job = insert_job(session, request_of(definition), now, owner=audit.owner, terms=terms)
    run.state, run.job_id, run.definition = RunState.measuring, job.id, audit.definition


def _last_identity(session: Session, audit: AuditRow, definition: AuditDefinition) -> str | None:
    """Return what the audit's last completed run measured; None if it was held to other limits or by another rule.

    A run that ended as `error` may have kept its report, but was not judged.
    """
    completed = (AuditRunRow.audit_id == audit.id, AuditRunRow.report_id.is_not(None))
    ended = and_(AuditRunRow.state == RunState.ended, AuditRunRow.verdict != "error")
    last = session.scalars(
        select(AuditRunRow).where(*completed, ended).order_by(AuditRunRow.number.desc()).limit(1)
    ).one_or_none()
    if last is None or last.definition is None:
        return None
    asked = definition.model_dump(mode="json", include={"limits", "baseline"})
    return last.identity if all(last.definition.get(key) == value for key, value in asked.items()) else None
