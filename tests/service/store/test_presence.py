"""Which workers are there, and what is said of jobs that none of them takes."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from service.contracts.request import JobRequest
from service.store.hosts.workers import GONE, MIN_WAIT, WorkerStore
from service.store.jobs import JobStore

REQUEST = JobRequest(model="sample")
SHORT = timedelta(seconds=1)


@pytest.fixture
def workers(engine: Engine, clock) -> WorkerStore:
    return WorkerStore(engine, clock)


def warnings(store: JobStore, job_id: str) -> list[str]:
    return [event.data["code"] for event in store.events(job_id) if event.kind == "warning"]


def test_a_job_that_becomes_large_is_warned_of_once_while_no_worker_takes_it(
    store: JobStore, workers: WorkerStore, clock
) -> None:
    job = store.submit(REQUEST)
    workers.write("host:1", ["small"])
    claim = store.next_claim("host:1", 60, ("small",))
    store.move_to_large(claim)
    assert (workers.unserved(), workers.warn()) == ([], 0)
    clock.now += MIN_WAIT + SHORT
    assert (workers.unserved(), workers.warn(), workers.warn()) == (["large"], 1, 0)
    last = store.events(job.id)[-1]
    assert (last.kind, last.data["code"]) == ("warning", "no-worker")
    assert "`large`" in last.data["message"]
    assert "HEADROOM_QUEUES=large" in last.data["advice"]
    workers.write("host:2", ["small", "large"])
    assert workers.unserved() == []
    assert store.next_claim("host:2", 60, ("large",)).job_id == job.id


def test_a_worker_that_is_gone_takes_nothing(store: JobStore, workers: WorkerStore, clock) -> None:
    workers.write("host:1", ["small", "large"])
    clock.now += GONE
    job = store.submit(REQUEST)
    assert workers.unserved() == []
    clock.now += MIN_WAIT + SHORT
    assert (workers.unserved(), workers.warn()) == (["small"], 1)
    workers.write("host:1", ["small", "large"])
    assert (workers.unserved(), workers.warn()) == ([], 0)
    assert warnings(store, job.id) == ["no-worker"]


def test_a_job_that_waits_again_is_warned_of_again(store: JobStore, workers: WorkerStore, clock) -> None:
    job = store.submit(REQUEST)
    clock.now += MIN_WAIT + SHORT
    assert workers.warn() == 1
    clock.now += SHORT
    store.cancel(job.id)
    store.retry(job.id)
    clock.now += MIN_WAIT + SHORT
    assert workers.warn() == 1
    assert warnings(store, job.id) == ["no-worker"] * 2


def test_workers_of_yesterday_are_forgotten(workers: WorkerStore, engine: Engine, clock) -> None:
    workers.write("host:1", ["small"])
    clock.now += timedelta(days=1) + SHORT
    workers.write("host:2", ["small"])
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT name FROM workers").scalars().all() == ["host:2"]
