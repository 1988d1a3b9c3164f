"""Whose job a worker takes next: start-time fair queueing over the owners of jobs, by the time of workers they had.

Every owner has a virtual time, `served`: the seconds that workers spent on their jobs. The owner with the least of it
is next, among equals the one whose last job began the longest ago. An owner who had nothing in the queue saves up no
time: when a job of theirs begins, `served` is first brought up to that of whoever was served last. So an owner with
a thousand jobs delays a job of another by one at most, and two who both keep the workers busy get the same time of
them, however long their jobs are. Within one owner jobs begin in the order in which they came into the queue.

The time that an owner used is added when a job leaves its worker. Whoever writes to several owners does so in the order
of their names, so that two transactions never wait for each other.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from service.contracts.request import SizeClass
from service.store.database import insert_missing
from service.store.job_records import Dispatch
from service.store.owners.access import EVERYTHING
from service.store.owners.tables import KeyRow, OwnerRow
from service.store.owners.visibility import seeing
from service.store.statuses import Status
from service.store.tables import JobRow


class Waiting(NamedTuple):
    """An owner who has jobs in the queue."""

    owner: str
    since: datetime
    """When the first of their jobs came into the queue."""
    served: float | None
    """Seconds, as the table has them; None for an owner of whom no job has ever begun."""
    begun_at: datetime | None
    """When the last of their jobs began."""


def next_job(session: Session, sizes: Sequence[SizeClass], most_running: int | None) -> Dispatch | None:
    """Return the job whose turn it is; None where no worker is to take one now.

    Args:
        session: Of the transaction; it sees all owners.
        sizes: The classes that the worker takes.
        most_running: Running jobs of an owner at which the owner is passed over, where no key has another limit;
            None: nobody else is.
    """
    queued = (JobRow.status == Status.queued, JobRow.size.in_(sizes))
    first = func.min(JobRow.queued_at)
    owners = select(JobRow.owner, first, OwnerRow.served, OwnerRow.begun_at)
    owners = owners.outerjoin(OwnerRow, OwnerRow.owner == JobRow.owner).where(*queued)
    rows = session.execute(owners.group_by(JobRow.owner, OwnerRow.served, OwnerRow.begun_at))
    waiting = [Waiting(*row) for row in rows]
    if waiting:
        full = _full_owners(session, most_running)
        waiting = [one for one in waiting if one.owner not in full]
    if not waiting:
        return None
    owner = next_owner(waiting, _virtual_time(session))
    job = select(JobRow.id, JobRow.dispatch).where(*queued, JobRow.owner == owner)
    row = session.execute(job.order_by(JobRow.queued_at, JobRow.id).limit(1)).one_or_none()
    return None if row is None else Dispatch(*row)


def _full_owners(session: Session, most_running: int | None) -> set[str]:
    """Return the owners who have as many running jobs as the largest limit of their keys, or `most_running`."""
    busy = select(JobRow.owner, func.count()).where(JobRow.status == Status.running).group_by(JobRow.owner)
    running = {owner: count for owner, count in session.execute(busy)}  # noqa: C416 - rows are not pairs to mypy
    own = select(KeyRow.owner, func.max(KeyRow.running_jobs)).where(
        KeyRow.owner.in_(running), KeyRow.revoked_at.is_(None), KeyRow.running_jobs.is_not(None)
    )
    rows = session.execute(own.group_by(KeyRow.owner)) if running else ()
    limits = {owner: most for owner, most in rows if most is not None}
    unlimited = math.inf if most_running is None else most_running
    return {owner for owner, count in running.items() if count >= limits.get(owner, unlimited)}


def next_owner(waiting: Sequence[Waiting], virtual_time: float) -> str:
    """Return the owner whose turn it is."""

    def turn(one: Waiting) -> tuple[float, bool, datetime, datetime, str]:
        served = max(one.served or 0.0, virtual_time)
        return served, one.begun_at is not None, one.begun_at or one.since, one.since, one.owner

    return min(waiting, key=turn).owner


def locked_owner(session: Session, owner: str) -> OwnerRow:
    """Return an owner's row, made if there is none, and held until the transaction ends; the owner does not see it."""
    with seeing(session, EVERYTHING):
        insert_missing(session, OwnerRow, owner=owner, served=0.0, begun=0.0, upload_bytes=0)
        return session.get_one(OwnerRow, owner, with_for_update=True)


def begin(session: Session, owner: str, now: datetime) -> None:
    """Note that a job of an owner begins."""
    virtual_time = _virtual_time(session)
    row = locked_owner(session, owner)
    row.served = row.begun = max(row.served, virtual_time)
    row.begun_at = now


def serve(session: Session, owner: str, seconds: float) -> None:
    """Note the seconds that a worker spent on a job of an owner."""
    session.execute(update(OwnerRow).where(OwnerRow.owner == owner).values(served=OwnerRow.served + max(0.0, seconds)))


def _virtual_time(session: Session) -> float:
    """Return the time of the owner who was served last."""
    return session.scalar(select(func.max(OwnerRow.begun))) or 0.0
