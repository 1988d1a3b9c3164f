"""Whose job a worker takes next."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, insert

from service.contracts.key_limits import KeyLimits
from service.contracts.progress import Failed
from service.contracts.request import JobRequest
from service.store.database import writer
from service.store.jobs import JobStore
from service.store.owners.access import Access
from service.store.owners.keys import KeyStore
from service.store.owners.shares import Waiting, next_owner
from service.store.statuses import Status
from service.store.tables import DispatchRow, JobRow

REQUEST = JobRequest(model="sample")
FAILED = Failed(code="internal", message="it broke", bad_input=False)
START = datetime(2026, 1, 1, tzinfo=UTC)
BOTH = ("small", "large")


def submit(store: JobStore, owner: str, count: int = 1) -> list[str]:
    return [store.seen_by(Access(owner)).submit(REQUEST).id for _ in range(count)]


def take(store: JobStore, sizes=BOTH, most_running=None):
    return store.next_claim("worker", 3600, sizes, most_running=most_running)


def serve(store: JobStore, clock, seconds: float) -> str:
    """Take the next job, work on it for so long, and return its owner."""
    claim = take(store)
    clock.move(seconds)
    store.fail(claim, FAILED)
    return store.get(claim.job_id).owner


def in_bulk(engine: Engine, owner: str, count: int) -> None:
    """Put many jobs of an owner into the queue at once."""
    rows = [
        {"id": f"{number:032x}", "owner": owner, "request": REQUEST.model_dump(mode="json"), "model": "sample",
         "status": Status.queued, "created_at": START, "queued_at": START, "dispatch": 1}
        for number in range(count)
    ]  # fmt: skip
    owed = [{"job_id": row["id"], "number": 1, "created_at": START} for row in rows]
    with writer(engine).begin() as connection:
        connection.execute(insert(JobRow), rows)
        connection.execute(insert(DispatchRow), owed)


def test_a_thousand_jobs_of_one_owner_delay_another_s_by_one(engine: Engine, store: JobStore, clock) -> None:
    in_bulk(engine, "ann", 1000)
    for _ in range(3):
        assert serve(store, clock, 100) == "ann"
    running = take(store)
    submit(store, "ben", 2)
    submit(store, "cleo")
    clock.move(100)
    store.fail(running, FAILED)
    assert {serve(store, clock, 100), serve(store, clock, 100)} == {"ben", "cleo"}
    assert [serve(store, clock, 100) for _ in range(4)] == ["ann", "ben", "ann", "ann"]


def test_owners_get_the_same_time_however_long_their_jobs_are(store: JobStore, clock) -> None:
    submit(store, "ann", 20)
    submit(store, "ben", 20)
    seconds = {"ann": 0.0, "ben": 0.0}
    order = []
    for _ in range(22):
        claim = take(store)
        owner = store.get(claim.job_id).owner
        spent = {"ann": 100, "ben": 10}[owner]
        clock.move(spent)
        store.fail(claim, FAILED)
        seconds[owner] += spent
        order.append(owner)
    assert order.count("ann") == 2
    assert abs(seconds["ann"] - seconds["ben"]) <= 100


def test_an_owner_who_was_away_saves_up_no_time(store: JobStore, clock) -> None:
    submit(store, "ben")
    serve(store, clock, 1)
    submit(store, "ann", 30)
    for _ in range(10):
        assert serve(store, clock, 100) == "ann"
    submit(store, "ben", 30)
    served = [serve(store, clock, 100) for _ in range(10)]
    assert abs(served.count("ann") - served.count("ben")) <= 1


def test_idle_workers_are_shared_at_once(store: JobStore, clock) -> None:
    """Though no worker has ended a job yet."""
    submit(store, "ann", 4)
    submit(store, "ben", 4)
    begun = []
    for _ in range(4):
        begun.append(store.get(take(store).job_id).owner)
        clock.move(1)
    assert begun == ["ann", "ben", "ann", "ben"]


def test_jobs_of_one_owner_begin_in_the_order_of_the_queue(store: JobStore, clock) -> None:
    jobs = []
    for _ in range(3):
        jobs += submit(store, "ann")
        clock.move(1)
    first = take(store)
    store.release(first)
    assert [take(store).job_id for _ in range(3)] == [jobs[1], jobs[2], jobs[0]]
    assert take(store) is None


def test_a_worker_takes_the_classes_that_it_serves(store: JobStore) -> None:
    small, large = submit(store, "ann", 2)
    store.move_to_large(store.claim(large, 1, "worker", 60))
    assert take(store, ("large",)).job_id == large
    assert take(store, ("large",)) is None
    assert take(store, ("small",)).job_id == small


def test_an_owner_at_the_limit_of_running_jobs_is_passed_over(store: JobStore) -> None:
    submit(store, "ann", 3)
    submit(store, "ben")
    claims = [take(store, most_running=1) for _ in range(2)]
    assert [store.get(claim.job_id).owner for claim in claims] == ["ann", "ben"]
    assert take(store, most_running=1) is None
    store.fail(claims[0], FAILED)
    assert store.get(take(store, most_running=1).job_id).owner == "ann"


def test_the_time_of_a_lost_worker_counts_too(store: JobStore, clock) -> None:
    submit(store, "ann", 2)
    store.next_claim("worker", 10, BOTH)
    clock.move(100)
    assert len(store.requeue_expired(3)) == 1
    submit(store, "ben")
    assert serve(store, clock, 50) == "ben"
    submit(store, "ben")
    assert serve(store, clock, 50) == "ben"
    assert serve(store, clock, 50) == "ann"


@pytest.mark.parametrize(
    ("served", "virtual_time", "owner"),
    [
        ({"ann": 5.0, "ben": 3.0}, 0.0, "ben"),
        ({"ann": 5.0, "ben": None}, 0.0, "ben"),
        ({"ann": 1.0, "ben": 3.0}, 4.0, "ann"),  # both are brought up to 4: the older wait
        ({"ann": 5.0, "ben": 3.0}, 9.0, "ann"),
    ],
)
def test_the_least_served_is_next(served, virtual_time: float, owner: str) -> None:
    begun = {"ann": START, "ben": START + timedelta(1)}
    waiting = [Waiting(one, START, seconds, begun[one] if seconds else None) for one, seconds in served.items()]
    assert next_owner(waiting, virtual_time) == owner
    assert next_owner(waiting[::-1], virtual_time) == owner


def test_a_key_s_own_limit_of_running_jobs_counts_instead(engine: Engine, store: JobStore) -> None:
    """Owners with as many running jobs are passed over, and their jobs wait."""
    keys = KeyStore(engine)
    keys.create("ann", ["submit"], limits=KeyLimits(running_jobs=2))
    keys.create("ann-old", ["submit"], owner="ann", limits=KeyLimits(running_jobs=9))
    keys.revoke("ann-old")
    submit(store, "ann", 3)
    owners = [store.get(take(store, most_running=1).job_id).owner for _ in range(2)]
    assert (owners, take(store, most_running=1), take(store)) == (["ann", "ann"], None, None)
    submit(store, "ben", 2)
    assert store.get(take(store, most_running=1).job_id).owner == "ben"
    assert take(store, most_running=1) is None
    assert store.get(take(store).job_id).owner == "ben"
