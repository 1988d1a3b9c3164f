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
from functools import partial
from importlib.metadata import version
from pathlib import Path

from service.contracts.audits.resolution import Resolution, Terms
from service.contracts.files import StoredFile, format_of
from service.contracts.progress import Failed, Finished, Progress
from service.contracts.request import SAMPLE, Analysis, CalibrationFile, LabelledFile, MeasurementRequest, ModelFiles
from service.contracts.warnings import Warning
from service.settings import Settings
from service.store.artifacts import ArtifactStore
from service.store.job_records import Artifact, Claim
from service.store.leases import Leases
from workers.bundle import BUNDLE, media_type, report_files, write_bundle
from workers.checkpoints import as_here, checkpoints_of, with_batch
from workers.children import Ended
from workers.failures import (
    DEVICE_FULL,
    KILLED,
    OUT_OF_MEMORY,
    JobFailed,
    Unchanged,
    device_full_in_library,
    internal,
    unexplained,
)
from workers.lease import Lease
from workers.measurement.runtime.workspace import unfinished
from workers.model_files.cache import ModelCache
from workers.model_files.resolution import Resolved, identity
from workers.model_files.roots import directory_within
from workers.model_files.size_classes import check_fetched, check_size, fetch_options, weights_bytes
from workers.relay import Relay
from workers.retrying_artifacts import RetryingArtifacts
from workers.samples import CALIBRATION, LABELLED, MODEL
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
        self._settings, self._commands, self._sandbox = settings, commands, sandbox
        self._programs = Programs(sandbox, lease, claim, directory, settings.fetch_seconds)
        self._checkpoints = checkpoints_of(store, artifacts, lease, claim, self._request_file, self._out, settings)
        self._models = ModelCache(settings.model_cache_bytes)
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
        self._sandbox.open(self._out.parent, self._settings.home)
        asked = self._request()
        left = self._left_request(asked)
        if left is None or not self._is_measured():
            self._discard(self._out)
            with self._checkpoints:
                self._sandbox.open(self._out.parent, self._settings.home)  # with what was fetched
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
        | the device has too little memory   | anew with half the batch, once in a job's life                  |
        | it cannot go on from what was left | anew, which leaves nothing to go on from                        |
        | of anything else                   | never                                                          |

        The memory that a killed one lacked may be there by then; but what needs more than there is must end.
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

        Another batch is another measurement, with other last digits and streams that are laid out otherwise: what the
        one before left, if anything, cannot be gone on from.
        """
        self._discard(unfinished(self._out))
        batch = "1 sequence" if sequences == 1 else f"{sequences} sequences"
        message = f"{full.message}. The measurement began again with {batch} in a batch."
        advice = f"Use --batch-sequences {sequences} next time to avoid the failed first attempt."
        Relay(self._store, self._claim).warning(Warning(code="smaller-batch", message=message, advice=advice))
        return with_batch(request, sequences)

    def _run_measurement(self, model: Path) -> None:
        relay = Relay(self._store, self._claim)
        command = [*self._commands.measurement, str(self._request_file), str(self._out)]
        ended = self._programs.measure(command, relay.line, weights_bytes(model))
        relay.flush()
        self._layers = relay.layers
        self._demand_success("the measurement", relay, ended)
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
        self._programs.draw([*self._commands.reporting, str(self._out)])
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

    def _request(self) -> MeasurementRequest:
        asked, terms = self._claim.request, self._claim.terms
        model = self._model(asked.model) if terms is None else self._resolved(terms)
        check_size(model.path, self._settings)
        if asked.earlier is not None:
            model = model.model_copy(update={"fingerprint": asked.earlier.fingerprint})
        analysis = {name: getattr(asked, name) for name in Analysis.model_fields}
        return MeasurementRequest(
            job_id=self._claim.job_id,
            model=model,
            calibration=self._calibration(),
            labelled=self._labelled(),
            device=self._settings.device,
            any_model_type=self._settings.any_model_type,
            memory_bytes=self._settings.memory,
            checkpoint_seconds=self._settings.checkpoint_seconds,
            **analysis,
        )

    def _model(self, name: str) -> ModelFiles:
        if name == SAMPLE:
            return ModelFiles(path=MODEL, source=SAMPLE)
        if name.startswith("/"):
            return ModelFiles(path=directory_within(Path(name), self._settings.model_roots), source=name)
        return self._models.fetched(name, partial(self._fetched, name))

    def _fetched(self, name: str) -> ModelFiles:
        target, relay = self._directory / "model.json", Relay(self._store, self._claim)
        fetching = [*self._commands.hub, *fetch_options(self._settings), name, str(target)]
        ended = self._programs.fetch(fetching, self._temporary, relay.line)
        check_fetched(relay.last_word)
        self._demand_success("fetching the model", relay, ended)
        return ModelFiles.model_validate_json(target.read_text())

    def _resolved(self, terms: Terms) -> ModelFiles:
        """Return the model of an audit's job as it is now, fetched if need be, and store its resolution.

        Raises Unchanged for a job that would measure what the terms say is known.
        """
        asked = self._claim.request
        target = self._directory / "resolved.json"
        options = [f"--root={root}" for root in self._settings.model_roots]
        options += ["--newest-in"] if terms.newest_in else []
        relay = Relay(self._store, self._claim)
        resolving = [*self._commands.resolution, asked.model, self._settings.device, str(target), *options]
        ended = self._programs.fetch(resolving, self._temporary, relay.line)
        self._demand_success("resolving the model", relay, ended)
        resolved = Resolved.model_validate_json(target.read_text())
        fingerprint, needed = resolved.fingerprint, terms.fingerprint
        if needed not in (None, fingerprint):
            message = f"model: {resolved.model!r} has other weights, {fingerprint}; needed: {needed}"
            raise JobFailed(Failed(code="model-changed", message=message, bad_input=True))
        resolution = Resolution(
            identity=identity(resolved.content, resolved.hardware, asked),
            **resolved.model_dump(exclude={"content", "hardware"}),
        )
        self._store.resolved(self._claim, resolution)
        if resolution.identity == terms.unless_identity:
            raise Unchanged
        if resolved.revision is None:
            return self._model(resolved.model)
        fetched = self._model(f"{resolved.model.partition('@')[0]}@{resolved.revision}")
        return fetched.model_copy(update={"source": resolved.model})

    def _calibration(self) -> CalibrationFile:
        stored = self._claim.request.calibration
        if stored is None:
            return CalibrationFile(path=CALIBRATION, source=SAMPLE)
        path = self._readable(stored)
        return CalibrationFile(path=path, source=stored.name, format=format_of(stored.name))

    def _labelled(self) -> LabelledFile | None:
        stored, model = self._claim.request.labelled, self._claim.request.model
        if stored is None:
            return LabelledFile(path=LABELLED, source=SAMPLE) if model == SAMPLE else None
        return LabelledFile(path=self._readable(stored), source=stored.name)

    def _readable(self, stored: StoredFile) -> Path:
        """Return a file from the store where the measurement can read it, until the attempt ends."""
        return self._sandbox.share(self._artifacts.path(stored.sha256), self._directory)

    def _demand_success(self, what: str, relay: Relay, ended: Ended) -> None:
        if isinstance(relay.last_word, Failed):
            raise JobFailed(self._sandbox.explained(relay.last_word, ended))
        if ended.status != 0 or not isinstance(relay.last_word, Finished):
            batch = relay.batch_sequences, self._claim.request.sequence_length
            failed = device_full_in_library(ended, *batch) or unexplained(what, ended)
            raise JobFailed(self._sandbox.explained(failed, ended))
