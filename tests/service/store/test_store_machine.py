"""The job store against a model of it: any order of calls by clients, workers and schedulers, on both databases."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test
from sqlalchemy import Engine, delete

from service.contracts.progress import Failed, Progress
from service.contracts.request import JobRequest
from service.errors import IdempotencyKeyReused, LeaseLost, TransitionNotAllowed
from service.store.database import writer
from service.store.job_records import Artifact, Claim
from service.store.jobs import JobStore
from service.store.tables import JobRow

LEASE = 60.0
MOST_LOSSES = 3
REQUESTS = [JobRequest(model="sample"), JobRequest(model="sample", seed=1)]
FAILED = Failed(code="internal", message="it broke", bad_input=False)


@dataclass
class Expected:
    """What the model knows of a job."""

    id: str
    status: str = "queued"
    dispatch: int = 1
    fence: int = 0
    attempts: int = 0
    losses: int = 0
    cancel_requested: bool = False
    lease_ends: float = 0.0
    kinds: list[str] = field(default_factory=lambda: ["queued"])

    def holds(self, claim: Claim) -> bool:
        return self.status == "running" and self.fence == claim.fence

    def end(self, status: str) -> None:
        self.status = status
        self.kinds.append(status)

    def requeue(self) -> None:
        if self.cancel_requested:
            self.end("cancelled")
            return
        self.status = "queued"
        self.dispatch += 1
        self.kinds.append("requeued")


class StoreMachine(RuleBasedStateMachine):
    """Calls of the store, each also made on the model."""

    jobs: Bundle[str] = Bundle("jobs")
    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self, engine: Engine, clock: Any) -> None:
        super().__init__()
        self.engine = engine
        self.clock = clock
        self.store = JobStore(engine, clock)
        self.began = clock.now
        self.model: dict[str, Expected] = {}
        self.keys: dict[str, tuple[str, int]] = {}

    @property
    def seconds(self) -> float:
        return (self.clock.now - self.began).total_seconds()

    @rule(target=jobs, key=st.none() | st.sampled_from("ab"), number=st.sampled_from([0, 1]))
    def submit(self, key: str | None, number: int) -> Any:
        self.clock.move(1)
        if key in self.keys and self.keys[key][1] != number:
            with pytest.raises(IdempotencyKeyReused):
                self.store.submit(REQUESTS[number], idempotency_key=key)
            return multiple()
        job = self.store.submit(REQUESTS[number], idempotency_key=key)
        if key in self.keys:
            assert job.id == self.keys[key][0]
            return multiple()
        self.model[job.id] = Expected(job.id)
        if key is not None:
            self.keys[key] = (job.id, number)
        return job.id

    @rule(target=claims, job_id=jobs, late=st.integers(0, 1))
    def claim(self, job_id: str, late: int) -> Any:
        expected = self.model[job_id]
        claim = self.store.claim(job_id, expected.dispatch - late, "host:1", LEASE)
        if late or expected.status != "queued":
            assert claim is None
            return multiple()
        assert claim is not None
        expected.fence, expected.attempts = expected.fence + 1, expected.attempts + 1
        assert (claim.fence, claim.attempt) == (expected.fence, expected.attempts)
        expected.status, expected.lease_ends = "running", self.seconds + LEASE
        expected.kinds.append("started")
        return claim

    @rule(claim=claims)
    def renew(self, claim: Claim) -> None:
        expected = self.model[claim.job_id]
        if self._refused(claim, lambda: self.store.renew(claim, LEASE)):
            return
        assert self.store.renew(claim, LEASE) is expected.cancel_requested
        expected.lease_ends = self.seconds + LEASE

    @rule(claim=claims)
    def progress(self, claim: Claim) -> None:
        line = Progress(stage="sweep", done=1, total=2, elapsed_seconds=0)
        if not self._refused(claim, lambda: self.store.progress(claim, line)):
            self.store.progress(claim, line)
            self.model[claim.job_id].kinds.append("progress")

    @rule(claim=claims)
    def succeed(self, claim: Claim) -> None:
        rows = [Artifact(claim.job_id, "report.json", "a" * 64, 1, "application/json")]
        if not self._refused(claim, lambda: self.store.succeed(claim, rows)):
            self.store.succeed(claim, rows)
            self.model[claim.job_id].end("succeeded")

    @rule(claim=claims)
    def fail(self, claim: Claim) -> None:
        if not self._refused(claim, lambda: self.store.fail(claim, FAILED)):
            self.store.fail(claim, FAILED)
            self.model[claim.job_id].end("failed")

    @rule(claim=claims)
    def release(self, claim: Claim) -> None:
        self.clock.move(1)
        if not self._refused(claim, lambda: self.store.release(claim)):
            self.store.release(claim)
            self.model[claim.job_id].requeue()

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        expected = self.model[job_id]
        if expected.status not in ("queued", "running"):
            with pytest.raises(TransitionNotAllowed):
                self.store.cancel(job_id)
            return
        self.store.cancel(job_id)
        if expected.status == "queued":
            expected.end("cancelled")
        elif not expected.cancel_requested:
            expected.cancel_requested = True
            expected.kinds.append("cancel_requested")

    @rule(job_id=jobs)
    def retry(self, job_id: str) -> None:
        self.clock.move(1)
        expected = self.model[job_id]
        if expected.status not in ("failed", "cancelled"):
            with pytest.raises(TransitionNotAllowed):
                self.store.retry(job_id)
            return
        self.store.retry(job_id)
        expected.cancel_requested, expected.losses = False, 0
        expected.requeue()

    @rule(seconds=st.sampled_from([1.0, LEASE / 2, LEASE + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.move(seconds)

    @rule()
    def requeue_expired(self) -> None:
        taken = set(self.store.requeue_expired(MOST_LOSSES))
        for expected in self.model.values():
            expired = expected.status == "running" and expected.lease_ends < self.seconds
            assert (expected.id in taken) == expired
            if expired:
                expected.losses += 1
                if expected.losses < MOST_LOSSES or expected.cancel_requested:
                    expected.requeue()
                else:
                    expected.end("failed")

    @invariant()
    def the_store_is_as_the_model_says(self) -> None:
        for expected in self.model.values():
            job = self.store.get(expected.id)
            assert (job.status, job.dispatch, job.fence, job.attempts, job.cancel_requested) == (
                expected.status,
                expected.dispatch,
                expected.fence,
                expected.attempts,
                expected.cancel_requested,
            )
            events = self.store.events(expected.id)
            assert [event.kind for event in events] == expected.kinds
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert bool(self.store.artifacts(expected.id)) == (expected.status == "succeeded")
        waiting = {job_id for job_id, expected in self.model.items() if expected.status == "queued"}
        assert sorted(self.store.get(job_id).queue_position for job_id in waiting) == list(range(len(waiting)))
        owed = {(one.job_id, one.number) for one in self.store.unsent_dispatches()}
        assert owed == {(job_id, self.model[job_id].dispatch) for job_id in waiting}

    def teardown(self) -> None:
        with writer(self.engine).begin() as connection:
            connection.execute(delete(JobRow))

    def _refused(self, claim: Claim, write: Any) -> bool:
        """Whether a claim is void; then its write must be refused."""
        if self.model[claim.job_id].holds(claim):
            return False
        with pytest.raises(LeaseLost):
            write()
        return True


def test_any_order_of_calls_leaves_what_the_model_says(engine: Engine, clock) -> None:
    chosen = settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(lambda: StoreMachine(engine, clock), settings=chosen)
