"""Which rows a caller sees: the one place that decides it, for every statement of every store.

A session has the access of its caller, and each SELECT, UPDATE and DELETE of it is limited to the rows that the access
includes, in subqueries too. Rows that are not seen are not there: looked up by id they are not found, and lists leave
them out. Tables that are not named here are a mistake, which `test_visibility` finds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Table, event, exists, false
from sqlalchemy.orm import ORMExecuteState, Session, with_loader_criteria

from service.store.audit_tables import AuditRerunRow, AuditRow, AuditRunRow
from service.store.notifications.tables import AlertRow, AnnouncementRow, AttemptRow, EndpointRow, MessageRow
from service.store.owners.access import EVERYTHING, Access
from service.store.owners.tables import KeyRow, OwnerRow
from service.store.tables import (
    ArtifactRow,
    Base,
    DeletedJobRow,
    DispatchRow,
    EventRow,
    FileRow,
    HostRow,
    JobRow,
    StoreRow,
    WorkerRow,
)

OWNED: tuple[type[Base], ...] = (JobRow, DeletedJobRow, AuditRow, FileRow)
"""Rows with an owner."""
OF_OWNED: dict[type[Base], tuple[str, ...]] = {
    EventRow: ("job_id",),
    DispatchRow: ("job_id",),
    ArtifactRow: ("job_id",),
    AuditRunRow: ("audit_id",),
    AuditRerunRow: ("run_id", "audit_id"),
    AlertRow: ("audit_id",),
    AnnouncementRow: ("audit_id",),
    MessageRow: ("audit_id",),
    EndpointRow: ("audit_id",),
    AttemptRow: ("message_id", "audit_id"),
}
"""Rows that belong to another row: the foreign keys that lead to the one with an owner."""
HIDDEN: tuple[type[Base], ...] = (HostRow, KeyRow, OwnerRow, StoreRow, WorkerRow)
"""Rows of the service itself, which nobody sees but who sees everything."""

_ACCESS = "access"


class OwnedSession(Session):
    """A session that sees what one caller may see."""

    def __init__(self, bind: Any, access: Access) -> None:
        super().__init__(bind, info={_ACCESS: access})


def access_in(session: Session) -> Access:
    """Return what a session sees; one that is no OwnedSession is not limited."""
    access = session.info.get(_ACCESS, EVERYTHING)
    assert isinstance(access, Access)
    return access


@contextmanager
def seeing(session: Session, access: Access) -> Iterator[None]:
    """Let a session see what another access includes, for as long as the context lasts."""
    before = access_in(session)
    session.info[_ACCESS] = access
    try:
        yield
    finally:
        session.info[_ACCESS] = before


@event.listens_for(OwnedSession, "do_orm_execute")
def _limit(state: ORMExecuteState) -> None:
    access = access_in(state.session)
    if not access.everything and (state.is_select or state.is_update or state.is_delete):
        state.statement = state.statement.options(*_criteria(access.owner))


@lru_cache(maxsize=1024)
def _criteria(owner: str) -> tuple[Any, ...]:
    """Return the conditions on every table for one owner."""
    conditions: dict[type[Base], ColumnElement[bool]] = {row: row.__table__.c.owner == owner for row in OWNED}
    conditions |= {row: _leads_to(row.__table__, path, owner) for row, path in OF_OWNED.items()}
    conditions |= {row: false() for row in HIDDEN}
    return tuple(with_loader_criteria(row, condition, include_aliases=True) for row, condition in conditions.items())


def _leads_to(table: Any, path: tuple[str, ...], owner: str) -> ColumnElement[bool]:
    """Return the condition that the foreign keys of `path` lead from a row to one of the owner.

    Tables on the way have other names than in the statement, which may join them itself.
    """
    (key,) = table.c[path[0]].foreign_keys
    above: Table = key.column.table
    named = above.alias(f"owning_{above.name}")
    rest = named.c.owner == owner if not path[1:] else _leads_to(named, path[1:], owner)
    return exists().where(named.c[key.column.name] == table.c[path[0]], rest)
