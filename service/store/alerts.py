"""Alerts in the database: opens and closes them by runs and edits, acknowledges, dismisses and announces them.

`note_run` and `note_definition` belong into the transaction that ends a run or changes an audit, so that an alert, its
announcement and the messages that are owed for it are there together or not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from service.audits.alerts import Identity, OpenAlert, changes, identity
from service.audits.limits import parse_all
from service.contracts.audits.alert import Acknowledgement, Alert, AlertStatus, Announcement, Dismissal
from service.contracts.audits.audit import AuditDefinition, AuditRun, Finding
from service.errors import Conflict, InvalidRequest, NotFound
from service.store.audit_records import audit_row
from service.store.audit_tables import AuditRow
from service.store.job_records import new_id
from service.store.notifications.endpoints import Endpoints, keep_endpoints
from service.store.notifications.outbox import Outbox, owe
from service.store.notifications.tables import AlertRow, AnnouncementRow


@dataclass(frozen=True)
class AlertPage:
    """Part of the list of alerts, newest first."""

    alerts: list[Alert]
    next_page_token: str | None
    """Asks for the next part; None at the end."""


class AlertStore(Outbox, Endpoints):
    """Alerts, announcements, messages and webhooks of all audits; safe to use from several threads and processes."""

    def alerts(
        self, *, audit: str | None = None, closed: bool = False, page_size: int = 50, page_token: str | None = None
    ) -> AlertPage:
        """Return up to `page_size` alerts, newest first, after those of the page that gave `page_token`.

        Args:
            audit: Name or id of an audit; None for all.
            closed: Whether closed alerts are listed too.
            page_size: 1 to 1000.
            page_token: `next_page_token` of the page before.

        Raises NotFound for an unknown audit, and InvalidRequest for a token that is none.
        """
        query = select(AlertRow).order_by(AlertRow.id.desc()).limit(page_size + 1)
        if not closed:
            query = query.where(AlertRow.closed_at.is_(None))
        if page_token is not None:
            if len(page_token) != 32 or not page_token.isalnum():
                raise InvalidRequest("page_token", page_token, "a next_page_token of an earlier answer")
            query = query.where(AlertRow.id < page_token)
        with self._read() as session:
            if audit is not None:
                query = query.where(AlertRow.audit_id == audit_row(session, audit).id)
            rows = session.scalars(query).all()
            alerts = [_alert(row, self._clock()) for row in rows[:page_size]]
        return AlertPage(alerts, alerts[-1].id if len(rows) > page_size else None)

    def alert(self, alert_id: str) -> Alert:
        """Return an alert. Raises NotFound."""
        with self._read() as session:
            return _alert(_row(session, alert_id), self._clock())

    def acknowledge(self, alert_id: str, author: str, note: str = "") -> Alert:
        """Note that somebody has seen an alert. Raises NotFound, and Conflict for a closed one."""
        with self._write() as session:
            row, now = _open_row(session, alert_id), self._clock()
            row.acknowledgement = Acknowledgement(author=author, at=now, note=note).model_dump(mode="json")
            return _alert(row, now)

    def dismiss(self, alert_id: str, author: str, reason: str, until: datetime) -> Alert:
        """Send no messages about an alert, nor about a later alert on the same figure, until the dismissal expires.

        Raises NotFound, Conflict for a closed alert, and InvalidRequest for an expiry that is not in the future.
        """
        with self._write() as session:
            row, now = _open_row(session, alert_id), self._clock()
            if until <= now:
                raise InvalidRequest("until", until.isoformat(), f"a time later than {now.isoformat()}")
            said = Dismissal(author=author, at=now, reason=reason, until=until)
            row.dismissal = said.model_dump(mode="json")
            return _alert(row, now)

    def announcements(self, audit_id: str, limit: int) -> Sequence[Announcement]:
        """Return the last announcements of an audit, newest first."""
        with self._read() as session:
            newest = select(AnnouncementRow).where(AnnouncementRow.audit_id == audit_id)
            rows = session.scalars(newest.order_by(AnnouncementRow.id.desc()).limit(limit))
            return [Announcement.model_validate(row.content) for row in rows]


def note_run(session: Session, audit: AuditRow, run: AuditRun, now: datetime, *, paused_now: bool = False) -> None:
    """Update the alerts of an audit by a run that has ended, and insert the messages about them.

    The audit's row must be locked. `paused_now` says that the run's error paused the audit.
    """
    alerts = _write_changes(session, audit, run, now)
    if any(alerts.values()):
        owe(session, audit, _announce(session, audit, run, "alerts", now, **alerts))
    elif paused_now:
        owe(session, audit, _announce(session, audit, run, "paused", now))
    elif run.verdict == "error" and run.trigger != "gate":
        _announce(session, audit, run, "error", now)


def _write_changes(session: Session, audit: AuditRow, run: AuditRun, now: datetime) -> dict[str, list[Alert]]:
    """Write what a run does to the alerts of its audit; return those to be announced, by what became of them."""
    present = {row.id: row for row in session.scalars(_open_alerts(audit.id))}
    result = changes(run, [_open_alert(row) for row in present.values()], now)
    # The run was held to the limits that it began with, of which an edit may have removed some since.
    kept = _identities(AuditDefinition.model_validate(audit.definition)) if result.opened else set()
    opened = [_open(session, audit.id, run, key, finding, now) for key, finding in result.opened if key in kept]
    for alert_id, finding in result.broken:
        row = present[alert_id]
        row.broken, row.broken_run_id, row.finding = True, run.id, finding.model_dump(mode="json")
    for alert_id in result.doubtful:
        present[alert_id].broken = False
    for alert_id, finding in result.closed:
        row = present[alert_id]
        row.broken, row.closed_at, row.closed_run_id = False, now, run.id
        row.finding = finding.model_dump(mode="json")
    for alert_id in result.expired:
        present[alert_id].dismissal, present[alert_id].told = None, True
    session.flush()
    closed = [present[alert_id] for alert_id, _ in result.closed]
    return {
        "opened": [_alert(row, now) for row in opened if row.told],
        "still_broken": [_alert(present[alert_id], now) for alert_id in result.expired],
        "closed": [_alert(row, now) for row in closed if row.told],
    }


def note_definition(session: Session, audit: AuditRow, definition: AuditDefinition, now: datetime) -> None:
    """Close the alerts of limits that the audit no longer has, without messages, and update its webhooks.

    The audit's row must be locked.
    """
    kept = _identities(definition)
    for row in session.scalars(_open_alerts(audit.id)):
        if _identity(row) not in kept:
            row.broken, row.closed_at = False, now
    keep_endpoints(session, audit, definition, now)


def _announce(
    session: Session, audit: AuditRow, run: AuditRun, kind: str, now: datetime, **alerts: list[Alert]
) -> Announcement:
    announcement = Announcement.model_validate(
        {
            "id": new_id(now),
            "audit_id": audit.id,
            "audit": audit.definition["name"],
            "at": now,
            "kind": kind,
            "run_id": run.id,
            "verdict": run.verdict,
            "report_id": run.report_id,
            "baseline_report_id": run.baseline_report_id,
            "reasons": run.reasons,
        }
        | alerts
    )
    row = AnnouncementRow(id=announcement.id, audit_id=audit.id, content=announcement.model_dump(mode="json"))
    session.add(row)
    session.flush()
    return announcement


def _open(session: Session, audit_id: str, run: AuditRun, key: Identity, finding: Finding, now: datetime) -> AlertRow:
    """Insert an alert; a dismissal of the same figure that has not expired holds for it too."""
    same = (AlertRow.audit_id == audit_id, AlertRow.figure == key.figure, AlertRow.site == key.site,
            AlertRow.direction == key.direction)  # fmt: skip
    last = session.scalars(select(AlertRow).where(*same).order_by(AlertRow.id.desc()).limit(1)).one_or_none()
    dismissal = last.dismissal if last is not None and _in_force(last, now) else None
    row = AlertRow(
        id=new_id(now),
        audit_id=audit_id,
        **key._asdict(),
        opened_at=now,
        opened_run_id=run.id,
        broken=True,
        broken_run_id=run.id,
        told=dismissal is None,
        finding=finding.model_dump(mode="json"),
        dismissal=dismissal,
    )
    session.add(row)
    return row


def _open_alerts(audit_id: str) -> Select[AlertRow]:
    of_audit = (AlertRow.audit_id == audit_id, AlertRow.closed_at.is_(None))
    return select(AlertRow).where(*of_audit).order_by(AlertRow.id).with_for_update()


def _row(session: Session, alert_id: str, *, lock: bool = False) -> AlertRow:
    row = session.get(AlertRow, alert_id.replace("\0", ""), with_for_update=lock)
    if row is None:
        raise NotFound(f"alert: {alert_id!r} is not the id of an alert; `headroom audits alerts list` lists them")
    return row


def _open_row(session: Session, alert_id: str) -> AlertRow:
    row = _row(session, alert_id, lock=True)
    if row.closed_at is not None:
        raise Conflict(f"alert {alert_id} closed at {row.closed_at.isoformat()}")
    return row


def _identities(definition: AuditDefinition) -> set[Identity]:
    """Return what the alerts of an audit can be about."""
    limits = parse_all(definition.limits, definition.scheme_names)
    return {identity(limit.figure.path, limit.text) for limit in limits}


def _identity(row: AlertRow) -> Identity:
    return Identity(row.figure, row.site, row.direction)  # type: ignore[arg-type]


def _open_alert(row: AlertRow) -> OpenAlert:
    dismissal = None if row.dismissal is None else Dismissal.model_validate(row.dismissal)
    return OpenAlert(row.id, _identity(row), row.broken, dismissal.until if dismissal else None)


def _in_force(row: AlertRow, now: datetime) -> bool:
    return row.dismissal is not None and now < Dismissal.model_validate(row.dismissal).until


def _status(row: AlertRow, now: datetime) -> AlertStatus:
    if row.closed_at is not None:
        return "closed"
    if _in_force(row, now):
        return "dismissed"
    return "open" if row.acknowledgement is None else "acknowledged"


def _alert(row: AlertRow, now: datetime) -> Alert:
    shown = ("id", "audit_id", "figure", "site", "direction", "opened_at", "opened_run_id", "broken_run_id")
    said = ("closed_at", "closed_run_id", "finding", "acknowledgement", "dismissal")
    facts = {name: getattr(row, name) for name in (*shown, *said)}
    return Alert.model_validate(facts | {"status": _status(row, now)})
