"""Why a job ends without a report, where the child that failed did not say so itself."""

import errno
import os
import signal

from service.contracts.progress import Failed
from workers.children import Ended

KILLED = "killed"
"""Code of the failure of a child that SIGKILL ended."""


class Unchanged(Exception):
    """The job would measure what was measured before."""


class JobFailed(Exception):
    """The job ends failed."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


def unexplained(what: str, ended: Ended) -> Failed:
    """Return why a child that did not say so itself ended."""
    if ended.status == -signal.SIGKILL:
        message = f"{what} was ended by SIGKILL; most often that is the system, out of memory"
        return Failed(code=KILLED, message=message, bad_input=False)
    if os.strerror(errno.ENOSPC) in ended.last_error:
        return Failed(code="disk-full", message=f"{what} failed: {ended.last_error}", bad_input=False)
    how = f"was ended by {signal.Signals(-ended.status).name}" if ended.status < 0 else f"ended with {ended.status}"
    return internal(f"{what} {how}: {ended.last_error or 'it printed no error message'}")


def internal(message: str) -> Failed:
    """Return a failure that is nobody's input's fault."""
    return Failed(code="internal", message=message, bad_input=False)
