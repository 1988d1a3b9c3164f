"""Checks an audit before it is stored, and says when it runs next."""

from datetime import datetime

from service.audits import baseline, limits, schedule
from service.contracts.audits.audit import AuditDefinition, AuditSettings

_ANY_SCHEDULE = "0 0 * * *"


def check(definition: AuditSettings) -> None:
    """Raise InvalidRequest for a malformed schedule, time zone, limit or baseline.

    Whether a pinned report exists and fits is for whoever has the reports (`baseline.mismatches`).
    """
    schedule.schedule(definition.schedule or _ANY_SCHEDULE, definition.timezone)
    limits.parse_all(definition.limits, definition.scheme_names)
    baseline.rule(definition.baseline)


def schedule_of(definition: AuditDefinition) -> schedule.Schedule | None:
    """Return the audit's schedule; None where it only runs on request. Raises InvalidRequest."""
    if definition.schedule is None:
        return None
    return schedule.schedule(
        definition.schedule, definition.timezone, definition.catch_up_seconds, definition.jitter_seconds
    )


def next_start(definition: AuditDefinition, audit_id: str, after: datetime) -> datetime | None:
    """Return when the run for the first scheduled time later than `after` starts; None without one."""
    of = schedule_of(definition)
    first = None if of is None else next(schedule.times(of, after), None)
    return None if of is None or first is None else schedule.start(of, audit_id, first)
