"""One attempt at a job, from a working directory to a report in the store.

    model, texts -> request.json -> measurement process -> reporting process -> bundle.zip -> artifact store

Each step runs under the lease, and any of them may find that the job fails: `JobFailed` carries the reason that
the job ends with. What an earlier attempt left in the directory is used: a measurement that was broken off goes on,
and one that is whole is only drawn.
"""

import json
import logging
import shutil
import time
from importlib.metadata import version
from pathlib import Path

from service.contracts.progress import Failed, Progress
from service.contracts.request import MeasurementRequest
from service.contracts.warnings import Warning
from service.settings import Settings
from service.store.artifacts import ArtifactStore
from service.store.job_records import Artifact, Claim
from service.store.leases import Leases
from workers.bundle import BUNDLE, media_type, report_files, write_bundle
from workers.checkpoints import as_here, checkpoints_of, with_batch
from workers.failures import (
    DEVICE_FULL,
    KILLED,
    OUT_OF_MEMORY,
    JobFailed,
    internal,
)
from workers.job_inputs import JobInputs
from workers.lease import Lease
from workers.measurement.runtime.workspace import unfinished
from workers.model_files.cache import ModelCache
from workers.model_files.size_classes import weights_bytes
from workers.relay import Relay
from workers.retrying_artifacts import RetryingArtifacts
from workers.sandbox.limits import LIMIT_CODES
from workers.sandbox.programs import Commands, Programs
from workers.sandbox.sandbox import Sandbox

log = logging.getLogger(__name__)

_OUT_OF_SPACE = (OUT_OF_MEMORY, DEVICE_FULL, "disk-full", KILLED, *LIMIT_CODES)
"""Codes of failures after which starting over cannot succeed."""


class Attempt:
    """One claim's work in a directory of its own, which holds nothing or what an earlier attempt at the job left."""

    def __init__(
        self,
        store: Leases,
        artifacts: ArtifactStore,
        lease: Lease,
        claim: Claim,
        directory: Path,
        settings: Settings,
        commands: Commands,
        sandbox: Sandbox,
    ) -> None:
        self._store = store
        self._artifacts = RetryingArtifacts(artifacts, lease.check)
        self._lease = lease
        self._claim = claim
        self._directory = directory
        self._out = directory / "measured" / "out"
        self._request_file = directory / "request.json"
        self._temporary = directory / "tmp"
        self._home, self._sandbox = settings.home, sandbox
        self._programs = Programs(commands, sandbox, lease, claim, directory, settings.fetch_seconds)
        self._checkpoints = checkpoints_of(store, artifacts, lease, claim, self._request_file, self._out, settings)
        self._models = ModelCache(settings.model_cache_bytes)
        self._inputs = JobInputs(
            claim, directory, settings, store, self._artifacts, sandbox, self._programs, self._models
        )
        self._layers = 0  # that the last measurement has done

    def run(self) -> list[Artifact]:
        """Do the work; return the report's files, which lie in the store by then but belong to no job yet.

        Raises JobFailed, Unchanged, LargeModel, CancelAsked, WorkerStopping, LeaseLost, OSError and StoreFailed.
        """
        with self._models:
            return self._run()

    def _run(self) -> list[Artifact]:
        began = time.monotonic()
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir()
        self._sandbox.open(self._out.parent, self._home)
        asked = self._inputs.request()
        left = self._left_request(asked)
        if left is None or not self._is_measured():
            self._discard(self._out)
            with self._checkpoints:
                self._sandbox.open(self._out.parent, self._home)  # with what was fetched
                left = self._left_request(asked)
                self._measure(left or asked, may_halve=left is None or left == asked)
        self._draw(began)
        return self._keep()

    def _left_request(self, asked: MeasurementRequest) -> MeasurementRequest | None:
        """Return the request that an earlier attempt left, if it is what is asked for but for a smaller batch."""
        try:
            left = MeasurementRequest.model_validate_json(self._request_file.read_bytes())
        except (OSError, ValueError):
            return None
        left = as_here(left, asked)
        return left if with_batch(left, asked.batch_sequences) == asked else None

    def _is_measured(self) -> bool:
        """Whether an earlier attempt left a whole measurement by the same version."""
        try:
            report = json.loads((self._out / "report.json").read_bytes())
            return bool(report["headroom_version"] == version("headroom"))
        except (OSError, ValueError, LookupError):
            return False

    def _measure(self, request: MeasurementRequest, *, may_halve: bool) -> None:
        """Run the measurement, and again where that can help.

        | it ended because                   | it is run again                                                |
        |------------------------------------|----------------------------------------------------------------|
        | it was killed                      | from its checkpoint, while each time gets through more layers   |
        | the device has too little memory   | from the beginning with half the batch, once in a job's life    |
        | it cannot use what was left        | from the beginning, which leaves nothing to continue            |
        | of anything else                   | never                                                          |

        A killed one may find the memory that it lacked; one that needs more than the machine has must end.
        """
        reached, tried = -1, ""
        while True:
            self._request_file.write_text(request.model_dump_json())
            self._sandbox.share(self._request_file, self._directory)
            goes_on = unfinished(self._out).exists()
            try:
                return self._run_measurement(request.model.path)
            except JobFailed as error:
                failed, batch = error.failed, error.failed.batch_sequences or 1
                if failed.code == KILLED and self._layers > reached:
                    reached, how = self._layers, "on from its last checkpoint, if it has one"
                elif failed.code == DEVICE_FULL and batch > 1 and may_halve:
                    request, how = self._with_batch_of(batch // 2, request, failed), "anew, with half the batch"
                    may_halve, reached = False, -1
                    tried = f"with {batch} sequences in a batch, and again with half of them: "
                elif goes_on and failed.code not in _OUT_OF_SPACE:
                    self._discard(unfinished(self._out))
                    how = "anew, for it could not go on"
                elif failed.code == DEVICE_FULL:
                    raise JobFailed(failed.model_copy(update={"message": tried + failed.message})) from error
                else:
                    raise
                log.warning("job %s is measured %s: %s", self._claim.job_id, how, error)

    def _with_batch_of(self, sequences: int, request: MeasurementRequest, full: Failed) -> MeasurementRequest:
        """Return the request with a smaller batch, and warn in the job's events.

        Another batch is another measurement, with other last digits, other 16-bit columns of int8 and streams that are
        laid out otherwise: what the one before left, if anything, cannot be continued.
        """
        self._discard(unfinished(self._out))
        batch = "1 sequence" if sequences == 1 else f"{sequences} sequences"
        message = f"{full.message}. The measurement began again with {batch} in a batch."
        advice = f"Use --batch-sequences {sequences} next time to avoid the failed first attempt."
        Relay(self._store, self._claim).warning(Warning(code="smaller-batch", message=message, advice=advice))
        return with_batch(request, sequences)

    def _run_measurement(self, model: Path) -> None:
        relay = Relay(self._store, self._claim)
        command = [*self._programs.commands.measurement, str(self._request_file), str(self._out)]
        ended = self._programs.measure(command, relay.line, weights_bytes(model))
        relay.flush()
        self._layers = relay.layers
        self._programs.demand_success("the measurement", relay, ended)
        if not (self._out / "report.json").is_file():
            raise JobFailed(internal("the measurement said that it finished, and left no report.json"))

    def _discard(self, path: Path) -> None:
        """Remove a directory, if it is there, in one step: another process may be at work in it."""
        if path.exists():
            path.rename(self._temporary / path.name)
            shutil.rmtree(self._temporary / path.name, ignore_errors=True)

    def _draw(self, began: float) -> None:
        relay = Relay(self._store, self._claim)

        def report(done: int) -> None:
            elapsed = time.monotonic() - began
            relay.progress(Progress(stage="report", done=done, total=1, elapsed_seconds=elapsed))

        report(0)
        self._programs.draw([*self._programs.commands.reporting, str(self._out)])
        report(1)

    def _keep(self) -> list[Artifact]:
        files = report_files(self._out)
        bundle = self._directory / BUNDLE
        write_bundle(files, bundle)
        rows = []
        for name, path in {**files, BUNDLE: bundle}.items():
            self._lease.check_owned()
            sha256, size = self._artifacts.put(path)
            rows.append(Artifact(self._claim.job_id, name, sha256, size, media_type(name)))
        return rows
