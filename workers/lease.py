"""A worker's hold on its job, renewed from a thread of its own for as long as the work takes.

The work itself asks `check` now and then, and learns by an exception that it must stop.
"""

import logging
import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from service.errors import LeaseLost
from service.store.job_records import Claim
from service.store.leases import Leases

log = logging.getLogger(__name__)

RENEWALS = 4
"""How often a claim is renewed in the time after which it would run out."""


class CancelAsked(Exception):
    """Somebody asked for the job to be cancelled."""


class WorkerStopping(Exception):
    """The worker got a signal to stop."""


class Lease:
    """Context manager: inside it the claim, which runs out after `seconds`, is renewed in good time.

    A renewal that fails because the database cannot be reached is tried again soon. Only when none has succeeded for
    `seconds`, so that somebody else may hold the job by now, is the lease given up.
    """

    def __init__(self, store: Leases, claim: Claim, seconds: float, stopping: Callable[[], bool]) -> None:
        self.seconds = seconds
        self._store = store
        self._claim = claim
        self._stopping = stopping
        self._renewed = time.monotonic()
        self._lost = False
        self._cancel_asked = False
        self._closed = Event()
        self._thread = Thread(target=self._keep, name=f"lease of {claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join(self.seconds)

    def check(self) -> None:
        """Raise LeaseLost, CancelAsked or WorkerStopping when the work must stop."""
        self.check_owned()
        if self._cancel_asked:
            raise CancelAsked
        if self._stopping():
            raise WorkerStopping

    def check_owned(self) -> None:
        """Raise LeaseLost when the lease is lost; the last steps of a job are interrupted by nothing else."""
        if self._lost or time.monotonic() - self._renewed > self.seconds:
            raise LeaseLost(f"the lease of job {self._claim.job_id} could not be kept")

    def _keep(self) -> None:
        pause = self.seconds / RENEWALS
        while not self._closed.wait(pause):
            began = time.monotonic()
            try:
                self._cancel_asked = self._store.renew(self._claim, self.seconds)
            except LeaseLost:
                self._lost = True
                return
            except SQLAlchemyError as error:
                log.warning("job %s: the lease was not renewed, trying again: %s", self._claim.job_id, error)
                pause = self.seconds / RENEWALS / 5
            else:
                self._renewed = began
                pause = self.seconds / RENEWALS
