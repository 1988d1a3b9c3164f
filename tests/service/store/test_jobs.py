"""The people's side of the store: submitting, looking, canceling, retrying."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC

import pytest

from service.contracts.files import StoredFile
from service.contracts.progress import Failed, Progress
from service.contracts.request import JobRequest
from service.errors import IdempotencyKeyReused, InvalidRequest, NotFound, TransitionNotAllowed
from service.store.jobs import Artifact, Claim, Event, Job, JobStore
from service.store.statuses import TRANSITIONS, Status
from service.store.transactions import locked, move

REQUEST = JobRequest(model="sample")
FAILED = Failed(code="bad-model", message="no config.json", bad_input=True)
UNKNOWN = "0" * 32


def claim(store: JobStore, job: Job) -> Claim:
    claimed = store.claim(job.id, job.dispatch, "worker", 60)
    assert claimed is not None
    return claimed


def in_status(store: JobStore, status: Status) -> Job:
    """A job brought to `status` the way users and workers bring it there."""
    job = store.submit(REQUEST)
    ends: dict[Status, Callable[[], object]] = {
        Status.queued: lambda: None,
        Status.running: lambda: claim(store, job),
        Status.succeeded: lambda: store.succeed(claim(store, job), []),
        Status.failed: lambda: store.fail(claim(store, job), FAILED),
        Status.cancelled: lambda: store.cancel(job.id),
    }
    ends[status]()
    return store.get(job.id)


def test_a_submitted_job_is_a_row_an_event_and_a_dispatch(store: JobStore, clock) -> None:
    request = JobRequest(
        model="/models/a", seed=7, schemes=(), calibration=StoredFile(name="c.txt", sha256="a" * 64, size=3)
    )
    job = store.submit(request)
    assert store.get(job.id) == job
    assert job == Job(
        id=job.id,
        owner="",
        status=Status.queued,
        request=request,
        created_at=clock.now,
        started_at=None,
        finished_at=None,
        attempts=0,
        dispatch=1,
        size="small",
        fence=0,
        worker=None,
        lease_expires_at=None,
        cancel_requested=False,
        error=None,
        progress=None,
        queue_position=0,
        report_expired_at=None,
    )
    assert store.events(job.id) == [Event(job.id, 1, clock.now, "queued", {})]
    assert [(owed.job_id, owed.number) for owed in store.unsent_dispatches()] == [(job.id, 1)]


def test_a_job_whose_sender_died_before_it_sent_is_missed_later(store: JobStore, clock) -> None:
    job = store.submit(REQUEST, sent=True)
    assert (store.unsent_dispatches(), store.expected_messages()) == ([], {"small": 1})
    clock.move(11)
    assert [owed.job_id for owed in store.unanswered_dispatches(10)] == [job.id]
    store.mark_unsent(job.id, 1)
    assert [owed.job_id for owed in store.unsent_dispatches()] == [job.id]


def test_times_come_back_in_utc(store: JobStore) -> None:
    job = store.get(in_status(store, Status.running).id)
    assert {time.tzinfo for time in (job.created_at, job.started_at, job.lease_expires_at)} == {UTC}


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("to", Status)
def test_only_the_transitions_of_the_table_happen(store: JobStore, clock, status: Status, to: Status) -> None:
    job = in_status(store, status)
    before = store.events(job.id)

    def change() -> None:
        with store._write() as session:
            move(session, locked(session, job.id), to, "changed", clock.now)

    if to in TRANSITIONS[status]:
        change()
        assert store.get(job.id).status is to
        assert [event.kind for event in store.events(job.id)] == [*(event.kind for event in before), "changed"]
    else:
        with pytest.raises(TransitionNotAllowed, match=f"is {status} and cannot become {to}"):
            change()
        assert store.get(job.id) == job
        assert store.events(job.id) == before


def test_every_status_has_a_row_in_the_table() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert {status for status in Status if not TRANSITIONS[status]} == {Status.succeeded}


def test_the_same_key_gives_the_first_job(store: JobStore) -> None:
    first = store.submit(REQUEST, idempotency_key="key")
    assert store.submit(REQUEST, idempotency_key="key") == first
    assert store.submit(REQUEST, idempotency_key="other").id != first.id
    assert store.submit(REQUEST).id != first.id
    assert store.counts()[Status.queued] == 3


def test_the_same_key_with_another_request_is_refused(store: JobStore) -> None:
    store.submit(REQUEST, idempotency_key="key")
    with pytest.raises(IdempotencyKeyReused, match="'key'"):
        store.submit(JobRequest(model="sample", seed=1), idempotency_key="key")
    assert store.counts()[Status.queued] == 1


def test_the_same_key_from_many_threads_makes_one_job(store: JobStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: store.submit(REQUEST, idempotency_key="key"), range(24)))
    assert len({job.id for job in jobs}) == 1
    assert store.counts()[Status.queued] == 1
    assert len(store.unsent_dispatches()) == 1


def test_unknown_jobs_are_not_found(store: JobStore) -> None:
    for look in (store.get, store.events, store.artifacts, store.cancel, store.retry):
        with pytest.raises(NotFound, match=UNKNOWN):
            look(UNKNOWN)
    with pytest.raises(NotFound, match=f"job: '{UNKNOWN}' is not the id of a job"):
        store.artifact(UNKNOWN, "report.json")


def test_a_list_comes_in_pages_newest_first(store: JobStore, clock) -> None:
    made = []
    for _ in range(7):
        made.append(store.submit(REQUEST).id)
        clock.move(1)
    seen: list[list[str]] = []
    token = None
    while not seen or token:
        page = store.list(page_size=3, page_token=token)
        seen.append([job.id for job in page.jobs])
        token = page.next_page_token
    newest_first = made[::-1]
    assert seen == [newest_first[:3], newest_first[3:6], newest_first[6:]]


def test_a_last_page_that_is_full_has_no_next(store: JobStore) -> None:
    store.submit(REQUEST)
    assert store.list(page_size=1).next_page_token is None


def test_a_list_can_be_filtered(store: JobStore) -> None:
    by_status = {status: in_status(store, status).id for status in Status}
    other = store.submit(JobRequest(model="/models/b")).id
    assert {job.id for job in store.list(status=Status.queued).jobs} == {by_status[Status.queued], other}
    assert [job.id for job in store.list(status=Status.failed).jobs] == [by_status[Status.failed]]
    assert [job.id for job in store.list(model="/models/b").jobs] == [other]
    assert [job.id for job in store.list(with_report=True).jobs] == [by_status[Status.succeeded]]
    assert store.list(model="/models/b", with_report=True).jobs == []


@pytest.mark.parametrize("size", [0, -1, 1001])
def test_page_sizes_have_limits(store: JobStore, size: int) -> None:
    with pytest.raises(InvalidRequest, match=f"page_size: {size} .*1 to 1000"):
        store.list(page_size=size)


@pytest.mark.parametrize("token", ["", "x", "'" * 32, UNKNOWN + "0"])
def test_page_tokens_are_checked(store: JobStore, token: str) -> None:
    with pytest.raises(InvalidRequest, match="page_token"):
        store.list(page_token=token)


def test_positions_follow_the_time_of_queueing(store: JobStore, clock) -> None:
    jobs = []
    for _ in range(4):
        jobs.append(store.submit(REQUEST))
        clock.move(1)
    held = claim(store, jobs[0])
    store.cancel(jobs[2].id)
    clock.move(1)
    store.release(held)
    positions = [store.get(job.id).queue_position for job in jobs]
    assert positions == [2, 0, None, 1]
    assert [job.queue_position for job in store.list().jobs] == [None] * 4


def test_positions_are_counted_up_to_a_limit(store: JobStore, clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.store.jobs.MOST_AHEAD", 2)
    ids = []
    for _ in range(4):
        ids.append(store.submit(REQUEST).id)
        clock.move(1)
    assert [store.get(job_id).queue_position for job_id in ids] == [0, 1, 2, 2]


def test_canceling_a_queued_job_ends_it_and_voids_its_message(store: JobStore, clock) -> None:
    job = store.submit(REQUEST)
    cancelled = store.cancel(job.id)
    assert (cancelled.status, cancelled.finished_at, cancelled.queue_position) == (Status.cancelled, clock.now, None)
    assert store.claim(job.id, job.dispatch, "worker", 60) is None
    assert store.unsent_dispatches() == []
    assert [event.kind for event in store.events(job.id)] == ["queued", "cancelled"]


def test_canceling_a_running_job_asks_its_worker_once(store: JobStore) -> None:
    job = store.submit(REQUEST)
    held = claim(store, job)
    assert store.renew(held, 60) is False
    for _ in range(2):
        assert (store.cancel(job.id).status, store.get(job.id).cancel_requested) == (Status.running, True)
    assert store.renew(held, 60) is True
    store.cancelled(held)
    assert [event.kind for event in store.events(job.id)] == ["queued", "started", "cancel_requested", "cancelled"]


@pytest.mark.parametrize("status", [Status.succeeded, Status.failed, Status.cancelled])
def test_what_has_ended_cannot_be_cancelled(store: JobStore, status: Status) -> None:
    job = in_status(store, status)
    with pytest.raises(TransitionNotAllowed, match=status):
        store.cancel(job.id)
    assert store.get(job.id) == job


@pytest.mark.parametrize("status", [Status.failed, Status.cancelled])
def test_a_retried_job_starts_anew(store: JobStore, clock, status: Status) -> None:
    job = in_status(store, status)
    clock.move(5)
    again = store.retry(job.id)
    assert (again.status, again.dispatch, again.error, again.finished_at) == (Status.queued, 2, None, None)
    assert again.attempts == job.attempts
    assert again.created_at == job.created_at
    assert store.claim(job.id, 1, "worker", 60) is None
    held = claim(store, again)
    assert (held.attempt, held.fence) == (job.attempts + 1, job.fence + 1)
    assert store.renew(held, 60) is False
    store.succeed(held, [])
    assert store.get(job.id).status is Status.succeeded


@pytest.mark.parametrize("status", [Status.queued, Status.running, Status.succeeded])
def test_only_failed_and_cancelled_jobs_can_be_retried(store: JobStore, status: Status) -> None:
    job = in_status(store, status)
    with pytest.raises(TransitionNotAllowed, match=status):
        store.retry(job.id)
    assert store.get(job.id) == job


def test_events_can_be_read_from_any_point(store: JobStore) -> None:
    job = store.submit(REQUEST)
    held = claim(store, job)
    for done in range(5):
        store.progress(held, Progress(stage="sweep", done=done, total=5, elapsed_seconds=done))
    assert [event.sequence for event in store.events(job.id)] == list(range(1, 8))
    assert [event.sequence for event in store.events(job.id, after=3)] == [4, 5, 6, 7]
    assert [event.sequence for event in store.events(job.id, after=3, limit=2)] == [4, 5]
    assert store.events(job.id, after=7) == []
    assert store.events(job.id)[2].data == {"stage": "sweep", "done": 0, "total": 5, "elapsed_seconds": 0.0}


def test_artifacts_come_by_name(store: JobStore) -> None:
    job = store.submit(REQUEST)
    files = [
        Artifact(job.id, "tables/sites.parquet", "b" * 64, 2**40, "application/vnd.apache.parquet"),
        Artifact(job.id, "report.json", "a" * 64, 1, "application/json"),
    ]
    store.succeed(claim(store, job), files)
    assert store.artifacts(job.id) == files[::-1]
    assert store.artifact(job.id, "tables/sites.parquet") == files[0]
    with pytest.raises(NotFound, match="nothing"):
        store.artifact(job.id, "nothing")


def test_counts_name_every_status(store: JobStore) -> None:
    assert store.counts() == dict.fromkeys(Status, 0)
    for status in (Status.failed, Status.failed, Status.queued):
        in_status(store, status)
    assert store.counts() == {**dict.fromkeys(Status, 0), Status.failed: 2, Status.queued: 1}
