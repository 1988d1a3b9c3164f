"""Shares an attempt's checkpoints through the artifact store: fetches another machine's, and stores this one's.

A thread watches the measurement's directory. A new checkpoint is linked beside it, for the measurement removes it
when the next is whole, and put into the store from there. What fails is tried again with the next checkpoint: it may
cost work after this machine is lost, and nothing otherwise.
"""

import logging
import os
import shutil
import stat
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Event, Thread

from service.contracts.request import MeasurementRequest
from service.contracts.warnings import Warning
from service.errors import LeaseLost, StoreFailed
from service.settings import Settings
from service.storage.port import Storage
from service.store.artifacts import ArtifactStore
from service.store.files.checkpoints import Checkpoint, CheckpointStore
from service.store.job_records import Claim
from service.store.leases import Leases
from workers.lease import Lease
from workers.measurement.runtime.workspace import checkpoint_files, latest_checkpoint, layers_done, unfinished
from workers.relay import Relay
from workers.sandbox.user import find_user

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
_STOP_SECONDS = 5.0


class _Stopped(Exception):
    """The measurement has ended, so that its checkpoint is no longer needed."""


class SharedCheckpoints:
    """The checkpoints of one attempt at a job."""

    def __init__(
        self, jobs: Leases, storage: Storage, lease: Lease, claim: Claim, request_file: Path, out: Path, owner: int
    ) -> None:
        """`request_file` has the request of the measurement, whose output will be `out`; `owner` is its user's id."""
        self._owner = owner
        self._jobs = jobs
        self._store = CheckpointStore(storage)
        self._lease = lease
        self._claim = claim
        self._request_file = request_file
        self._directory = request_file.parent
        self._unfinished = unfinished(out)
        self._stopped = Event()
        self._thread = Thread(target=self._watch, name=f"checkpoints of {claim.job_id}", daemon=True)

    def __enter__(self) -> None:
        """Fetch what another machine has kept, if it is further than what is here, with the request it belongs to.

        Raises LeaseLost, CancelAsked and WorkerStopping. What cannot be fetched is measured again; the job's events say
        so.
        """
        try:
            kept = self._store.latest(self._claim.job_id)
            if kept is not None and kept.layers_done > layers_done(latest_checkpoint(self._unfinished)):
                self._fetch(kept)
                self._request_file.write_text(kept.request)
                log.info("job %s: %d layers were done by another worker", self._claim.job_id, kept.layers_done)
        except (OSError, StoreFailed) as error:
            log.warning("job %s: its checkpoint cannot be fetched: %s", self._claim.job_id, error)
            message = f"The checkpoint of an earlier attempt cannot be used, so its layers are measured again: {error}."
            advice = "Nothing needs to be done: the report does not differ, it only takes longer."
            warning = Warning(code="checkpoint-unusable", message=message, advice=advice)
            Relay(self._jobs, self._claim).warning(warning)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(_STOP_SECONDS)

    def _fetch(self, kept: Checkpoint) -> None:
        fetched, replaced = self._directory / "fetched", self._directory / "replaced"
        for leftover in (fetched, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        self._store.fetch(self._claim.job_id, kept, fetched, self._lease.check)
        if self._unfinished.exists():
            self._unfinished.rename(replaced)
        fetched.rename(self._unfinished)
        shutil.rmtree(replaced, ignore_errors=True)

    def _watch(self) -> None:
        seen = _made(latest_checkpoint(self._unfinished))
        while not self._stopped.wait(POLL_SECONDS):
            present = latest_checkpoint(self._unfinished)
            made = _made(present)
            if present is None or made is None or made == seen:
                continue
            try:
                self._save(present)
            except (_Stopped, LeaseLost):
                return
            except (OSError, StoreFailed) as error:
                log.warning("job %s: a checkpoint was not stored: %s", self._claim.job_id, error)
            seen = made

    def _save(self, checkpoint: Path) -> None:
        request = self._request_file.read_text()
        links = self._directory / "links"
        shutil.rmtree(links, ignore_errors=True)
        links.mkdir()
        found = checkpoint_files(self._unfinished, checkpoint).items()
        files = {name: linked(path, links / f"{number}", self._owner) for number, (name, path) in enumerate(found)}
        self._store.save(self._claim, layers_done(checkpoint), request, files, self._check)
        shutil.rmtree(links, ignore_errors=True)

    def _check(self) -> None:
        self._lease.check_owned()
        if self._stopped.is_set():
            raise _Stopped


def linked(file: Path, link: Path, owner: int) -> Path:
    """Give a file of a program that is running a second name, out of its reach, and return that.

    Raises OSError for what is not a file of user `owner`: the program may have put a link to somebody else's there.
    """
    os.link(file, link, follow_symlinks=False)
    found = link.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != owner:
        raise OSError(f"{file} is not a file of the measurement")
    return link


def _made(checkpoint: Path | None) -> tuple[str, int] | None:
    """Return the name and the time of a checkpoint; one of an earlier measurement may have the same name."""
    try:
        return None if checkpoint is None else (checkpoint.name, checkpoint.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


def checkpoints_of(
    jobs: Leases,
    artifacts: ArtifactStore,
    lease: Lease,
    claim: Claim,
    request_file: Path,
    out: Path,
    settings: Settings,
) -> AbstractContextManager[None]:
    """Return a context in which checkpoints are shared, where the artifact store is one that other machines reach."""
    if settings.artifacts_url is None:
        return nullcontext()
    user = find_user(settings.measurement_user)
    owner = os.getuid() if user is None else user.uid
    return SharedCheckpoints(jobs, artifacts.storage, lease, claim, request_file, out, owner)


def as_here(kept: MeasurementRequest, asked: MeasurementRequest) -> MeasurementRequest:
    """Return the request of an earlier attempt with the paths, the memory and the device of this machine."""
    update = {
        "model": kept.model.model_copy(update={"path": asked.model.path}),
        "calibration": kept.calibration.model_copy(update={"path": asked.calibration.path}),
        "memory_bytes": asked.memory_bytes,
        "checkpoint_seconds": asked.checkpoint_seconds,
    }
    if kept.labelled is not None and asked.labelled is not None:
        update["labelled"] = kept.labelled.model_copy(update={"path": asked.labelled.path})
    if kept.device.partition(":")[0] == asked.device.partition(":")[0]:
        update["device"] = asked.device
    return kept.model_copy(update=update)


def with_batch(request: MeasurementRequest, sequences: int | None) -> MeasurementRequest:
    """Return a request with another number of sequences in a batch."""
    return request.model_copy(update={"batch_sequences": sequences})
