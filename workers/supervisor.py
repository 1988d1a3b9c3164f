"""Handles a message to a worker: claims a job, has it measured, and ends it.

A message only wakes the worker. The database decides which job is next, and whether there is any: a message that is
stale or double finds none to claim, or one whose own message then finds none.
Everything that can happen on the way has one end for the job:

| what happens                                     | the job                                       |
|--------------------------------------------------|-----------------------------------------------|
| a report                                         | succeeded, in one transaction with its files   |
| the measurement is killed                        | goes on here; failed if it gets no further    |
| its device has too little memory                 | begins here with half the batch; then failed  |
| the drawing is killed                            | is drawn again, twice at most; then failed    |
| a limit of memory, file size or time is reached  | failed, with the limit                        |
| bad input, a crash, a full disk, a bug here       | failed, with the reason                       |
| somebody asks to cancel it                       | cancelled                                     |
| an audit's model, and all else, is as before     | cancelled, with the reason `unchanged`         |
| the model is large, and this worker takes none   | queued again, for a worker that does           |
| this worker is told to stop                      | queued again                                  |
| the lease is lost                                | somebody else's: nothing is written           |
| this worker dies                                 | running, until the scheduler offers it again  |

Where the job has ended, its working directory is gone afterwards. Where it is to be begun again, the directory stays
and the next attempt on this machine goes on from what is in it. Every claim first removes what jobs that ended
elsewhere have left here.
"""

import errno
import logging
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy.exc import OperationalError, SQLAlchemyError

from service.contracts.progress import Failed
from service.errors import LeaseLost, StoreFailed
from service.settings import Settings
from service.store.artifacts import ArtifactStore
from service.store.files.checkpoints import CheckpointStore
from service.store.job_records import Claim
from service.store.leases import Leases
from workers.attempt import Attempt
from workers.directories import WorkDirectories
from workers.failures import JobFailed, Unchanged
from workers.lease import CancelAsked, Lease, WorkerStopping
from workers.model_files.size_classes import LargeModel
from workers.sandbox.programs import Commands
from workers.sandbox.sandbox import Sandbox, open_sandbox

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_RETRY_SECONDS = 1.0
_GIVEN_BACK = "given back to the queue, because this worker stops"
_LEFT_TO_OTHERS = "given back to the queue, because its model is large"


class Supervisor:
    """Runs jobs one at a time, in the thread that calls `run`, which must live as long as the worker."""

    def __init__(
        self,
        store: Leases,
        artifacts: ArtifactStore,
        settings: Settings,
        *,
        worker: str,
        stopping: Callable[[], bool] = lambda: False,
        commands: Commands | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._settings = settings
        self._worker = worker
        self._stopping = stopping
        self._commands = commands or Commands()
        self._sandbox = sandbox or open_sandbox(settings)
        self._directories = WorkDirectories(settings.home / "work")

    def run(self, job_id: str, dispatch: int) -> str | None:
        """Do the job whose turn it is; the message of a job only wakes the worker. Else as `run_next`."""
        done = self.run_next()
        if done is None:
            log.info("the message of job %s, dispatch %d, finds nothing to do", job_id, dispatch)
        return done

    def run_next(self) -> str | None:
        """Do the job whose turn it is, and return its id; None if there is none.

        Raises nothing that the job should end with.
        """
        seconds, present = self._settings.lease_seconds, self._settings
        claim = self._store.next_claim(self._worker, seconds, present.queues, most_running=present.running_jobs)
        if claim is None:
            return None
        log.info("job %s: attempt %d begins", claim.job_id, claim.attempt)
        with Lease(self._store, claim, seconds, self._stopping) as lease:
            end, what = self._work(claim, lease)
            if self._settle(claim, lease, end, what):
                self._remove_checkpoints(claim)
        self._clear_up()
        return claim.job_id

    def jobs_wait(self) -> bool:
        """Whether there is a job that this worker may take."""
        present = self._settings
        return self._store.job_waits(present.queues, most_running=present.running_jobs)

    def _work(self, claim: Claim, lease: Lease) -> tuple[Callable[[], None] | None, str]:
        """Do the job's work; return the write that ends it, or None, and its name for the log."""
        store = self._store
        try:
            self._clear_up()
            directory = self._directories.take(claim.job_id, claim.attempt)
            commands, sandbox = self._commands, self._sandbox
            attempt = Attempt(store, self._artifacts, lease, claim, directory, self._settings, commands, sandbox)
            artifacts = attempt.run()
            self._remove(claim)
            return partial(store.succeed, claim, artifacts), "succeeded"
        except JobFailed as error:
            failed = error.failed
        except Unchanged:
            self._remove(claim)
            return partial(store.unchanged, claim), "unchanged"
        except LargeModel as error:
            self._remove(claim)
            return partial(store.move_to_large, claim), f"{_LEFT_TO_OTHERS}: {error}"
        except CancelAsked:
            self._remove(claim)
            return partial(store.cancelled, claim), "cancelled"
        except WorkerStopping:
            return partial(store.release, claim), _GIVEN_BACK
        except LeaseLost as error:
            return None, str(error)
        except Exception as error:  # the job must end, and say why, also when the fault is here
            log.error("job %s", claim.job_id, exc_info=error)
            if self._stopping():  # then it is not the job's fault: Celery's handler of SIGQUIT raises in a solo pool
                return partial(store.release, claim), _GIVEN_BACK
            failed = _failed(error)
        self._remove(claim)
        return partial(store.fail, claim, failed), f"failed ({failed.code}): {failed.message}"

    def _remove(self, claim: Claim) -> None:
        # Before the job's end is written: where the disk is full, that takes the room which this makes.
        self._directories.remove(claim.job_id, claim.attempt)

    def _clear_up(self) -> None:
        """Remove the working directories of jobs that have ended, or leave that to the next claim."""
        try:
            self._directories.keep_only(self._store.open_jobs)
        except (SQLAlchemyError, OSError) as error:
            log.warning("what ended jobs left in the working directories is not removed yet: %s", error)

    def _remove_checkpoints(self, claim: Claim) -> None:
        """Remove what the artifact store has of an ended job, or leave that to the scheduler."""
        if self._settings.artifacts_url is None:
            return
        try:
            CheckpointStore(self._artifacts.storage).remove(claim.job_id)
        except (StoreFailed, OSError) as error:
            log.warning("job %s: its checkpoints are not removed yet: %s", claim.job_id, error)

    def _settle(self, claim: Claim, lease: Lease, end: Callable[[], None] | None, what: str) -> bool:
        """Write the job's end, trying again while the database is away and the lease may still be ours.

        Returns whether the job has ended by that, and is not given back.
        """
        try:
            while end is not None:
                try:
                    end()
                    break
                except OperationalError as error:
                    log.warning("job %s: its end was not written, trying again: %s", claim.job_id, error)
                    lease.check_owned()
                    if self._stopping():
                        raise LeaseLost("this worker stops, and leaves the job's lease to run out") from error
                    time.sleep(_RETRY_SECONDS)
        except LeaseLost as error:
            end, what = None, str(error)
        log.info("job %s: %s", claim.job_id, what)
        return end is not None and not what.startswith((_GIVEN_BACK, _LEFT_TO_OTHERS))


def _failed(error: Exception) -> Failed:
    cause = error.__cause__ if isinstance(error, StoreFailed) else error
    if isinstance(cause, OSError) and cause.errno in _FULL:
        return Failed(code="disk-full", message=f"the report could not be stored: {error}", bad_input=False)
    if isinstance(error, StoreFailed):
        return Failed(code=error.code, message=f"the report could not be stored: {error}", bad_input=False)
    return Failed(code="internal", message=f"{type(error).__name__}: {error}", bad_input=False)
