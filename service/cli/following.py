"""Watching a job until it ends: its events become lines or bars on standard error.

The events are numbered, so nothing is lost or shown twice when the connection breaks in between.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

from service.cli.client import Client, Document
from service.errors import ServiceUnreachable

LOOK_SECONDS = 0.4
"""Pause between two questions to the service."""
PATIENCE_SECONDS = 30.0
"""How long the service may be away before the command gives up watching."""


class Display(Protocol):
    """Shows what happens to a job."""

    def show(self, kind: str, data: dict[str, Any]) -> None:
        """Show one event."""

    def waiting(self, ahead: int) -> None:
        """Show that the job is queued, with `ahead` others before it."""


class Pace:
    """How long a stage has still to go, from the times that its progress events carry.

    The first unit is not reckoned with: kernels are compiled in it that the others use.
    """

    def __init__(self) -> None:
        self._stage = ""
        self._began = (0, 0.0)

    def left(self, stage: str, done: int, total: int, elapsed: float) -> float | None:
        """Return the seconds left in `stage`; None when there is nothing to reckon from, or nothing left.

        `done` of `total` units are done, `elapsed` seconds after the measurement began.
        """
        if stage != self._stage or self._began[0] == 0:
            self._stage, self._began = stage, (done, elapsed)
        advanced = done - self._began[0]
        if advanced <= 0 or done >= total:
            return None
        return (elapsed - self._began[1]) / advanced * (total - done)


def follow(client: Client, job_id: str, display: Display, check: Callable[[], None], *, after: int = 0) -> Document:
    """Show the job's events until it has ended, and return the job.

    `check` is called between two looks and may raise. Raises ServiceUnreachable when the service stays away.
    """
    seen, answered = after, time.monotonic()
    while True:
        check()
        try:
            page = client.get(f"/v1/jobs/{job_id}/events", after=seen)
            for event in page["events"]:
                display.show(event["kind"], event["data"])
                seen = event["sequence"]
            job = client.get(f"/v1/jobs/{job_id}")
            answered = time.monotonic()
        except ServiceUnreachable as error:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise ServiceUnreachable(f"{error}; job {job_id} may go on: headroom jobs show {job_id}") from error
        else:
            if page["ended"]:
                return job
            if job["queue_position"] is not None:
                display.waiting(job["queue_position"])
        time.sleep(LOOK_SECONDS)


def stop(client: Client, job_id: str, display: Display, check: Callable[[], None]) -> Document:
    """Cancel the job, wait until it has ended, and return it; shows only the events from the cancellation on."""
    shown = client.get(f"/v1/jobs/{job_id}/events")["events"]
    job = client.post(f"/v1/jobs/{job_id}/cancel")
    return (
        job
        if job["finished_at"]
        else follow(client, job_id, display, check, after=shown[-1]["sequence"] if shown else 0)
    )
