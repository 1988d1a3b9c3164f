"""The programs of one attempt at a job: fetching has this worker's rights, measuring and drawing are sandboxed."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.contracts.progress import Failed, Finished
from service.store.job_records import Claim
from workers.children import Ended, run_child
from workers.failures import KILLED, JobFailed, device_full_in_library, unexplained
from workers.lease import Lease
from workers.model_files.fetching import hub_environment, in_time
from workers.relay import Relay
from workers.sandbox.sandbox import Sandbox

log = logging.getLogger(__name__)

DRAWINGS = 3
"""How often a report is drawn, where the drawing is killed each time."""


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name)


@dataclass(frozen=True)
class Commands:
    """The programs of an attempt; their arguments are added at the end."""

    hub: Sequence[str] = _module("workers.model_files.hub")
    measurement: Sequence[str] = _module("workers.measurement")
    reporting: Sequence[str] = _module("workers.reporting")
    resolution: Sequence[str] = _module("workers.model_files.resolution")


class Programs:
    """Runs programs for as long as the lease lasts and the deadline is not over.

    What its methods raise ends the attempt: LeaseLost, CancelAsked and WorkerStopping as the lease does, and JobFailed
    for a limit that was reached.
    """

    def __init__(
        self, commands: Commands, sandbox: Sandbox, lease: Lease, claim: Claim, directory: Path, fetch_seconds: float
    ) -> None:
        """`directory` is the attempt's, with a directory `tmp`; the deadline counts from now."""
        self.commands = commands
        self._sandbox = sandbox
        self._lease = lease
        self._claim = claim
        self._fetch_seconds = fetch_seconds
        self._directory = directory
        self._ends_at = time.monotonic() + sandbox.limits.seconds

    def fetch(self, command: Sequence[str], on_line: Callable[[bytes], None]) -> Ended:
        """Run a program with this worker's rights and network, and of its credentials the hub's token."""
        # What it leaves in its temporary directory goes when the working directory goes.
        environment = {**hub_environment(os.environ), "TMPDIR": str(self._directory / "tmp")}
        check = in_time(self._check, self._claim.request.model, self._fetch_seconds)
        ended = run_child(
            command, environment=environment, check=check, on_line=on_line, umask=self._sandbox.fetching_umask
        )
        return self._logged(command, ended)

    def measure(self, command: Sequence[str], on_line: Callable[[bytes], None], weights: int) -> Ended:
        """Run the measurement in the sandbox; `weights` is the size of the model's weight files, in bytes."""
        return self._confined(command, "the measurement", on_line, weights)

    def draw(self, command: Sequence[str]) -> None:
        """Draw the report in the sandbox, again where that was killed. Raises JobFailed too for another end."""
        what = "drawing the report"
        for drawing in range(1, DRAWINGS + 1):
            ended = self._confined(command, what, lambda _line: None)
            if ended.status == 0:
                return
            failed = self._sandbox.explained(unexplained(what, ended), ended)
            if failed.code != KILLED or drawing == DRAWINGS:
                raise JobFailed(failed)

    def demand_success(self, what: str, relay: Relay, ended: Ended) -> None:
        """Raise JobFailed unless a program, whose events the relay took, said that it finished, and ended well."""
        if isinstance(relay.last_word, Failed):
            raise JobFailed(self._sandbox.explained(relay.last_word, ended))
        if ended.status != 0 or not isinstance(relay.last_word, Finished):
            batch = relay.batch_sequences, self._claim.request.sequence_length
            failed = device_full_in_library(ended, *batch) or unexplained(what, ended)
            raise JobFailed(self._sandbox.explained(failed, ended))

    def _confined(self, command: Sequence[str], what: str, on_line: Callable[[bytes], None], weights: int = 0) -> Ended:
        ended = self._sandbox.run(command, what, self._directory, self._check, on_line, weights=weights)
        return self._logged(command, ended)

    def _logged(self, command: Sequence[str], ended: Ended) -> Ended:
        if ended.status != 0:
            tail = json.dumps(ended.errors[-10:])
            log.warning("job %s: %s ended with %d: %s", self._claim.job_id, command[0], ended.status, tail)
        return ended

    def _check(self) -> None:
        self._lease.check()
        if time.monotonic() > self._ends_at:
            raise JobFailed(self._sandbox.limits.deadline_reached())
