"""Sends the events of a job: as a list, or as a stream of server-sent events that a client can resume.

The `id:` line has the event's number. A client that lost the connection sends the number of the last event that it
received as `Last-Event-ID`. The stream ends after the event that ended the job, and when the key that opened it is no
longer valid.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from anyio import to_thread
from anyio.lowlevel import RunVar
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from sqlalchemy.exc import SQLAlchemyError

from service.api.dependencies import Backend, FromApp, JobId
from service.api.keys.checking import presented_key
from service.api.views import EventList, EventView
from service.errors import InvalidRequest, NotFound
from service.store.jobs import JobStore
from service.store.statuses import Status

ENDED = frozenset({Status.succeeded, Status.failed, Status.cancelled})
HEARTBEAT_SECONDS = 10.0
"""Longest that a stream without events sends nothing; then it sends a comment, so that proxies keep it open.

Pauses are of random length from half of this, so that many streams do not send at one time.
"""
RECONNECT_MILLISECONDS = 1000
"""Pause before a browser opens a broken stream again."""
LARGEST_SEQUENCE = 2**31 - 1
_BATCH = 1000
_STREAM_THREADS = 4
"""Threads in which streams read, so that many streams leave the others to requests."""
_threads: RunVar[anyio.CapacityLimiter] = RunVar("threads of streams")

router = APIRouter()


@router.get(
    "/v1/jobs/{job_id}/events", response_model=EventList, responses={200: {"content": {"text/event-stream": {}}}}
)
def events(
    backend: FromApp,
    request: Request,
    job_id: JobId,
    after: Annotated[int, Query(ge=0, le=LARGEST_SEQUENCE, description="Return only events after this number.")] = 0,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str, Header()] = "",
) -> Response | EventList:
    """Return the job's events: as a stream if `Accept` has text/event-stream, else as a list."""
    if "text/event-stream" not in accept.lower():
        return _look(backend.store, job_id, after)
    start = _resume_point(last_event_id) if last_event_id else after
    backend.store.status(job_id)  # an unknown job is an answer of its own, not a stream that breaks off
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    key = presented_key(request.headers)
    return EventSourceResponse(_stream(backend, job_id, start, key), headers=headers)


def _look(store: JobStore, job_id: str, after: int) -> EventList:
    """Return the events after `after`; the job is read first, so that the event that ends it is not missed.

    Should it end between the two, the last event says so.
    """
    has_ended = store.status(job_id) in ENDED
    views = [EventView.model_validate(event) for event in store.events(job_id, after=after, limit=_BATCH)]
    complete = len(views) < _BATCH and (not views or views[-1].kind in ENDED)
    return EventList(events=views, ended=complete and (bool(views) or has_ended))


def _look_if_there(store: JobStore, job_id: str, after: int) -> EventList | None:
    """Return the events after `after`; None where the job was deleted."""
    with contextlib.suppress(NotFound):
        return _look(store, job_id, after)
    return None


async def _is_valid(backend: Backend, key: str | None) -> bool:
    """Whether a stream's key is still accepted; one that was verified a moment ago costs no turn of a thread.

    While the database does not answer, the key is accepted: it is looked at again soon.
    """
    if key is None or backend.keys.verified(key) is not None:
        return True
    try:
        return await to_thread.run_sync(backend.keys.verify, key, limiter=_limiter()) is not None
    except SQLAlchemyError:
        return True


async def _stream(backend: Backend, job_id: str, after: int, key: str | None = None) -> AsyncIterator[bytes]:
    """Yield the events after `after` in the event-stream format, those to come as soon as they are there.

    Ends where `key` is not valid any more, which is looked at with each event and each heartbeat.
    """
    yield format_sse_event(retry=RECONNECT_MILLISECONDS)
    loop, news = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(news.set)

    with backend.news.follow(job_id, wake, after) as follower:
        while True:
            news.clear()
            if not await _is_valid(backend, key):
                return
            seen = await to_thread.run_sync(_look_if_there, backend.store, job_id, follower.seen, limiter=_limiter())
            if seen is None:
                return
            for event in seen.events:
                yield format_sse_event(id=str(event.sequence), event=event.kind, data_str=event.model_dump_json())
                follower.seen = event.sequence
            if seen.ended:
                return
            while len(seen.events) < _BATCH and not news.is_set():
                with anyio.move_on_after(HEARTBEAT_SECONDS * random.uniform(0.5, 1)) as waiting:
                    await news.wait()
                if waiting.cancelled_caught:
                    if not await _is_valid(backend, key):
                        return
                    yield KEEPALIVE_COMMENT


def _limiter() -> anyio.CapacityLimiter:
    """Return the limiter of the threads of streams in the running event loop."""
    try:
        return _threads.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_STREAM_THREADS)
        _threads.set(limiter)
        return limiter


def _resume_point(last_event_id: str) -> int:
    """Return the number of the last event that the client received."""
    if last_event_id.isascii() and last_event_id.isdecimal() and int(last_event_id[:20]) <= LARGEST_SEQUENCE:
        return int(last_event_id)
    raise InvalidRequest("Last-Event-ID", last_event_id, f"the number of an event, 0 to {LARGEST_SEQUENCE}")
