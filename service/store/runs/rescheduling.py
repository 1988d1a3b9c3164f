"""Handles a change of an audit's schedule: scheduled times that have passed without a run are skipped."""

from datetime import datetime
from typing import NamedTuple

from pydantic import ValidationError
from sqlalchemy.orm import Session

from service.audits.definition import next_start
from service.audits.schedule import Due
from service.contracts.audits.audit import AuditDefinition
from service.errors import InvalidRequest
from service.store.audit_tables import AuditRow
from service.store.runs.firing import due_times, skip_earlier
from service.store.runs.rows import skip

REPLACED = "The schedule was changed before the run for this time had been made."
_FIELDS = ("schedule", "timezone", "jitter_seconds")


class Missed(NamedTuple):
    """Times of a schedule that have come without a run."""

    since: datetime
    """They are later than this."""
    times: Due


def is_rescheduled(audit: AuditRow, definition: AuditDefinition) -> bool:
    """Return whether an audit is to run at other times by another definition."""
    asked = definition.model_dump(mode="json", include=set(_FIELDS))
    return any(audit.definition.get(field) != asked[field] for field in _FIELDS)


def missed_times(audit: AuditRow, definition: AuditDefinition, now: datetime) -> Missed | None:
    """Return the times that are skipped if a definition replaces the audit's at `now`; None without any.

    After a long outage there are many to go through, so this does not belong into a transaction that writes.
    """
    if audit.paused or not is_rescheduled(audit, definition):
        return None
    try:
        former = AuditDefinition.model_validate(audit.definition)
        return Missed(audit.handled_at, due_times(former, audit.id, audit.handled_at, now))
    except (ValidationError, InvalidRequest):  # no scheduler can read it either
        return None


def skip_missed(session: Session, audit: AuditRow, missed: Missed | None, now: datetime) -> None:
    """Insert missed times as skipped, unless a scheduler was faster. The audit's row must be locked."""
    if missed is None or audit.paused or audit.handled_at != missed.since:
        return
    skip_earlier(session, audit, missed.times, now)
    if missed.times.run is not None:
        skip(session, audit, missed.times.run, [REPLACED], now)


def handle_until(audit: AuditRow, definition: AuditDefinition, now: datetime) -> None:
    """Let nothing up to `now` fire, nor what has fired already."""
    audit.handled_at = max(now, audit.handled_at) if audit.handled_at is not None else now
    audit.next_run_at = None if audit.paused else next_start(definition, audit.id, audit.handled_at)
