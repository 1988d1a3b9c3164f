"""One attempt at a job, from a working directory to a report in the store.

    model, texts -> request.json -> measurement process -> reporting process -> bundle.zip -> artifact store

Each step runs under the lease, and any of them may find that the job fails: `JobFailed` carries the reason that
the job ends with. What an earlier attempt left in the directory is used: a measurement that was broken off goes on,
and one that is whole is only drawn.
"""

import errno
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from service.contracts.files import format_of
from service.contracts.progress import Failed, Finished, Progress
from service.contracts.request import SAMPLE, Analysis, CalibrationFile, LabelledFile, MeasurementRequest, ModelFiles
from service.settings import Settings
from service.store.artifacts import ArtifactStore
from service.store.leases import Leases
from service.store.records import ArtifactRow, Claim
from workers.bundle import BUNDLE, media_type, report_files, write_bundle
from workers.children import Ended, run_child, without_secrets
from workers.lease import Lease
from workers.measurement.workspace import unfinished
from workers.relay import Relay
from workers.samples import CALIBRATION, MODEL

log = logging.getLogger(__name__)

_KILLED = "killed"
_OUT_OF_SPACE = ("out-of-memory", "disk-full", _KILLED)
"""Codes of failures that beginning anew cannot help."""


class JobFailed(Exception):
    """The job ends failed."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name)


@dataclass(frozen=True)
class Commands:
    """The programs of an attempt; their arguments are added at the end."""

    hub: Sequence[str] = _module("workers.hub")
    measurement: Sequence[str] = _module("workers.measurement")
    reporting: Sequence[str] = _module("workers.reporting")


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
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._lease = lease
        self._claim = claim
        self._directory = directory
        self._out = directory / "out"
        self._temporary = directory / "tmp"
        self._settings = settings
        self._commands = commands
        self._layers = 0
        """That the last measurement was through with."""

    def run(self) -> list[ArtifactRow]:
        """Do the work; return the report's files, which lie in the store by then but belong to no job yet.

        Raises JobFailed, CancelAsked, WorkerStopping, LeaseLost, OSError and StoreFailed.
        """
        began = time.monotonic()
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir()
        request, file = self._request().model_dump_json(), self._directory / "request.json"
        if not self._is_measured(request, file):
            self._discard(self._out)
            file.write_text(request)
            self._measure(file)
        self._draw(began)
        return self._keep()

    def _is_measured(self, request: str, file: Path) -> bool:
        """Whether an earlier attempt left a whole measurement of the same request by the same version."""
        try:
            found = json.loads((self._out / "report.json").read_bytes())
            return file.read_text() == request and found["headroom_version"] == version("headroom")
        except (OSError, ValueError, LookupError):
            return False

    def _measure(self, request: Path) -> None:
        """Measure; one that is killed is tried again, and then as long as each time gets through more of the layers.

        The memory that it lacked may be there by then; but what needs more than there is must come to an end.
        """
        reached = -1
        while True:
            try:
                return self._go_on(request)
            except JobFailed as error:
                if error.failed.code != _KILLED or self._layers <= reached:
                    raise
                log.warning(
                    "job %s is measured on from its last checkpoint, if it has one: %s", self._claim.job_id, error
                )
                reached = self._layers

    def _go_on(self, request: Path) -> None:
        """Go on from what is unfinished; where that cannot be gone on from, begin anew."""
        left = unfinished(self._out)
        goes_on = left.exists()
        try:
            self._run_measurement(request)
        except JobFailed as error:
            if not goes_on or error.failed.code in _OUT_OF_SPACE:
                raise
            log.warning("job %s is begun anew, for it could not go on: %s", self._claim.job_id, error)
            self._discard(left)
            self._run_measurement(request)

    def _run_measurement(self, request: Path) -> None:
        relay = Relay(self._store, self._claim)
        ended = self._child([*self._commands.measurement, str(request), str(self._out)], without_secrets(), relay.line)
        relay.flush()
        self._layers = relay.layers
        self._demand_success("the measurement", relay, ended)
        if not (self._out / "report.json").is_file():
            raise JobFailed(_internal("the measurement said that it finished, and left no report.json"))

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
        ended = self._child([*self._commands.reporting, str(self._out)], without_secrets(), lambda _line: None)
        if ended.status != 0:
            raise JobFailed(_unexplained("drawing the report", ended))
        report(1)

    def _keep(self) -> list[ArtifactRow]:
        files = report_files(self._out)
        bundle = self._directory / BUNDLE
        write_bundle(files, bundle)
        rows = []
        for name, path in {**files, BUNDLE: bundle}.items():
            self._lease.check_owned()
            sha256, size = self._artifacts.put(path)
            rows.append(ArtifactRow(self._claim.job_id, name, sha256, size, media_type(name)))
        return rows

    def _request(self) -> MeasurementRequest:
        asked = self._claim.request
        analysis = {name: getattr(asked, name) for name in Analysis.model_fields}
        return MeasurementRequest(
            job_id=self._claim.job_id,
            model=self._model(asked.model),
            calibration=self._calibration(),
            labelled=self._labelled(),
            device=self._settings.device,
            memory_bytes=self._settings.memory,
            checkpoint_seconds=self._settings.checkpoint_seconds,
            **analysis,
        )

    def _model(self, name: str) -> ModelFiles:
        if name == SAMPLE:
            return ModelFiles(path=MODEL, source=SAMPLE)
        if name.startswith("/"):
            return ModelFiles(path=Path(name), source=name)
        found = self._directory / "model.json"
        relay = Relay(self._store, self._claim)
        ended = self._child([*self._commands.hub, name, str(found)], os.environ, relay.line)
        self._demand_success("fetching the model", relay, ended)
        return ModelFiles.model_validate_json(found.read_text())

    def _calibration(self) -> CalibrationFile:
        stored = self._claim.request.calibration
        if stored is None:
            return CalibrationFile(path=CALIBRATION, source=SAMPLE)
        path = self._artifacts.path(stored.sha256)
        return CalibrationFile(path=path, source=stored.name, format=format_of(stored.name))

    def _labelled(self) -> LabelledFile | None:
        stored = self._claim.request.labelled
        return LabelledFile(path=self._artifacts.path(stored.sha256), source=stored.name) if stored else None

    def _child(self, command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[bytes], None]) -> Ended:
        # What a child leaves in its temporary directory goes when the working directory goes.
        environment = {**environment, "TMPDIR": str(self._temporary)}
        ended = run_child(command, environment=environment, check=self._lease.check, on_line=on_line)
        if ended.status != 0:
            tail = json.dumps(ended.errors[-10:])
            log.warning("job %s: %s ended with %d: %s", self._claim.job_id, command[0], ended.status, tail)
        return ended

    def _demand_success(self, what: str, relay: Relay, ended: Ended) -> None:
        if isinstance(relay.last_word, Failed):
            raise JobFailed(relay.last_word)
        if ended.status != 0 or not isinstance(relay.last_word, Finished):
            raise JobFailed(_unexplained(what, ended))


def _unexplained(what: str, ended: Ended) -> Failed:
    """Return why a child that did not say so itself ended."""
    if ended.status == -signal.SIGKILL:
        message = f"{what} was ended by SIGKILL; most often that is the system, out of memory"
        return Failed(code=_KILLED, message=message, bad_input=False)
    if os.strerror(errno.ENOSPC) in ended.last_error:
        return Failed(code="disk-full", message=f"{what} failed: {ended.last_error}", bad_input=False)
    how = f"was ended by {signal.Signals(-ended.status).name}" if ended.status < 0 else f"ended with {ended.status}"
    return _internal(f"{what} {how}: {ended.last_error or 'it said nothing on standard error'}")


def _internal(message: str) -> Failed:
    return Failed(code="internal", message=message, bad_input=False)
