"""The rows that a caller sees: every table is decided, and every form of statement is limited."""

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import aliased

from service.contracts.request import JobRequest
from service.errors import NotFound
from service.store.jobs import JobStore
from service.store.owners.access import EVERYTHING, NOBODY, Access, access_of_owner
from service.store.owners.visibility import HIDDEN, OF_OWNED, OWNED, OwnedSession, seeing
from service.store.tables import ArtifactRow, Base, DispatchRow, EventRow, JobRow

ANN, BEN = Access("ann"), Access("ben")
REQUEST = JobRequest(model="sample")


def test_every_table_is_decided() -> None:
    decided = [*OWNED, *OF_OWNED, *HIDDEN]
    assert len(decided) == len(set(decided))
    assert {row.__table__ for row in decided} == set(Base.metadata.tables.values())
    assert all("owner" in row.__table__.c for row in OWNED)


@pytest.fixture
def jobs(store: JobStore) -> tuple[str, str, str]:
    """A job of Ann's, Ben's and nobody's."""
    return tuple(one.submit(REQUEST).id for one in (store.seen_by(ANN), store.seen_by(BEN), store))  # type: ignore[return-value]


def test_each_caller_sees_their_own_jobs(store: JobStore, jobs: tuple[str, str, str]) -> None:
    anns, bens, nobodys = jobs
    assert [job.id for job in store.seen_by(ANN).list().jobs] == [anns]
    assert [job.id for job in store.seen_by(BEN).list().jobs] == [bens]
    assert {job.id for job in store.list().jobs} == {anns, bens, nobodys}
    assert {job.id for job in store.seen_by(Access("ops", everything=True)).list().jobs} == {anns, bens, nobodys}
    assert sum(store.seen_by(ANN).counts().values()) == 1
    for call in ("get", "events", "cancel", "retry", "artifacts"):
        with pytest.raises(NotFound):
            getattr(store.seen_by(BEN), call)(anns)
    assert store.seen_by(ANN).cancel(anns).owner == "ann"


def test_on_behalf_of_nobody_everything_is_seen() -> None:
    assert access_of_owner(NOBODY) == EVERYTHING
    assert access_of_owner("ann") == ANN


@pytest.mark.usefixtures("jobs")
def test_every_form_of_statement_is_limited(engine: Engine) -> None:
    other = aliased(JobRow)
    within = select(JobRow.id).where(JobRow.id == EventRow.job_id).exists()
    statements = {
        "count": select(func.count()).select_from(JobRow),
        "column": select(func.count(JobRow.owner)),
        "alias": select(func.count()).select_from(other),
        "join": select(func.count()).select_from(DispatchRow).join(JobRow, JobRow.id == DispatchRow.job_id),
        "child": select(func.count()).select_from(EventRow),
        "subquery": select(func.count()).select_from(select(JobRow.id).subquery()),
        "exists": select(func.count()).select_from(EventRow).where(within),
    }
    with OwnedSession(engine, ANN) as session:
        counted = {name: session.scalar(statement) for name, statement in statements.items()}
        assert counted == dict.fromkeys(statements, 1)
        assert session.scalar(select(func.count()).select_from(ArtifactRow)) == 0
        with seeing(session, EVERYTHING):
            assert {session.scalar(statement) for statement in statements.values()} == {3}
        assert session.scalar(statements["count"]) == 1


def test_changes_are_limited_too(engine: Engine, jobs: tuple[str, str, str]) -> None:
    with OwnedSession(engine, ANN) as session, session.begin():
        session.execute(update(JobRow).values(losses=7))
    with OwnedSession(engine, EVERYTHING) as session:
        assert set(session.scalars(select(JobRow.id).where(JobRow.losses == 7))) == {jobs[0]}
