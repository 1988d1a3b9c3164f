"""Inserts the runs of scheduled times: one for each audit and time, however many schedulers run."""

import logging
from datetime import datetime

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.audits.definition import next_start, schedule_of
from service.audits.schedule import Due, due
from service.contracts.audits.audit import AuditDefinition
from service.errors import InvalidRequest
from service.store.audit_tables import AuditRow, AuditRunRow
from service.store.runs.rows import add_run, skip
from service.store.statuses import RunState
from service.store.transactions import Transactions

log = logging.getLogger(__name__)

UNENDED = "The run before had not ended."
WAITING = "A run was waiting already for the one before to end."


class Firing(Transactions):
    """Scheduled times that have come."""

    def due_audits(self, limit: int = 1000) -> list[str]:
        """Return the ids of audits with a scheduled run to start by now, the longest due first."""
        query = select(AuditRow.id).where(AuditRow.next_run_at <= self._clock(), AuditRow.paused.is_(False))
        with self._read() as session:
            return list(session.scalars(query.order_by(AuditRow.next_run_at).limit(limit)))

    def fire(self, audit_id: str) -> int:
        """Insert the runs and the skipped times that an audit owes by now; return how many rows that were.

        The run is the one for the latest time, and later steps start it. An audit that this version cannot read is
        paused.
        """
        with self._read() as session:
            row = session.get(AuditRow, audit_id)
            if row is None or row.next_run_at is None:
                return 0
            asked, handled, updated = row.definition, row.handled_at, row.updated_at
        now = self._clock()
        try:
            definition = AuditDefinition.model_validate(asked)
            # Outside of the transaction: after a long outage there are many times to go through.
            times = due_times(definition, audit_id, handled, now)
            after = next_start(definition, audit_id, times.handled)
        except (ValidationError, InvalidRequest) as error:
            return self._pause(audit_id, error)
        with self._write() as session:
            audit = session.get(AuditRow, audit_id, with_for_update=True)
            if audit is None or audit.paused or (audit.handled_at, audit.updated_at) != (handled, updated):
                return 0  # another scheduler was faster, or somebody changed the audit
            rows = skip_earlier(session, audit, times, now)
            if times.run is not None:
                _add(session, audit, times.run, definition, now)
            audit.handled_at, audit.next_run_at = times.handled, after
            return rows + (times.run is not None)

    def _pause(self, audit_id: str, error: Exception) -> int:
        log.error("audit %s is paused, because its definition cannot be used: %s", audit_id, error)
        with self._write() as session:
            audit = session.get(AuditRow, audit_id, with_for_update=True)
            if audit is not None:
                audit.paused, audit.next_run_at = True, None
                audit.pause_reason = f"its definition cannot be used: {error}"[:1024]
        return 0


def due_times(definition: AuditDefinition, audit_id: str, handled: datetime, now: datetime) -> Due:
    """Return what an audit owes at `now`, of its scheduled times later than `handled`. Raises InvalidRequest."""
    of = schedule_of(definition)
    return Due(None, (), 0, handled) if of is None else due(of, audit_id, handled, now)


def skip_earlier(session: Session, audit: AuditRow, times: Due, now: datetime) -> int:
    """Insert the scheduled times that are not made up for, and return how many rows that were."""
    for place, skipped in enumerate(times.skipped):
        reasons = [skipped.reason]
        if place == 0 and times.unlisted:
            reasons.append(f"{times.unlisted} earlier times were skipped too, for the same reason")
        sentences = [f"{reason[0].upper()}{reason[1:]}." for reason in reasons]
        skip(session, audit, skipped.scheduled_at, sentences, now)
    return len(times.skipped)


def _add(session: Session, audit: AuditRow, at: datetime, definition: AuditDefinition, now: datetime) -> None:
    """Insert the run for a scheduled time, or skip it because of the one before."""
    unended = (AuditRunRow.audit_id == audit.id, AuditRunRow.state != RunState.ended)
    states = session.scalars(select(AuditRunRow.state).where(*unended)).all()
    if states and definition.overlap == "skip":
        skip(session, audit, at, [UNENDED], now)
    elif RunState.queued in states:
        skip(session, audit, at, [WAITING], now)
    else:
        add_run(session, audit, "schedule", now, scheduled_at=at)
