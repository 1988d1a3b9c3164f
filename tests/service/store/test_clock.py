"""The clock of the stores: hosts whose clocks differ agree, because the database's clock is asked."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, event, text

from service.contracts.request import JobRequest
from service.store.database import make_engine
from service.store.hosts import clock
from service.store.hosts.clock import DatabaseClock, clock_of, utcnow
from service.store.jobs import JobStore

REQUEST = JobRequest(model="sample")
LEASE = 60.0


class Ahead(datetime):
    """The clock of a host that is 61 seconds ahead."""

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(seconds=61)


def test_a_host_that_is_ahead_takes_no_job_from_a_healthy_worker(
    engine: Engine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = JobStore(engine)
    job = worker.submit(REQUEST)
    claim = worker.claim(job.id, 1, "host:1", LEASE)
    assert claim is not None
    monkeypatch.setattr(clock, "datetime", Ahead)
    other = make_engine(url)
    requeued = JobStore(other).requeue_expired(3)
    other.dispose()
    if engine.dialect.name == "postgresql":
        assert requeued == []
        assert worker.renew(claim, LEASE) is False
    else:  # all that use a file are on one host, whose clock the test has moved
        assert requeued == [job.id]


def test_the_time_is_the_database_s(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine.dialect.name == "sqlite":
        assert clock_of(engine) is utcnow
        return
    monkeypatch.setattr(clock, "datetime", Ahead)
    ask = clock_of(engine)
    with engine.connect() as connection:
        for _ in range(3):
            before = connection.scalar(text("SELECT clock_timestamp()"))
            now = ask()
            after = connection.scalar(text("SELECT clock_timestamp()"))
            slack = timedelta(seconds=20)  # of a machine that stands still while it asks
            assert before - slack <= now <= after + slack
            assert now.tzinfo is UTC


def test_the_database_is_asked_now_and_then(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine.dialect.name == "sqlite":
        assert clock_of(engine) is utcnow
        return
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    steady = [1000.0]
    monkeypatch.setattr(clock, "_steady", lambda: steady[0])
    ask = DatabaseClock(engine)
    first = ask()
    steady[0] += clock.SYNC_SECONDS / 2
    assert ask() - first == timedelta(seconds=clock.SYNC_SECONDS / 2)
    assert len(asked) == 1
    steady[0] += clock.SYNC_SECONDS
    ask()
    assert len(asked) == 2
