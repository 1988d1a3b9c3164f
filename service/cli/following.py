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


class Watch:
    """Shows the events of one job, each once, also after Ctrl-C.

    `check` is called between two looks and may raise.
    """

    def __init__(self, client: Client, display: Display, check: Callable[[], None]) -> None:
        self._client = client
        self._display = display
        self._check = check
        self._last_shown = 0
        """Sequence number of the last event that was shown."""

    def follow(self, job_id: str) -> Document:
        """Show the job's events until it has ended, and return the job.

        Raises ServiceUnreachable when the service stays away.
        """
        answered = time.monotonic()
        while True:
            self._check()
            try:
                ended = self._show_new_events(job_id)
                job = self._client.get(f"/v1/jobs/{job_id}")
                answered = time.monotonic()
            except ServiceUnreachable as error:
                if time.monotonic() - answered > PATIENCE_SECONDS:
                    raise ServiceUnreachable(f"{error}; job {job_id} may go on: headroom jobs show {job_id}") from error
            else:
                if ended:
                    return job
                if job["queue_position"] is not None:
                    self._display.waiting(job["queue_position"])
            time.sleep(LOOK_SECONDS)

    def stop(self, job_id: str) -> Document:
        """Cancel the job, follow it until it has ended, and return it."""
        job = self._client.post(f"/v1/jobs/{job_id}/cancel")
        return job if job["finished_at"] else self.follow(job_id)

    def _show_new_events(self, job_id: str) -> bool:
        """Show the events that were not shown yet; return whether the job has ended."""
        page = self._client.get(f"/v1/jobs/{job_id}/events", after=self._last_shown)
        for event in page["events"]:
            self._display.show(event["kind"], event["data"])
            self._last_shown = event["sequence"]
        return bool(page["ended"])
