"""Events over HTTP: the list, the stream, and a stream taken up again."""

import json
import threading
from dataclasses import dataclass, replace

import anyio
import anyio.to_thread
import pytest
from sqlalchemy import delete
from sqlalchemy.exc import OperationalError

from service.api import events
from service.contracts.progress import Progress
from service.contracts.warnings import Warning
from service.store.owners.access import EVERYTHING, Access
from service.store.statuses import Status
from service.store.tables import JobRow
from service.store.transactions import Transactions

STREAM = {"Accept": "text/event-stream"}


@dataclass
class Sent:
    """One server-sent event."""

    id: str
    event: str
    data: dict[str, object]


def parse(lines):
    """Yield the events of a stream as the format's specification says; comments and `retry` pass unseen."""
    fields = {}
    for line in lines:
        if line == "":
            if "data" in fields:
                yield Sent(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


@pytest.fixture
def ended_job(world):
    """A job with the events queued, started, progress, warning, succeeded."""
    job = world.submit()
    claim = world.claim(job)
    world.store.progress(claim, Progress(stage="sweep", done=1, total=6, elapsed_seconds=0.5))
    world.store.progress(claim, Warning(code="nonfinite", message="NaN\n\nin the\r weights", where="layer 3"))
    world.store.succeed(claim, [])
    return job


KINDS = ["queued", "started", "progress", "warning", "succeeded"]


def test_the_list_has_every_event_and_says_that_the_job_has_ended(client, ended_job):
    document = client.get(f"/v1/jobs/{ended_job.id}/events").json()
    assert [(event["sequence"], event["kind"]) for event in document["events"]] == list(enumerate(KINDS, 1))
    assert document["ended"] is True
    assert document["events"][2]["data"] == {"stage": "sweep", "done": 1, "total": 6, "elapsed_seconds": 0.5}


def test_the_list_goes_on_after_an_event(client, ended_job):
    document = client.get(f"/v1/jobs/{ended_job.id}/events", params={"after": 3}).json()
    assert [event["sequence"] for event in document["events"]] == [4, 5]
    assert client.get(f"/v1/jobs/{ended_job.id}/events", params={"after": 5}).json() == {"events": [], "ended": True}


def test_a_job_that_has_not_ended_is_not_said_to_have(client, world):
    job = world.submit()
    assert client.get(f"/v1/jobs/{job.id}/events").json()["ended"] is False


def test_a_retried_job_has_not_ended(client, world):
    job = world.submit()
    world.store.cancel(job.id)
    assert client.get(f"/v1/jobs/{job.id}/events").json()["ended"] is True
    world.store.retry(job.id)
    assert client.get(f"/v1/jobs/{job.id}/events").json()["ended"] is False


def test_a_job_that_ends_while_it_is_read_has_ended(ended_job, world, monkeypatch):
    monkeypatch.setattr(world.store, "status", lambda _: Status.running)
    assert events._look(world.store, ended_job.id, 0).ended
    assert not events._look(world.store, ended_job.id, 5).ended


def test_the_stream_has_the_same_events_as_the_list_and_ends(client, ended_job):
    listed = client.get(f"/v1/jobs/{ended_job.id}/events").json()["events"]
    response = client.get(f"/v1/jobs/{ended_job.id}/events", headers=STREAM)
    assert response.headers["content-type"].startswith("text/event-stream")
    sent = list(parse(response.text.split("\n")))
    assert [event.data for event in sent] == listed
    assert [(event.id, event.event) for event in sent] == [(str(n), kind) for n, kind in enumerate(KINDS, 1)]


def test_the_stream_is_taken_up_after_the_last_event_seen(client, ended_job):
    response = client.get(f"/v1/jobs/{ended_job.id}/events", headers={**STREAM, "Last-Event-ID": "3"})
    assert [event.id for event in parse(response.text.split("\n"))] == ["4", "5"]
    response = client.get(f"/v1/jobs/{ended_job.id}/events", headers={**STREAM, "Last-Event-ID": "5"})
    assert list(parse(response.text.split("\n"))) == []


def test_the_stream_waits_for_events_to_come_and_keeps_the_line_open(world, monkeypatch):
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.02)
    job = world.submit()

    async def follow():
        stream = events._stream(world.app.state.backend, job.id, 0)
        sent = [await anext(stream) for _ in range(4)]
        assert all(comment.startswith(b":") for comment in sent[2:])
        monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 600)
        await anyio.to_thread.run_sync(lambda: world.store.succeed(world.claim(job), []))
        return b"".join(sent + [part async for part in stream]).decode()

    lines = anyio.run(follow).split("\n")
    assert [event.event for event in parse(lines)] == ["queued", "started", "succeeded"]


def test_all_streams_are_woken_by_one_thread(world):
    jobs = [world.submit() for _ in range(3)]
    before = threading.enumerate()  # that of an earlier test may be about to end

    async def follow():
        streams = [events._stream(world.app.state.backend.seen_by(EVERYTHING), job.id, 0) for job in jobs]
        for stream in streams:
            for _ in range(2):
                await anext(stream)
        names = [thread.name for thread in threading.enumerate() if thread not in before]
        for stream in streams:
            await stream.aclose()
        return names

    assert anyio.run(follow).count("news of events") == 1


def test_the_stream_of_a_job_that_is_deleted_ends(world):
    job = world.submit()

    async def follow():
        stream = events._stream(world.app.state.backend, job.id, 0)
        sent = [await anext(stream) for _ in range(2)]
        with Transactions(world.store._reader)._write() as session:
            session.execute(delete(JobRow).where(JobRow.id == job.id))
        return sent + [part async for part in stream]

    assert len(anyio.run(follow)) == 2


def test_a_long_history_is_streamed_whole(client, world, monkeypatch):
    monkeypatch.setattr(events, "_BATCH", 3)
    job = world.submit()
    claim = world.claim(job)
    for done in range(7):
        world.store.progress(claim, Progress(stage="sweep", done=done, total=7, elapsed_seconds=done))
    world.store.succeed(claim, [])
    response = client.get(f"/v1/jobs/{job.id}/events", headers=STREAM)
    assert [event.id for event in parse(response.text.split("\n"))] == [str(n) for n in range(1, 11)]


@pytest.mark.parametrize("last", ["-1", "first", "1" * 50, "9999999999", "²", "1.5"])
def test_a_last_event_id_that_is_none_of_ours_is_refused(client, ended_job, problem, last):
    response = client.get(f"/v1/jobs/{ended_job.id}/events", headers={**STREAM, "Last-Event-ID": last.encode()})
    document = problem(response, 422, "invalid-request")
    assert document["errors"][0]["field"] == "Last-Event-ID"


@pytest.mark.parametrize("after", ["-1", "x", "99999999999"])
def test_a_bad_after_is_refused(client, ended_job, problem, after):
    problem(client.get(f"/v1/jobs/{ended_job.id}/events", params={"after": after}), 422, "invalid-request")


def test_the_events_of_an_unknown_job_are_not_found_in_either_form(client, problem):
    problem(client.get("/v1/jobs/none/events"), 404, "not-found")
    problem(client.get("/v1/jobs/none/events", headers=STREAM), 404, "not-found")


@pytest.mark.parametrize("heartbeat", [0.02, 600])
def test_the_stream_ends_when_its_key_is_revoked(world, monkeypatch, heartbeat):
    """At the next heartbeat, or with the next event, which is not sent any more."""
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", heartbeat)
    job = world.submit()
    _, key = world.stores.keys.create("ann", ["read"])
    backend = world.app.state.backend.seen_by(Access("somebody"))  # who sees no keys

    async def follow():
        stream = events._stream(replace(backend, store=world.store), job.id, 0, key)
        sent = [await anext(stream) for _ in range(2)]
        await anyio.to_thread.run_sync(world.stores.keys.revoke, "ann")
        await anyio.to_thread.run_sync(world.store.cancel, job.id)
        return sent + [part async for part in stream if not part.startswith(b":")]

    assert len(anyio.run(follow)) == 2


def test_a_stream_stays_open_while_the_database_cannot_say_whether_its_key_is_valid(world, monkeypatch):
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.02)
    job = world.submit()
    asked = []

    def fail(key):
        asked.append(key)
        raise OperationalError("SELECT", {}, Exception("gone"))

    monkeypatch.setattr(world.stores.keys, "verify", fail)

    async def follow():
        stream = events._stream(world.app.state.backend, job.id, 0, "key")
        sent = [await anext(stream) for _ in range(3)]
        await stream.aclose()
        return sent

    assert anyio.run(follow)[-1].startswith(b":")
    assert set(asked) == {"key"}


def test_a_stream_over_http_has_the_key_that_opened_it(world, client, monkeypatch):
    opened = []
    stream = events._stream

    def noted(backend, job_id, after, key):
        opened.append(key)
        return stream(backend, job_id, after, key)

    monkeypatch.setattr(events, "_stream", noted)
    job = world.submit()
    world.store.cancel(job.id)
    client.get(f"/v1/jobs/{job.id}/events", headers=STREAM)
    assert [f"Bearer {key}" for key in opened] == [client.headers["Authorization"]]
