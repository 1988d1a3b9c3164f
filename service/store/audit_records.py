"""Records of audits and their runs, read from the database: they need no open session. Times are UTC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.audits.baseline import is_comparable
from service.contracts.audits.audit import AuditDefinition, AuditRun, PastRun
from service.errors import Conflict, NotFound
from service.store.audit_tables import AuditRow, AuditRunRow
from service.store.owners.visibility import access_in

_SHOWN = ("id", "audit_id", "trigger", "scheduled_at", "started_at", "finished_at", "verdict", "reasons")
_AT_ONCE = 100
"""Rows that are read at once where it is not known how many are needed."""
_RESULT = ("job_id", "report_id", "baseline_report_id", "findings", "reruns")


@dataclass(frozen=True)
class Audit:
    """One audit, and its state."""

    id: str
    owner: str
    """Whose it is; empty: nobody's."""
    definition: AuditDefinition
    baseline_cautions: tuple[str, ...]
    """Why limits against the pinned baseline mean little, where somebody insisted on it; sentences."""
    created_at: datetime
    updated_at: datetime
    paused: bool
    pause_reason: str | None
    next_run_at: datetime | None
    """When the next scheduled run starts; None without a schedule, and while paused."""
    badge_token: str
    """Unguessable part of the badge's address, which public pages may show."""
    feed_token: str
    """Unguessable part of the feed's address."""
    last_run: AuditRun | None
    """The newest, which may not have ended."""


@dataclass(frozen=True)
class AuditPage:
    """Part of the list of audits, by name."""

    audits: list[Audit]
    next_page_token: str | None
    """Asks for the next part; None at the end."""


@dataclass(frozen=True)
class RunPage:
    """Part of the list of an audit's runs, newest first."""

    runs: list[AuditRun]
    next_page_token: str | None


def audit_of(row: AuditRow, last_run: AuditRunRow | None) -> Audit:
    """Return the record of a row."""
    return Audit(
        id=row.id,
        owner=row.owner,
        definition=AuditDefinition.model_validate(row.definition),
        baseline_cautions=tuple(row.baseline_cautions),
        created_at=row.created_at,
        updated_at=row.updated_at,
        paused=row.paused,
        pause_reason=row.pause_reason,
        next_run_at=row.next_run_at,
        badge_token=row.badge_token,
        feed_token=row.feed_token,
        last_run=None if last_run is None else run_of(last_run),
    )


def run_of(row: AuditRunRow) -> AuditRun:
    """Return the record of a row."""
    return AuditRun.model_validate({name: getattr(row, name) for name in (*_SHOWN, *_RESULT)})


def past_run_of(row: AuditRunRow) -> PastRun:
    """Return what the choice of a baseline needs of a run that ended."""
    return PastRun.model_validate(
        {
            "report_id": row.report_id,
            "finished_at": row.finished_at,
            "verdict": row.verdict,
            "values": row.figures,
        }
    )


def owned_name(owner: str, name: str) -> str:
    """Return how the name of an owner's audit is kept; neither of the two has a slash."""
    return f"{owner}/{name}" if owner else name


def audit_row(session: Session, name_or_id: str, *, lock: bool = False, of_others: bool = True) -> AuditRow:
    """Return the row of an audit, held until the transaction ends if `lock`.

    A name means the caller's audit of this name, then nobody's, then, with `of_others`, that of the only owner who has
    one. Raises NotFound, and Conflict for a name that several other owners use.
    """
    name_or_id = name_or_id.replace("\0", "")
    owner = access_in(session).owner
    conditions = [
        AuditRow.owned_name == owned_name(owner, name_or_id),
        AuditRow.id == name_or_id,
        AuditRow.owned_name == name_or_id,
    ]
    if of_others:
        conditions.append(AuditRow.owned_name.endswith(f"/{name_or_id}", autoescape=True))
    for condition in conditions:
        query = select(AuditRow).where(condition)
        rows = session.scalars(query.with_for_update() if lock else query).all()
        if len(rows) > 1:
            listed = ", ".join(f"{row.id} of {row.owner}" for row in rows)
            raise Conflict(f"audit: {name_or_id!r} is the name of audits of several owners; allowed: an id: {listed}")
        if rows:
            return rows[0]
    raise NotFound(f"audit: {name_or_id!r} is not the name or id of an audit; `headroom audits list` lists them")


def last_passed(
    session: Session, audit_id: str, count: int, definition: Mapping[str, Any] | None = None
) -> Sequence[AuditRunRow]:
    """Return the last runs of an audit that passed, have a report and are comparable, newest first.

    Args:
        session: Of the transaction.
        audit_id: The audit.
        count: Most runs to return.
        definition: The definition with whose runs they must be comparable, as JSON; default: the audit's present one.
    """
    now = definition or session.scalars(select(AuditRow.definition).where(AuditRow.id == audit_id)).one()
    passed = (AuditRunRow.audit_id == audit_id, AuditRunRow.verdict == "pass", AuditRunRow.report_id.is_not(None))
    newest = (AuditRunRow.finished_at.desc(), AuditRunRow.number.desc())
    rows = session.execute(select(AuditRunRow).where(*passed).order_by(*newest).execution_options(yield_per=_AT_ONCE))
    last = list(islice((row for row in rows.scalars() if is_comparable(row.definition or {}, now)), count))
    rows.close()
    return last
