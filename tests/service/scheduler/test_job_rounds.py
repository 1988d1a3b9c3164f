"""The scheduler: one round at a time on a list for a broker, and the real loop on a real one."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import update

from service import queue
from service.contracts.request import JobRequest, SizeClass
from service.errors import ServiceUnreachable
from service.local import broker
from service.processes import spawn, terminate
from service.scheduler.repeating import Repeating
from service.scheduler.rounds import Round, rounds, run_round
from service.settings import Settings
from service.store.database import make_engine, upgrade
from service.store.jobs import JobStore
from service.store.statuses import Status
from service.store.tables import JobRow

REQUEST = JobRequest(model="sample")
ANSWER = 10.0


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class ListBroker:
    """A queue in memory that can be switched off."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, int]] = []
        self.sizes: dict[str, SizeClass] = {}
        self.down = False

    def send(self, job_id: str, number: int, size: SizeClass) -> None:
        if self.down:
            raise ServiceUnreachable("down")
        self.messages.append((job_id, number))
        self.sizes[job_id] = size

    def waiting(self) -> dict[SizeClass, int]:
        if self.down:
            raise ServiceUnreachable("down")
        return dict(Counter(self.sizes[job_id] for job_id, _ in self.messages))


@pytest.fixture
def clock() -> Clock:
    """The clock of `store`."""
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[JobStore]:
    """An empty job store."""
    engine = make_engine(f"sqlite:///{tmp_path / 'headroom.db'}")
    upgrade(engine)
    yield JobStore(engine, clock)
    engine.dispose()


@pytest.fixture
def line() -> ListBroker:
    """An empty broker."""
    return ListBroker()


@pytest.fixture
def step(store: JobStore, line: ListBroker) -> Callable[[], Round]:
    """One round on `store` and `line`."""
    return partial(run_round, store, line.send, line.waiting, max_attempts=2, answer_seconds=ANSWER)


def test_what_was_not_sent_is_sent_once(store: JobStore, line: ListBroker, step: Callable[[], Round]) -> None:
    jobs = [store.submit(REQUEST).id for _ in range(3)]
    assert step() == Round(requeued=0, sent=3, resent=0)
    assert step() == Round(requeued=0, sent=0, resent=0)
    assert sorted(line.messages) == sorted((job, 1) for job in jobs)


def test_while_the_broker_is_down_nothing_is_marked(
    store: JobStore, line: ListBroker, step: Callable[[], Round]
) -> None:
    store.submit(REQUEST)
    line.down = True
    with pytest.raises(ServiceUnreachable):
        step()
    line.down = False
    assert step() == Round(requeued=0, sent=1, resent=0)


def test_an_emptied_broker_is_filled_again(
    store: JobStore, line: ListBroker, clock: Clock, step: Callable[[], Round]
) -> None:
    jobs = [store.submit(REQUEST).id for _ in range(3)]
    step()
    line.messages.clear()
    clock.move(ANSWER - 1)
    assert step().resent == 0
    clock.move(2)
    assert step().resent == 3
    assert sorted(line.messages) == sorted((job, 1) for job in jobs)
    clock.move(ANSWER + 1)
    assert step().resent == 0


def test_one_lost_message_is_noticed_behind_newer_ones(
    store: JobStore, line: ListBroker, clock: Clock, step: Callable[[], Round]
) -> None:
    lost = store.submit(REQUEST).id
    step()
    line.messages.clear()
    clock.move(ANSWER + 1)
    for _ in range(5):
        store.submit(REQUEST)
    assert step() == Round(requeued=0, sent=5, resent=1)
    assert line.messages[-1] == (lost, 1)


def test_a_lost_message_is_noticed_beside_surplus_ones_of_the_other_class(
    store: JobStore, line: ListBroker, clock: Clock, step: Callable[[], Round]
) -> None:
    large, cancelled = store.submit(REQUEST).id, [store.submit(REQUEST).id for _ in range(3)]
    with store._write() as session:
        session.execute(update(JobRow).where(JobRow.id == large).values(size="large"))
    step()
    for job in cancelled:
        store.cancel(job)
    line.messages.remove((large, 1))
    small = store.submit(REQUEST).id
    clock.move(ANSWER + 1)
    assert step() == Round(requeued=0, sent=1, resent=1)
    assert line.messages[-2:] == [(small, 1), (large, 1)]


def test_waiting_jobs_with_their_messages_are_left_alone(
    store: JobStore, line: ListBroker, clock: Clock, step: Callable[[], Round]
) -> None:
    store.submit(REQUEST)
    step()
    clock.move(1000)
    assert step() == Round(requeued=0, sent=0, resent=0)
    assert len(line.messages) == 1


def test_a_broker_that_is_down_is_not_asked_for_nothing(line: ListBroker, step: Callable[[], Round]) -> None:
    line.down = True
    assert step() == Round(requeued=0, sent=0, resent=0)


def test_the_job_of_a_lost_worker_is_offered_again(
    store: JobStore, line: ListBroker, clock: Clock, step: Callable[[], Round]
) -> None:
    job = store.submit(REQUEST).id
    step()
    store.claim(job, 1, "worker", 60)
    line.messages.clear()
    clock.move(61)
    assert step() == Round(requeued=1, sent=1, resent=0)
    assert line.messages == [(job, 2)]
    store.claim(job, 2, "worker", 60)
    clock.move(61)
    assert step() == Round(requeued=1, sent=0, resent=0)
    error = store.get(job).error
    assert error is not None
    assert error.code == "worker-lost"


def test_two_schedulers_do_no_harm(store: JobStore, line: ListBroker, step: Callable[[], Round]) -> None:
    job = store.submit(REQUEST).id

    def send_while_another_does(job_id: str, number: int, size: SizeClass) -> None:
        step()
        line.send(job_id, number, size)

    run_round(store, send_while_another_does, line.waiting, max_attempts=2)
    assert line.messages == [(job, 1)] * 2
    claims = [store.claim(*message, "worker", 60) for message in line.messages]
    assert [claim is not None for claim in claims] == [True, False]


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings with a broker of this test's own."""
    directory = tmp_path_factory.mktemp("b")
    process, socket, url = broker.start(directory, subprocess.DEVNULL)  # type: ignore[arg-type]
    while not socket.exists():
        assert process.poll() is None
        time.sleep(0.02)
    yield Settings(home=directory / "home", broker_url=SecretStr(url), scheduler_seconds=0.05)
    terminate(process, 5)


def _broker_client(settings: Settings) -> redis.Redis:
    assert settings.broker_url is not None
    return redis.Redis.from_url(settings.broker_url.get_secret_value().replace("redis+socket", "unix"))


def test_an_emptied_redis_loses_and_repeats_nothing(settings: Settings, store: JobStore, clock: Clock) -> None:
    scheduler = rounds(settings, store)
    jobs = [store.submit(REQUEST).id for _ in range(4)]
    assert scheduler() == Round(requeued=0, sent=4, resent=0)
    with _broker_client(settings) as client:
        assert client.llen(queue.QUEUE) == 4
        client.flushall()  # the server is this test's own
        store.claim(jobs[0], 1, "worker", 3600)
        clock.move(60)
        assert scheduler() == Round(requeued=0, sent=0, resent=3)
        assert client.llen(queue.QUEUE) == 3
    assert [store.claim(job, 1, "worker", 60) is not None for job in jobs] == [False, True, True, True]


def test_a_broker_that_is_down_is_logged_once_and_tried_again(
    settings: Settings, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    job = store.submit(REQUEST)
    nobody = settings.model_copy(update={"broker_url": SecretStr(f"redis+socket://{settings.home}/none.sock")})
    brokers = [nobody, nobody, nobody, settings]
    scheduler = Repeating("rounds of jobs", lambda: rounds(brokers.pop(0), store)())
    with caplog.at_level(logging.INFO, logger="service.scheduler"):
        assert [scheduler.step() for _ in range(3)] == [None] * 3
        assert len(caplog.records) == 1
        assert scheduler.step() == Round(requeued=0, sent=1, resent=0)
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert store.get(job.id).status is Status.queued


def _wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_sends_until_it_is_told_to_stop(settings: Settings, number: signal.Signals) -> None:
    assert settings.broker_url is not None
    environment = {
        **os.environ,
        "HEADROOM_HOME": str(settings.home),
        "HEADROOM_BROKER_URL": settings.broker_url.get_secret_value(),
        "HEADROOM_SCHEDULER_SECONDS": "0.05",
    }
    program = spawn([sys.executable, "-m", "service.scheduler"], env=environment, stderr=subprocess.PIPE)
    try:
        engine = make_engine(settings.database)
        upgrade(engine)
        store = JobStore(engine)
        for _ in range(2):
            job = store.submit(REQUEST)
            _wait_for(lambda: not store.unsent_dispatches())
        with _broker_client(settings) as client:
            assert client.llen(queue.QUEUE) == 2
        assert store.get(job.id).status is Status.queued
        engine.dispose()
        program.send_signal(number)
        _, said = program.communicate(timeout=30)
        assert program.returncode == 0
        assert b"Traceback" not in said
    finally:
        terminate(program, 1)


def test_the_program_names_a_setting_that_is_missing(tmp_path: Path) -> None:
    environment = {**os.environ, "HEADROOM_HOME": str(tmp_path), "HEADROOM_BROKER_URL": "amqp://host"}
    program = [sys.executable, "-m", "service.scheduler"]
    answer = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert answer.returncode == 2
    assert "HEADROOM_BROKER_URL: 'amqp://host/' is not allowed" in answer.stderr
    assert "Traceback" not in answer.stderr
