"""Sends the events of a job: as a list, or as a stream of server-sent events that a client can resume.

The `id:` line has the event's number. A client that lost the connection sends the number of the last event that it
received as `Last-Event-ID`. The stream ends after the event that ended the job.
"""

import time
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Query, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from service.api.dependencies import FromApp, JobId
from service.api.views import EventList, EventView
from service.errors import InvalidRequest
from service.store.jobs import JobStore
from service.store.statuses import Status

ENDED = frozenset({Status.succeeded, Status.failed, Status.cancelled})
POLL_SECONDS = 0.3
"""Pause between two queries of the database."""
HEARTBEAT_SECONDS = 10.0
"""A stream without events sends a comment this often, so that proxies keep it open."""
RECONNECT_MILLISECONDS = 1000
"""Pause before a browser opens a broken stream again."""
LARGEST_SEQUENCE = 2**31 - 1
_BATCH = 1000

router = APIRouter()


@router.get(
    "/v1/jobs/{job_id}/events", response_model=EventList, responses={200: {"content": {"text/event-stream": {}}}}
)
def events(
    backend: FromApp,
    job_id: JobId,
    after: Annotated[int, Query(ge=0, le=LARGEST_SEQUENCE, description="Return only events after this number.")] = 0,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str, Header()] = "",
) -> Response | EventList:
    """Return the job's events: as a stream if `Accept` has text/event-stream, else as a list."""
    if "text/event-stream" not in accept.lower():
        return _look(backend.store, job_id, after)
    start = _resume_point(last_event_id) if last_event_id else after
    first = _look(backend.store, job_id, start)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventSourceResponse(_stream(backend.store, job_id, start, first), headers=headers)


def _look(store: JobStore, job_id: str, after: int) -> EventList:
    """Return the events after `after`; the job is read first, so that the event that ends it is not missed."""
    has_ended = store.get(job_id).status in ENDED
    views = [EventView.model_validate(event) for event in store.events(job_id, after=after, limit=_BATCH)]
    complete = len(views) < _BATCH and (not views or views[-1].kind in ENDED)
    return EventList(events=views, ended=has_ended and complete)


async def _stream(store: JobStore, job_id: str, after: int, seen: EventList) -> AsyncIterator[bytes]:
    """Yield the events `seen` and later ones in the event-stream format."""
    yield format_sse_event(retry=RECONNECT_MILLISECONDS)
    last_sent = time.monotonic()
    while True:
        for event in seen.events:
            yield format_sse_event(id=str(event.sequence), event=event.kind, data_str=event.model_dump_json())
            after = event.sequence
            last_sent = time.monotonic()
        if seen.ended:
            return
        if time.monotonic() - last_sent >= HEARTBEAT_SECONDS:
            yield KEEPALIVE_COMMENT
            last_sent = time.monotonic()
        await anyio.sleep(POLL_SECONDS)
        seen = await run_in_threadpool(_look, store, job_id, after)


def _resume_point(last_event_id: str) -> int:
    """Return the number of the last event that the client received."""
    if last_event_id.isascii() and last_event_id.isdecimal() and int(last_event_id[:20]) <= LARGEST_SEQUENCE:
        return int(last_event_id)
    raise InvalidRequest("Last-Event-ID", last_event_id, f"the number of an event, 0 to {LARGEST_SEQUENCE}")
