"""The statuses of a job and the states of an audit's run, each listed once with the ways between them."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Status(StrEnum):
    """Where a job stands."""

    queued = "queued"
    """It waits for a worker."""
    running = "running"
    """A worker holds it under a lease."""
    succeeded = "succeeded"
    """It ended and left a report."""
    failed = "failed"
    """It ended without a report; `error` says why."""
    cancelled = "cancelled"
    """Somebody asked for it to be stopped, and it was; or it would have measured what was measured before."""


TRANSITIONS: Mapping[Status, frozenset[Status]] = MappingProxyType(
    {
        Status.queued: frozenset({Status.running, Status.cancelled}),
        Status.running: frozenset({Status.queued, Status.succeeded, Status.failed, Status.cancelled}),
        Status.succeeded: frozenset(),
        Status.failed: frozenset({Status.queued}),
        Status.cancelled: frozenset({Status.queued}),
    }
)
"""Status -> the statuses that may follow it. A running job goes back to the queue when its worker stops or is lost;
a failed or cancelled one when somebody asks for it again."""


class RunState(StrEnum):
    """Where a run of an audit stands: each step on goes down this list, and a step is one transaction."""

    queued = "queued"
    """It waits for the run before to end, or for a scheduler."""
    measuring = "measuring"
    """Its job is in the queue or at a worker."""
    judging = "judging"
    """A scheduler reads the reports, under a lease."""
    rerunning = "rerunning"
    """Jobs on other calibration seeds are in the queue or at workers; afterwards it is judged again."""
    ended = "ended"
    """It has its verdict."""


OPEN = (RunState.measuring, RunState.judging, RunState.rerunning)
"""The states of a run that has begun and not ended."""
JOB_ENDED = (Status.succeeded, Status.failed, Status.cancelled)
"""The statuses of a job that has ended."""
