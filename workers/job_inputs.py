"""Gathers what the measurement of one attempt at a job reads: the model's files and the texts, as one request."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from service.contracts.audits.resolution import Resolution, Terms
from service.contracts.files import StoredFile, format_of
from service.contracts.progress import Failed
from service.contracts.request import SAMPLE, Analysis, CalibrationFile, LabelledFile, MeasurementRequest, ModelFiles
from service.settings import Settings
from service.store.job_records import Claim
from service.store.leases import Leases
from workers.failures import JobFailed, Unchanged
from workers.model_files.cache import ModelCache
from workers.model_files.resolution import Resolved, identity
from workers.model_files.roots import directory_within
from workers.model_files.size_classes import check_fetched, check_size, fetch_options
from workers.relay import Relay
from workers.retrying_artifacts import RetryingArtifacts
from workers.samples import CALIBRATION, LABELLED, MODEL
from workers.sandbox.programs import Programs
from workers.sandbox.sandbox import Sandbox


@dataclass(frozen=True)
class JobInputs:
    """Fetches and resolves the inputs of a job into files that the sandboxed measurement can read."""

    claim: Claim
    directory: Path
    """The attempt's own, with a directory `tmp`."""
    settings: Settings
    store: Leases
    artifacts: RetryingArtifacts
    sandbox: Sandbox
    programs: Programs
    models: ModelCache
    """Open: what it holds stays on this machine until it is closed."""

    def request(self) -> MeasurementRequest:
        """Return the measurement that the job asks for, with all of its files at hand.

        Raises JobFailed for what cannot be had or is not allowed, LargeModel, Unchanged for an audit's job that would
        measure what is known, and what the lease's check raises.
        """
        asked, terms = self.claim.request, self.claim.terms
        model = self._model(asked.model) if terms is None else self._resolved(terms)
        check_size(model.path, self.settings)
        if asked.earlier is not None:
            model = model.model_copy(update={"fingerprint": asked.earlier.fingerprint})
        analysis = {name: getattr(asked, name) for name in Analysis.model_fields}
        return MeasurementRequest(
            job_id=self.claim.job_id,
            model=model,
            calibration=self._calibration(),
            labelled=self._labelled(),
            device=self.settings.device,
            any_model_type=self.settings.any_model_type,
            memory_bytes=self.settings.memory,
            checkpoint_seconds=self.settings.checkpoint_seconds,
            **analysis,
        )

    def _model(self, name: str) -> ModelFiles:
        if name == SAMPLE:
            return ModelFiles(path=MODEL, source=SAMPLE)
        if name.startswith("/"):
            return ModelFiles(path=directory_within(Path(name), self.settings.model_roots), source=name)
        return self.models.fetched(name, partial(self._fetched, name))

    def _fetched(self, name: str) -> ModelFiles:
        target, relay = self.directory / "model.json", Relay(self.store, self.claim)
        fetching = [*self.programs.commands.hub, *fetch_options(self.settings), name, str(target)]
        ended = self.programs.fetch(fetching, relay.line)
        check_fetched(relay.last_word)
        self.programs.demand_success("fetching the model", relay, ended)
        return ModelFiles.model_validate_json(target.read_text())

    def _resolved(self, terms: Terms) -> ModelFiles:
        """Return the model of an audit's job as it is now, fetched if need be, and store its resolution.

        Raises Unchanged for a job that would measure what the terms say is known.
        """
        asked = self.claim.request
        resolved = self._resolution(terms)
        fingerprint, needed = resolved.fingerprint, terms.fingerprint
        if needed not in (None, fingerprint):
            message = f"model: {resolved.model!r} has other weights, {fingerprint}; needed: {needed}"
            raise JobFailed(Failed(code="model-changed", message=message, bad_input=True))
        resolution = Resolution(
            identity=identity(resolved.content, resolved.hardware, asked),
            **resolved.model_dump(exclude={"content", "hardware"}),
        )
        self.store.resolved(self.claim, resolution)
        if resolution.identity == terms.unless_identity:
            raise Unchanged
        if resolved.revision is None:
            return self._model(resolved.model)
        fetched = self._model(f"{resolved.model.partition('@')[0]}@{resolved.revision}")
        return fetched.model_copy(update={"source": resolved.model})

    def _resolution(self, terms: Terms) -> Resolved:
        """Return what the name of the model stands for now, found by a program of its own."""
        target, relay = self.directory / "resolved.json", Relay(self.store, self.claim)
        options = [f"--root={root}" for root in self.settings.model_roots]
        options += ["--newest-in"] if terms.newest_in else []
        program = self.programs.commands.resolution
        resolving = [*program, self.claim.request.model, self.settings.device, str(target), *options]
        ended = self.programs.fetch(resolving, relay.line)
        self.programs.demand_success("resolving the model", relay, ended)
        return Resolved.model_validate_json(target.read_text())

    def _calibration(self) -> CalibrationFile:
        stored = self.claim.request.calibration
        if stored is None:
            return CalibrationFile(path=CALIBRATION, source=SAMPLE)
        return CalibrationFile(path=self._readable(stored), source=stored.name, format=format_of(stored.name))

    def _labelled(self) -> LabelledFile | None:
        stored, model = self.claim.request.labelled, self.claim.request.model
        if stored is None:
            return LabelledFile(path=LABELLED, source=SAMPLE) if model == SAMPLE else None
        return LabelledFile(path=self._readable(stored), source=stored.name)

    def _readable(self, stored: StoredFile) -> Path:
        """Return a file from the store where the measurement can read it, until the attempt ends."""
        return self.sandbox.share(self.artifacts.path(stored.sha256), self.directory)
