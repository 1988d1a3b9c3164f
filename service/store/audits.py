"""The audit store: audits, and their runs as people see them.

What advances runs is in `service.store.runs`. A change of the schedule and a resumption set the time up to which
nothing fires to the present, so that neither starts a run for a time that has passed. Other changes keep what is due.
"""

import re
import secrets
from datetime import datetime

from sqlalchemy import Engine, and_, exists, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.audits import definition as definitions
from service.audits import receivers
from service.audits.baseline import rule, same_fit
from service.contracts.audits.audit import AuditDefinition, AuditRun, RunVerdict, Trigger
from service.errors import Conflict, InvalidRequest, LimitReached, NotFound
from service.store.alerts import note_definition
from service.store.artifacts import ArtifactStore
from service.store.audit_records import (
    Audit,
    AuditPage,
    RunPage,
    audit_of,
    audit_row,
    owned_name,
    run_of,
)
from service.store.audit_tables import AuditRow, AuditRunRow
from service.store.baselines import PassedRuns, cautions, hold, is_in_use, may_be_chosen, passed_runs, pinned
from service.store.hosts.clock import Clock
from service.store.job_records import new_id
from service.store.owners.access import EVERYTHING, NOBODY, OWNER, access_of_owner
from service.store.owners.visibility import seeing
from service.store.runs.rescheduling import handle_until, is_rescheduled, missed_times, skip_missed
from service.store.runs.rows import add_run, cancel_jobs
from service.store.statuses import RunState
from service.store.tables import JobRow
from service.store.transactions import Transactions

__all__ = ["Audit", "AuditPage", "AuditStore", "RunPage"]

MAX_PAGE_SIZE = 1000
MOST_WAITING = 100
"""Runs of one audit that wait at a time, besides scheduled ones."""
_WAITING_SECONDS = 60.0
"""When another run is worth another try."""
_OWNED_NAME = re.compile(rf"({OWNER}/)?[a-z0-9-]{{1,63}}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class AuditChanged(Conflict):
    """Raised when an audit was changed by another call since the caller read it."""


class AuditStore(Transactions):
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

    def get(self, name_or_id: str) -> Audit:
        """Return an audit. Raises NotFound."""
        with self._read() as session:
            return _audit(session, audit_row(session, name_or_id))

    def is_own(self, name_or_id: str) -> bool:
        """Whether an id is an audit's, or a name that of an audit of the caller or of nobody."""
        try:
            with self._read() as session:
                audit_row(session, name_or_id, of_others=False)
        except NotFound:
            return False
        return True

    def by_badge_token(self, token: str) -> Audit:
        """Return the audit that a badge is of. Raises NotFound."""
        return self._by_token(AuditRow.badge_token, token)

    def by_feed_token(self, token: str) -> Audit:
        """Return the audit that an open feed is of. Raises NotFound."""
        return self._by_token(AuditRow.feed_token, token)

    def _by_token(self, column: InstrumentedAttribute[str], token: str) -> Audit:
        with self._read() as session:
            row = session.scalars(select(AuditRow).where(column == token.replace("\0", ""))).one_or_none()
            if row is None:
                raise NotFound(
                    f"token: {token[:64]!r} is not a token of an audit; `headroom audits show NAME` shows the addresses"
                )
            return _audit(session, row)

    def last_verdict(self, audit_id: str) -> RunVerdict | None:
        """Return the verdict of the last run that measured the model or failed to; None before the first.

        Runs that were skipped or found the model unchanged say nothing new, and gates judge other models.
        """
        ended = (AuditRunRow.audit_id == audit_id, AuditRunRow.verdict.not_in(("unchanged", "skipped")))
        last = select(AuditRunRow).where(*ended, AuditRunRow.trigger != "gate").order_by(AuditRunRow.number.desc())
        with self._read() as session:
            row = session.scalars(last.limit(1)).one_or_none()
            return None if row is None else run_of(row).verdict

    def list(self, *, page_size: int = 50, page_token: str | None = None, own: bool = False) -> AuditPage:
        """Return up to `page_size` audits (1 to 1000), by name, after those of the page that gave `page_token`.

        With `own`, an administrator gets those alone that the administrator or nobody owns. Raises InvalidRequest for a
        page size or token that is not allowed.
        """
        _check_page_size(page_size)
        last = and_(AuditRunRow.audit_id == AuditRow.id, AuditRunRow.number == AuditRow.runs)
        query = select(AuditRow, AuditRunRow).outerjoin(AuditRunRow, last)
        query = query.order_by(AuditRow.owned_name).limit(page_size + 1)
        if own:
            query = query.where(AuditRow.owner.in_((self.owner, NOBODY)))
        if page_token is not None:
            if not _OWNED_NAME.fullmatch(page_token):
                raise _bad_token(page_token)
            query = query.where(AuditRow.owned_name > page_token)
        with self._read() as session:
            rows = session.execute(query).all()
            audits = [audit_of(row, run) for row, run in rows[:page_size]]
            return AuditPage(audits, rows[page_size - 1][0].owned_name if len(rows) > page_size else None)

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
                return _audit(session, row)
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
            return _audit(session, row)

    def resume(self, name_or_id: str) -> Audit:
        """Let scheduled runs start again, from the present on: what was missed stays missed. Raises NotFound."""
        with self._write() as session:
            row = audit_row(session, name_or_id, lock=True)
            if row.paused:
                row.paused, row.pause_reason, row.errors = False, None, 0
                handle_until(row, AuditDefinition.model_validate(row.definition), self._clock())
            return _audit(session, row)

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

    def runs(self, name_or_id: str, *, page_size: int = 50, page_token: str | None = None) -> RunPage:
        """Return up to `page_size` runs (1 to 1000), newest first, after those of the page that gave `page_token`.

        Raises NotFound, and InvalidRequest for a page size or token that is not allowed.
        """
        _check_page_size(page_size)
        if page_token is not None and not re.fullmatch(r"[0-9]{1,9}", page_token, re.ASCII):
            raise _bad_token(page_token)
        with self._read() as session:
            query = select(AuditRunRow).where(AuditRunRow.audit_id == audit_row(session, name_or_id).id)
            if page_token is not None:
                query = query.where(AuditRunRow.number < int(page_token))
            rows = session.scalars(query.order_by(AuditRunRow.number.desc()).limit(page_size + 1)).all()
            more = len(rows) > page_size
            return RunPage([run_of(row) for row in rows[:page_size]], str(rows[page_size - 1].number) if more else None)

    def run(self, run_id: str) -> AuditRun:
        """Return a run. Raises NotFound."""
        with self._read() as session:
            row = session.get(AuditRunRow, run_id.replace("\0", ""))
            if row is None:
                raise NotFound(f"run: {run_id!r} is not the id of a run; `headroom audits history NAME` lists them")
            return run_of(row)

    def report_is_baseline(self, report_id: str, session: Session | None = None) -> bool:
        """Return whether an audit pins a report, is being compared with it, or may choose it for the next run.

        Args:
            report_id: The id of the job that made it.
            session: Of a transaction that is to see the same, such as one that deletes the report.

        Audits of other owners count too, if their owners see the report: nobody keeps what belongs to another.
        """
        if session is None:
            with self._read() as session:
                return self.report_is_baseline(report_id, session)
        is_seen = or_(AuditRow.owner == NOBODY, exists().where(JobRow.id == report_id, JobRow.owner == AuditRow.owner))
        pinning = select(AuditRow.id).where(AuditRow.baseline == f"report:{report_id}", is_seen).limit(1)
        with seeing(session, EVERYTHING):
            if session.scalar(pinning) is not None:
                return True
            return is_in_use(session, report_id) or may_be_chosen(session, report_id)

    def passed(self, name_or_id: str) -> PassedRuns:
        """Return the runs that an audit's next run may choose its baseline from. Raises NotFound."""
        with self._read() as session:
            return passed_runs(session, audit_row(session, name_or_id))

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


def _audit(session: Session, row: AuditRow) -> Audit:
    last = and_(AuditRunRow.audit_id == row.id, AuditRunRow.number == row.runs)
    return audit_of(row, session.scalars(select(AuditRunRow).where(last)).one_or_none())


def _taken(name: str) -> Conflict:
    return Conflict(f"name: {name!r} is already the name of an audit; allowed: any other name")


def _check_page_size(page_size: int) -> None:
    if not 1 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidRequest("page_size", page_size, f"1 to {MAX_PAGE_SIZE}")


def _bad_token(token: str) -> InvalidRequest:
    return InvalidRequest("page_token", token, "a next_page_token of an earlier answer")
