"""The failures of jobs: their codes and messages, where the child process did not report one itself."""

import errno
import os
import signal

from service.contracts.progress import Failed
from workers.children import Ended
from workers.measurement.errors import device_full

KILLED = "killed"
"""Code of the failure of a child that SIGKILL ended."""
OUT_OF_MEMORY = "out-of-memory"
"""Code of the failure of a child that the host refused memory."""
DEVICE_FULL = "device-out-of-memory"
LARGE_MODEL = "large-model"
"""Code of what fetches a model that is left to workers for large ones."""
_DEVICE_FULL_IN_A_LIBRARY = "Error out of memory at line"
"""How bitsandbytes ends the process when one of its own CUDA calls finds no memory."""
_NO_MEMORY = ("MemoryError", "std::bad_alloc", "memory allocation of", "allocate memory")
"""How Python, C++, Rust and torch end a process that gets no memory."""


class Unchanged(Exception):
    """The job would measure what was measured before."""


class JobFailed(Exception):
    """The job ends failed."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


def unexplained(what: str, ended: Ended) -> Failed:
    """Return the failure of a child that reported none itself."""
    if ended.status == -signal.SIGKILL:
        message = f"{what} was ended by SIGKILL; most often that is the system, out of memory"
        return Failed(code=KILLED, message=message, bad_input=False)
    if any(sign in line for sign in _NO_MEMORY for line in ended.errors):
        message = f"{what} ran out of memory: {ended.last_error}"
        return Failed(code=OUT_OF_MEMORY, message=message, bad_input=False)
    if os.strerror(errno.ENOSPC) in ended.last_error:
        return Failed(code="disk-full", message=f"{what} failed: {ended.last_error}", bad_input=False)
    how = f"was ended by {signal.Signals(-ended.status).name}" if ended.status < 0 else f"ended with {ended.status}"
    return internal(f"{what} {how}: {ended.last_error or 'it printed no error message'}")


def device_full_in_library(ended: Ended, sequences: int | None, sequence_length: int) -> Failed | None:
    """Return the failure of a child that a library ended because its device had no memory left, else None.

    `sequences` are those of a batch, as far as the child said.
    """
    said = next((line for line in reversed(ended.errors) if _DEVICE_FULL_IN_A_LIBRARY in line), None)
    if said is None:
        return None
    batch = None if sequences is None else (sequences, sequence_length)
    message = device_full("the measurement's device", said.strip(), batch)
    return Failed(code=DEVICE_FULL, message=message, bad_input=False, batch_sequences=sequences)


def internal(message: str) -> Failed:
    """Return a failure that no input caused."""
    return Failed(code="internal", message=message, bad_input=False)
