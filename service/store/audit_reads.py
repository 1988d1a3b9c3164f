"""Audits and their runs as people read them."""

import re

from sqlalchemy import and_, exists, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.contracts.audits.audit import AuditRun, RunVerdict
from service.errors import InvalidRequest, NotFound
from service.store.audit_records import Audit, AuditPage, RunPage, audit_of, audit_row, run_of
from service.store.audit_tables import AuditRow, AuditRunRow
from service.store.baselines import PassedRuns, is_in_use, may_be_chosen, passed_runs
from service.store.owners.access import EVERYTHING, NOBODY, OWNER
from service.store.owners.visibility import seeing
from service.store.tables import JobRow
from service.store.transactions import Transactions

MAX_PAGE_SIZE = 1000
_OWNED_NAME = re.compile(rf"({OWNER}/)?[a-z0-9-]{{1,63}}")


class AuditReads(Transactions):
    """What is read of audits and runs that the caller sees."""

    def get(self, name_or_id: str) -> Audit:
        """Return an audit. Raises NotFound."""
        with self._read() as session:
            return with_last_run(session, audit_row(session, name_or_id))

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
            return with_last_run(session, row)

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


def with_last_run(session: Session, row: AuditRow) -> Audit:
    """Return the record of an audit with its last run."""
    last = and_(AuditRunRow.audit_id == row.id, AuditRunRow.number == row.runs)
    return audit_of(row, session.scalars(select(AuditRunRow).where(last)).one_or_none())


def _check_page_size(page_size: int) -> None:
    if not 1 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidRequest("page_size", page_size, f"1 to {MAX_PAGE_SIZE}")


def _bad_token(token: str) -> InvalidRequest:
    return InvalidRequest("page_token", token, "a next_page_token of an earlier answer")
