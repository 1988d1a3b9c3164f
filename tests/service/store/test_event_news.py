"""News of events: followers are woken by what other processes write, and nothing runs without followers."""

import contextlib
import threading
import time
from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy import Engine, text

from service.contracts.request import JobRequest
from service.store.database import make_engine, writer
from service.store.hosts import event_news
from service.store.hosts.event_news import EventNews
from service.store.jobs import JobStore

REQUEST = JobRequest(model="sample")
NEVER = 3600.0
WAIT = 60.0


@pytest.fixture
def other(engine: Engine, url: str):
    """The store of another process, as far as the news can tell."""
    made = make_engine(url)
    assert made.url == engine.url
    yield JobStore(made)
    made.dispose()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def without_notifications(engine: Engine):
    def turn(what: str) -> None:
        with writer(engine).begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"ALTER TABLE events {what} TRIGGER notify_of_event"))

    turn("DISABLE")
    yield
    turn("ENABLE")


def test_what_another_process_writes_wakes_the_followers_of_that_job_alone(
    engine: Engine, other: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_news, "FALLBACK_SECONDS", NEVER)  # so PostgreSQL must have notified
    monkeypatch.setattr(event_news, "POLL_SECONDS", 0.02)
    followed, still = other.submit(REQUEST), other.submit(REQUEST)
    news = EventNews(engine)
    woken = [threading.Event() for _ in range(3)]
    with (
        news.follow(followed.id, woken[0].set, 1),
        news.follow(followed.id, woken[1].set, 1),
        news.follow(still.id, woken[2].set, 1),
    ):
        other.cancel(followed.id)
        assert woken[0].wait(WAIT)
        assert woken[1].wait(WAIT)
        assert not woken[2].is_set()


def test_a_commit_of_this_process_wakes_at_once_on_a_file(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_news, "FALLBACK_SECONDS", NEVER)
    monkeypatch.setattr(event_news, "POLL_SECONDS", NEVER)
    store = JobStore(engine)
    job = store.submit(REQUEST)
    news = EventNews(engine)
    looked = threading.Event()
    monkeypatch.setattr(news, "_wake_behind", lambda look=news._wake_behind: (look(), looked.set()))
    woken = threading.Event()
    with news.follow(job.id, woken.set, 1):
        assert looked.wait(WAIT)
        store.cancel(job.id)
        assert woken.wait(WAIT)


def test_events_from_before_it_was_followed_and_missed_notifications_are_noticed(
    engine: Engine, other: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_news, "FALLBACK_SECONDS", 0.02)
    job = other.submit(REQUEST)
    news, woken = EventNews(engine), threading.Event()
    with without_notifications(engine), news.follow(job.id, woken.set, 0) as follower:
        assert woken.wait(WAIT)
        follower.seen = 1
        woken.clear()
        other.cancel(job.id)
        assert woken.wait(WAIT)


def test_a_connection_that_is_lost_is_made_again(
    engine: Engine, other: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_news, "FALLBACK_SECONDS", 0.05)
    connections: list[psycopg.Connection] = []
    real_connect = psycopg.connect

    def connect(*arguments, autocommit=False, **options):
        connection = real_connect(*arguments, autocommit=autocommit, **options)
        if autocommit:
            connections.append(connection)
        return connection

    monkeypatch.setattr(psycopg, "connect", connect)
    job = other.submit(REQUEST)
    news, woken = EventNews(engine), threading.Event()
    with news.follow(job.id, woken.set, 1), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            until(lambda: connections != [])
            connection.execute(text(f"SELECT pg_terminate_backend({connections[0].info.backend_pid})"))
            until(lambda: len(connections) > 1)
        other.cancel(job.id)
        assert woken.wait(WAIT)


def test_nothing_runs_without_followers(engine: Engine, other: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_news, "FALLBACK_SECONDS", 0.02)
    job = other.submit(REQUEST)
    news = EventNews(engine)
    for _ in range(2):
        with news.follow(job.id, lambda: None, 1):
            assert news._thread is not None
        until(lambda: news._thread is None)


def test_an_unforeseen_error_is_logged_and_the_database_asked_instead(
    engine: Engine, other: JobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(event_news, "FALLBACK_SECONDS", 0.02)
    news, woken, tried = EventNews(engine), threading.Event(), []

    def fail() -> None:
        tried.append(None)
        raise KeyError("payload")

    monkeypatch.setattr(news, "_listen", fail)
    monkeypatch.setattr(news, "_poll_often", fail)
    job = other.submit(REQUEST)
    with news.follow(job.id, woken.set, 1):
        other.cancel(job.id)
        assert woken.wait(WAIT)
        until(lambda: len(tried) > 2)
    until(lambda: news._thread is None)
    (said,) = (record for record in caplog.records if record.name == event_news.__name__)
    assert said.exc_info is not None


def test_a_thread_that_died_is_replaced(engine: Engine, other: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_news, "FALLBACK_SECONDS", 0.02)
    news, woken = EventNews(engine), threading.Event()
    news._thread = threading.Thread(target=lambda: None)  # which is not alive
    job = other.submit(REQUEST)
    with news.follow(job.id, woken.set, 0):
        assert woken.wait(WAIT)
    until(lambda: news._thread is None)
