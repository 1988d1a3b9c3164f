"""The audit store: what people change of audits, and the runs that they ask for; what they read is in `audit_reads`.

What advances runs is in `service.store.runs`. A change of the schedule and a resumption set the time up to which
nothing fires to the present, so that neither starts a run for a time that has passed. Other changes keep what is due.
"""

import re
import secrets
from datetime import datetime

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import IntegrityError

from service.audits import definition as definitions
from service.audits import receivers
from service.audits.baseline import rule, same_fit
from service.contracts.audits.audit import AuditDefinition, AuditRun, Trigger
from service.errors import Conflict, InvalidRequest, LimitReached
from service.store.alerts import note_definition
from service.store.artifacts import ArtifactStore
from service.store.audit_reads import AuditReads, with_last_run
from service.store.audit_records import Audit, audit_of, audit_row, owned_name, run_of
from service.store.audit_tables import AuditRow, AuditRunRow
from service.store.baselines import cautions, hold, pinned
from service.store.hosts.clock import Clock
from service.store.job_records import new_id
from service.store.owners.access import access_of_owner
from service.store.owners.visibility import seeing
from service.store.runs.rescheduling import handle_until, is_rescheduled, missed_times, skip_missed
from service.store.runs.rows import add_run, cancel_jobs
from service.store.statuses import RunState

__all__ = ["Audit", "AuditStore"]

MOST_WAITING = 100
"""Runs of one audit that wait at a time, besides scheduled ones."""
_WAITING_SECONDS = 60.0
"""When another run is worth another try."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class AuditChanged(Conflict):
    """Raised when an audit was changed by another call since the caller read it."""


class AuditStore(AuditReads):
    """Audits and their runs in one database; safe to use from several threads and processes."""

    def __init__(
        self,
        engine: Engine,
        artifacts: ArtifactStore,
        clock: Clock | None = None,
        reach: receivers.Reach = receivers.PUBLIC,
    ) -> None:
        super().__init__(engine, clock)
        self._artifacts = artifacts
        self._reach = reach

    def create(self, definition: AuditDefinition, *, force: bool = False) -> Audit:
        """Make an audit.

        Raises Conflict for a name that is taken, and InvalidRequest for a schedule, a zone, a limit or a baseline that
        is not allowed. A pinned report that the audit's owner has not, or one of other definitions, calibration or
        schemes, is refused unless `force`; then the audit says so in `baseline_cautions`.
        """
        why = self.check(definition, force=force)
        now, owner = self._clock(), self.owner
        tokens = {name: secrets.token_urlsafe(24) for name in ("badge_token", "feed_token")}
        row = AuditRow(id=new_id(now), owner=owner, created_at=now, runs=0, paused=False, **tokens)
        try:
            with self._write() as session:
                hold(session, rule(definition.baseline), why)
                _define(row, definition, why, now)
                handle_until(row, definition, now)
                session.add(row)
                session.flush()
                note_definition(session, row, definition, now)
                return audit_of(row, None)
        except IntegrityError as error:
            raise _taken(definition.name) from error

    def update(
        self, name_or_id: str, definition: AuditDefinition, *, force: bool = False, as_of: datetime | None = None
    ) -> Audit:
        """Replace what an audit is asked to do; raises AuditChanged where it was last updated at another time, `as_of`.

        A run that has begun ends by what it began with. A time of the former schedule that has come without a run is
        skipped, and no time of the new one that has passed fires. A pinned report is checked again only where the
        baseline, the text or the schemes change. Raises NotFound, and what `create` raises.
        """
        why = self.check(definition, force=force, replaced=name_or_id)
        asked_at = self._clock()
        with self._read() as session:
            missed = missed_times(audit_row(session, name_or_id), definition, asked_at)
        try:
            with self._write() as session:
                row = audit_row(session, name_or_id, lock=True)
                if as_of is not None and row.updated_at != as_of:
                    raise AuditChanged(f"audit: {name_or_id!r} was changed in the meantime; send the change again")
                hold(session, rule(definition.baseline), why)
                now = self._clock()
                if is_rescheduled(row, definition):
                    skip_missed(session, row, missed, now)
                    handle_until(row, definition, asked_at)
                _define(row, definition, why, now)
                session.flush()
                note_definition(session, row, definition, now)
                return with_last_run(session, row)
        except IntegrityError as error:
            raise _taken(definition.name) from error

    def delete(self, name_or_id: str) -> None:
        """Remove an audit with its runs, and cancel the jobs that they wait for; reports stay. Raises NotFound."""
        with self._write() as session:
            row = audit_row(session, name_or_id, lock=True)
            cancel_jobs(session, row.id, self._clock())
            session.delete(row)

    def pause(self, name_or_id: str, reason: str) -> Audit:
        """Let no scheduled run start anymore; runs that are asked for do. Raises NotFound and InvalidRequest."""
        if not 1 <= len(reason) <= 1024 or _CONTROL.search(reason):
            raise InvalidRequest("reason", reason, "1 to 1024 characters without control characters")
        with self._write() as session:
            row = audit_row(session, name_or_id, lock=True)
            row.paused, row.pause_reason, row.next_run_at = True, reason, None
            return with_last_run(session, row)

    def resume(self, name_or_id: str) -> Audit:
        """Let scheduled runs start again, from the present on: what was missed stays missed. Raises NotFound."""
        with self._write() as session:
            row = audit_row(session, name_or_id, lock=True)
            if row.paused:
                row.paused, row.pause_reason, row.errors = False, None, 0
                handle_until(row, AuditDefinition.model_validate(row.definition), self._clock())
            return with_last_run(session, row)

    def request_run(self, name_or_id: str, trigger: Trigger = "request") -> AuditRun:
        """Ask for a run, of a paused audit too; it starts when the run before has ended.

        Raises NotFound, and LimitReached where too many runs of the audit wait.
        """
        with self._write() as session:
            row = audit_row(session, name_or_id, lock=True)
            queued = (AuditRunRow.audit_id == row.id, AuditRunRow.state == RunState.queued)
            if (session.scalar(select(func.count()).where(*queued)) or 0) >= MOST_WAITING:
                message = f"waiting runs: {MOST_WAITING} of this audit wait already; allowed: as many"
                raise LimitReached(message, _WAITING_SECONDS)
            return run_of(add_run(session, row, trigger, self._clock()))

    def check(
        self, definition: AuditDefinition, *, force: bool = False, replaced: str | None = None
    ) -> tuple[str, ...]:
        """Return why limits against the pinned baseline mean little. Raises InvalidRequest, and NotFound.

        Args:
            definition: What an audit is to be asked to do.
            force: Whether a pinned report that does not fit is taken.
            replaced: Name or id of the audit whose definition it replaces. Its pinned report is not checked again
                where neither the baseline nor anything that it must fit changes.
        """
        definitions.check(definition)
        receivers.check(definition.notify, self._reach)
        of = rule(definition.baseline)
        with self._read() as session:
            present = None if replaced is None else audit_row(session, replaced)
            if present is not None and same_fit(present.definition, definition):
                return tuple(present.baseline_cautions)
            if of.report_id is None:
                return ()
            with seeing(session, access_of_owner(self.owner if present is None else present.owner)):
                stored = pinned(session, of)
        return cautions(stored, self._artifacts, definition, force=force)


def _define(row: AuditRow, definition: AuditDefinition, why: tuple[str, ...], now: datetime) -> None:
    row.owned_name = owned_name(row.owner, definition.name)
    row.definition = definition.model_dump(mode="json")
    row.baseline = definition.baseline
    row.baseline_cautions = [*why]
    row.updated_at = now


def _taken(name: str) -> Conflict:
    return Conflict(f"name: {name!r} is already the name of an audit; allowed: any other name")
