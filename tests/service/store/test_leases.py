"""The worker's side and the scheduler's side of the store: claims, fences, leases, dispatches."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.contracts.progress import Failed, Progress
from service.contracts.request import JobRequest
from service.contracts.warnings import Warning
from service.errors import LeaseLost
from service.store.jobs import Artifact, Claim, Dispatch, JobStore
from service.store.statuses import Status
from service.store.tables import JobRow

REQUEST = JobRequest(model="sample")
LEASE = 60.0
FAILED = Failed(code="internal", message="it broke", bad_input=False)
PROGRESS = Progress(stage="load", done=0, total=1, elapsed_seconds=0)

WRITES: dict[str, Callable[[JobStore, Claim], object]] = {
    "renew": lambda store, claim: store.renew(claim, LEASE),
    "progress": lambda store, claim: store.progress(claim, PROGRESS),
    "succeed": lambda store, claim: store.succeed(claim, [Artifact(claim.job_id, "report.json", "a" * 64, 1, "x")]),
    "fail": lambda store, claim: store.fail(claim, FAILED),
    "cancelled": lambda store, claim: store.cancelled(claim),
    "release": lambda store, claim: store.release(claim),
}


@pytest.fixture
def claim(store: JobStore) -> Claim:
    """A claim on the only job."""
    return claimed(store, store.submit(REQUEST).id, 1)


def claimed(store: JobStore, job_id: str, dispatch: int) -> Claim:
    claim = store.claim(job_id, dispatch, "host:1", LEASE)
    assert claim is not None
    return claim


def test_a_claim_starts_the_job(store: JobStore, clock, claim: Claim) -> None:
    job = store.get(claim.job_id)
    assert (claim.fence, claim.attempt, claim.request) == (1, 1, REQUEST)
    assert (job.status, job.worker, job.started_at) == (Status.running, "host:1", clock.now)
    assert job.lease_expires_at == clock.now + timedelta(seconds=LEASE)
    assert store.events(job.id)[-1].data == {"attempt": 1, "worker": "host:1"}


def test_double_stale_and_unknown_messages_find_nothing_to_do(store: JobStore, claim: Claim) -> None:
    assert store.claim(claim.job_id, 1, "host:2", LEASE) is None
    store.release(claim)
    assert store.claim(claim.job_id, 1, "host:2", LEASE) is None
    assert store.claim(claim.job_id, 3, "host:2", LEASE) is None
    assert store.claim("0" * 32, 1, "host:2", LEASE) is None
    assert store.get(claim.job_id).attempts == 1
    assert store.claim(claim.job_id, 2, "host:2", LEASE) is not None


def test_a_job_that_cannot_be_read_fails_and_the_next_one_has_its_turn(store: JobStore, engine: Engine, clock) -> None:
    unreadable = store.submit(REQUEST).id
    clock.move(1)
    readable = store.submit(REQUEST).id
    with Session(engine) as session, session.begin():
        row = session.get_one(JobRow, unreadable)
        row.request = {**row.request, "of_a_later_version": 1}
    claim = store.next_claim("host:1", LEASE, ("small",))
    assert claim is not None
    assert claim.job_id == readable
    assert store.status(unreadable) is Status.failed
    last = store.events(unreadable)[-1]
    assert (last.kind, last.data["code"]) == ("failed", "bad-request")
    assert "of_a_later_version" in last.data["message"]


def test_renewing_moves_the_end_of_the_lease(store: JobStore, clock, claim: Claim) -> None:
    clock.move(50)
    store.renew(claim, LEASE)
    clock.move(50)
    assert store.requeue_expired(3) == []
    clock.move(11)
    assert store.requeue_expired(3) == [claim.job_id]


def test_a_lease_that_ran_out_and_was_not_taken_can_be_renewed(store: JobStore, clock, claim: Claim) -> None:
    clock.move(1000)
    assert store.renew(claim, LEASE) is False
    assert store.requeue_expired(3) == []


@pytest.mark.parametrize("write", WRITES)
def test_a_worker_that_lost_its_job_can_write_nothing(store: JobStore, clock, claim: Claim, write: str) -> None:
    clock.move(LEASE + 1)
    store.requeue_expired(3)
    with pytest.raises(LeaseLost):  # nobody has claimed it again yet
        WRITES[write](store, claim)
    second = claimed(store, claim.job_id, 2)
    before = store.get(claim.job_id), store.events(claim.job_id)
    with pytest.raises(LeaseLost):  # and now somebody has
        WRITES[write](store, claim)
    assert (store.get(claim.job_id), store.events(claim.job_id)) == before
    assert store.artifacts(claim.job_id) == []
    store.succeed(second, [])


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("end", ["succeed", "fail", "cancelled", "release"])
def test_nothing_is_written_after_the_end(store: JobStore, claim: Claim, end: str, write: str) -> None:
    WRITES[end](store, claim)
    before = store.get(claim.job_id), store.events(claim.job_id), store.artifacts(claim.job_id)
    with pytest.raises(LeaseLost):
        WRITES[write](store, claim)
    assert (store.get(claim.job_id), store.events(claim.job_id), store.artifacts(claim.job_id)) == before


def test_success_is_whole_or_not_at_all(store: JobStore, claim: Claim) -> None:
    twice = [Artifact(claim.job_id, "report.json", "a" * 64, 1, "application/json")] * 2
    with pytest.raises(IntegrityError):
        store.succeed(claim, twice)
    assert store.artifacts(claim.job_id) == []
    assert store.get(claim.job_id).status is Status.running
    assert store.events(claim.job_id)[-1].kind == "started"


def test_progress_and_warnings_become_events(store: JobStore, claim: Claim) -> None:
    line = Progress(stage="sweep", done=2, total=8, elapsed_seconds=1.5)
    store.progress(claim, line)
    store.progress(claim, Warning(code="nonfinite", message="NaN", where="layer 3"))
    assert store.get(claim.job_id).progress == line
    said = [(event.kind, event.data) for event in store.events(claim.job_id)[2:]]
    assert said == [
        ("progress", {"stage": "sweep", "done": 2, "total": 8, "elapsed_seconds": 1.5}),
        ("warning", {"code": "nonfinite", "message": "NaN", "where": "layer 3", "advice": None}),
    ]


def test_a_failure_is_kept_with_its_reason(store: JobStore, clock, claim: Claim) -> None:
    clock.move(3)
    store.fail(claim, FAILED)
    job = store.get(claim.job_id)
    assert (job.status, job.error, job.finished_at, job.worker) == (Status.failed, FAILED, clock.now, None)
    assert store.events(job.id)[-1].data == {"code": "internal", "message": "it broke", "bad_input": False}


def test_any_text_that_a_failure_may_hold_is_kept(store: JobStore, claim: Claim) -> None:
    failed = FAILED.model_copy(update={"message": "NUL \x00, quote ', \N{SNOWMAN}, \x1b[31m"})
    store.fail(claim, failed)
    assert store.get(claim.job_id).error == failed


def test_a_released_job_is_owed_a_new_message_and_forgets_its_progress(store: JobStore, claim: Claim) -> None:
    store.mark_sent(claim.job_id, 1)
    store.progress(claim, PROGRESS)
    store.release(claim)
    job = store.get(claim.job_id)
    assert (job.status, job.progress, job.lease_expires_at) == (Status.queued, None, None)
    assert store.unsent_dispatches() == [Dispatch(claim.job_id, 2)]
    assert store.events(claim.job_id)[-1].data == {"reason": "worker-stopped"}


@pytest.mark.parametrize("give_back", ["release", "expire"])
def test_a_job_to_be_cancelled_does_not_come_back(store: JobStore, clock, claim: Claim, give_back: str) -> None:
    store.cancel(claim.job_id)
    if give_back == "release":
        store.release(claim)
    else:
        clock.move(LEASE + 1)
        assert store.requeue_expired(1) == [claim.job_id]
    assert store.get(claim.job_id).status is Status.cancelled
    assert store.unsent_dispatches() == []


def test_a_job_whose_worker_is_lost_is_offered_until_attempts_are_used_up(store: JobStore, clock) -> None:
    job = store.submit(REQUEST)
    for attempt in (1, 2, 3):
        assert claimed(store, job.id, attempt).attempt == attempt
        clock.move(LEASE)
        assert store.requeue_expired(3) == []
        clock.move(1)
        assert store.requeue_expired(3) == [job.id]
    ended = store.get(job.id)
    assert ended.status is Status.failed
    assert ended.error is not None
    assert (ended.error.code, ended.error.bad_input) == ("worker-lost", False)
    assert "host:1" in ended.error.message
    kinds = [event.kind for event in store.events(job.id)]
    assert kinds == ["queued", "started", "requeued", "started", "requeued", "started", "failed"]


def test_stopping_workers_and_retries_use_up_no_attempts(store: JobStore, clock) -> None:
    job = store.submit(REQUEST)
    for dispatch in (1, 2, 3, 4):
        store.release(claimed(store, job.id, dispatch))
    claimed(store, job.id, 5)
    clock.move(LEASE + 1)
    store.requeue_expired(1)
    assert store.get(job.id).status is Status.failed
    again = store.retry(job.id)
    claimed(store, job.id, again.dispatch)
    clock.move(LEASE + 1)
    store.requeue_expired(2)
    assert store.get(job.id).status is Status.queued


def test_dispatches_are_owed_until_they_are_sent_or_void(store: JobStore, clock) -> None:
    jobs = []
    for _ in range(4):
        jobs.append(store.submit(REQUEST))
        clock.move(1)
    first, second, third, fourth = (Dispatch(job.id, 1) for job in jobs)
    assert store.unsent_dispatches() == [first, second, third, fourth]
    assert store.unsent_dispatches(limit=2) == [first, second]
    store.mark_sent(*(first.job_id, first.number))
    claimed(store, second.job_id, 1)
    store.cancel(third.job_id)
    assert store.unsent_dispatches() == [fourth]
    store.mark_sent("0" * 32, 1)


def test_sent_dispatches_are_expected_and_after_a_while_unanswered(store: JobStore, clock) -> None:
    early, late = store.submit(REQUEST), store.submit(REQUEST)
    assert store.expected_messages() == {}
    store.mark_sent(early.id, 1)
    clock.move(8)
    store.mark_sent(late.id, 1)
    clock.move(3)
    assert store.expected_messages() == {"small": 2}
    assert store.unanswered_dispatches(10) == [Dispatch(early.id, 1)]
    claimed(store, early.id, 1)
    assert store.expected_messages() == {"small": 1}
    assert store.unanswered_dispatches(10) == []
    clock.move(8)
    assert store.unanswered_dispatches(10) == [Dispatch(late.id, 1)]
    store.mark_sent(late.id, 1)
    assert store.unanswered_dispatches(10) == []


def test_messages_are_sent_again_in_the_order_in_which_they_were_last_sent(store: JobStore, clock) -> None:
    jobs = [store.submit(REQUEST).id for _ in range(5)]
    for job in jobs:
        store.mark_sent(job, 1)
        clock.move(1)
    again = []
    for _ in range(5):
        for dispatch in store.unanswered_dispatches(0.5, limit=2):
            again.append(dispatch.job_id)
            store.mark_sent(dispatch.job_id, 1)
            clock.move(1)
    assert again == [*jobs, *jobs]
