"""What the command line says when it gives up, and with which exit code."""

from collections.abc import Sequence
from typing import Any

from service.errors import HeadroomError, ServiceUnreachable

DONE = 0
JOB_FAILED = 1
BAD_INPUT = 2
UNREACHABLE = 3


class Refused(HeadroomError):
    """The service answered with a problem document."""

    def __init__(self, code: str, status: int, detail: str, errors: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(detail)
        self.refusal = code
        self.answered = status
        self.errors = list(errors)


class JobFailed(HeadroomError):
    """The job ended without a report."""

    def __init__(self, job_id: str, code: str, message: str, *, bad_input: bool) -> None:
        super().__init__(f"job {job_id} failed ({code}): {message}")
        self.job_id = job_id
        self.reason = code
        self.bad_input = bad_input


class JobCancelled(HeadroomError):
    """The job was stopped before it left a report."""

    code = "cancelled"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} was cancelled; it leaves no report")
        self.job_id = job_id


def exit_code(error: HeadroomError) -> int:
    """Return the exit code that tells a calling program what kind of trouble `error` is."""
    if isinstance(error, JobFailed):
        return BAD_INPUT if error.bad_input else JOB_FAILED
    if isinstance(error, ServiceUnreachable):
        return UNREACHABLE
    status = error.answered if isinstance(error, Refused) else error.status
    if status == ServiceUnreachable.status:
        return UNREACHABLE
    return BAD_INPUT if 400 <= status < 500 else JOB_FAILED


def as_document(error: HeadroomError) -> dict[str, Any]:
    """Return what `--json` prints for `error`."""
    told: dict[str, Any] = {"code": error.code, "message": str(error)}
    if isinstance(error, Refused):
        told |= {"code": error.refusal, "errors": error.errors}
    if isinstance(error, JobFailed):
        told |= {"code": error.reason, "job_id": error.job_id}
    if isinstance(error, JobCancelled):
        told |= {"job_id": error.job_id}
    return {"error": told}
