"""The stack's workers: one that ends is started again, after a pause that grows while it keeps ending soon."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from service.local.programs import Programs
from service.settings import Settings

log = logging.getLogger(__name__)

WORKER_COMMAND = ("-m", "workers.app")
"""Arguments to Python; the worker's code is named, never imported."""
SETTLED_SECONDS = 60.0
"""A worker that ran for this long starts again after the shortest pause."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
_SETTING_REFUSED = 2
"""Exit status of a worker with a setting that is not allowed: another start would change nothing."""
STOP_SECONDS = 10.0
"""How long a worker may take to give its job back."""


@dataclass
class _Worker:
    name: str
    device: str
    started: float = 0.0
    """When it was last started, in seconds of the steady clock."""
    short_lives: int = 0
    """How often in a row it ended soon after its start."""
    due: float | None = None
    """When it is started again; None while it runs."""


class Workers:
    """A worker for each of some devices."""

    def __init__(self, programs: Programs, settings: Settings, devices: Sequence[str], most_short_lives: int | None):
        """`most_short_lives`: a worker that ended soon so often in a row stops the stack; None: none ever does."""
        self._programs = programs
        self._memory = str(int(settings.memory))
        self._most_short_lives = most_short_lives
        names = ["worker", *(f"worker-{number}" for number in range(2, len(devices) + 1))]
        self._workers = [_Worker(name, device) for name, device in zip(names, devices, strict=False)]

    def start(self) -> None:
        """Start all of them."""
        for worker in self._workers:
            self._start(worker)

    def check(self) -> None:
        """Start those again that have ended and whose pause is over.

        Raises StackStopped for one that cannot go on: a setting is not allowed, or it ended soon too often.
        """
        for worker in self._workers:
            if worker.due is None:
                if self._programs.exit_status(worker.name) is not None:
                    self._plan(worker)
            elif time.monotonic() >= worker.due:
                self._start(worker)

    def stop(self) -> None:
        """End all of them."""
        self._programs.stop([worker.name for worker in self._workers], STOP_SECONDS)

    def _start(self, worker: _Worker) -> None:
        more = worker_environment(self._memory, worker.device)
        self._programs.start(worker.name, WORKER_COMMAND, more=more)
        worker.started, worker.due = time.monotonic(), None

    def _plan(self, worker: _Worker) -> None:
        settled = time.monotonic() - worker.started >= SETTLED_SECONDS
        worker.short_lives = 0 if settled else worker.short_lives + 1
        refused = self._programs.exit_status(worker.name) == _SETTING_REFUSED
        if refused or worker.short_lives == self._most_short_lives:
            self._programs.check(worker.name)
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** max(0, worker.short_lives - 1), LONGEST_PAUSE_SECONDS)
        worker.due = time.monotonic() + pause
        ended, tail = self._programs.how_ended(worker.name), self._programs.log_tail(worker.name)
        log.warning("%s and is started again in %g s; %s", ended, pause, tail)


def worker_environment(memory: str, device: str) -> dict[str, str]:
    """Return the environment variables of what a command may choose for its worker: bytes, and the device."""
    return {"HEADROOM_MEMORY": memory, "HEADROOM_DEVICE": device}
