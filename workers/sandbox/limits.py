"""The limits of a job's programs, and the failures of those that reach one.

| limit | held by | failure |
|---|---|---|
| memory | a cgroup; else a watch on what is resident | `memory-limit` |
| one allocation | RLIMIT_DATA, where there is no cgroup | `out-of-memory` |
| size of a file | RLIMIT_FSIZE | `file-size-limit` |
| CPU time of a process | RLIMIT_CPU | `cpu-limit` |
| time of an attempt | the worker | `deadline` |

RLIMIT_AS is of no use: it counts mapped weights and what CUDA reserves.
"""

import math
import os
from dataclasses import dataclass

from pydantic import ByteSize

from service.contracts.progress import Failed
from service.settings import Settings
from workers.sandbox.memory import machine_memory

MEMORY_LIMIT, FILE_SIZE_LIMIT, CPU_LIMIT, DEADLINE = "memory-limit", "file-size-limit", "cpu-limit", "deadline"
LIMIT_CODES = (MEMORY_LIMIT, FILE_SIZE_LIMIT, CPU_LIMIT, DEADLINE)

_SHARE_OF_MACHINE = 0.9
_UNTOUCHED_BYTES = 8 << 30
"""What RLIMIT_DATA allows beyond the memory limit: stacks, pools and reservations of CUDA that are never written to."""
_MAPPINGS = 1024
"""How often RLIMIT_DATA allows a weight file to be mapped: safetensors maps the whole file, privately and writable,
each time that it is opened. Every tensor in use holds such a mapping, and a layer of experts has hundreds of tensors.
"""


@dataclass(frozen=True)
class Limits:
    """What one program of a job may use."""

    memory_bytes: int
    file_bytes: int
    seconds: float
    """Of one attempt at a job."""

    def rlimits(self, *, in_cgroup: bool, weights: int = 0) -> dict[str, int]:
        """Return the resource limits of a process; those of memory only where no cgroup holds it.

        `weights` is the size of the weight files that the process maps, in bytes.
        """
        cpus = os.cpu_count() or 1
        limits = {
            "RLIMIT_CORE": 0,
            "RLIMIT_FSIZE": self.file_bytes,
            # No process uses more within the deadline; one that escapes the worker's eyes ends by this.
            "RLIMIT_CPU": math.ceil(self.seconds * cpus),
        }
        data = self.memory_bytes + _UNTOUCHED_BYTES + _MAPPINGS * weights
        return limits if in_cgroup else limits | {"RLIMIT_DATA": data}

    def memory_reached(self, what: str, bytes_: int | None, by: str) -> Failed:
        """Return the failure of a program that was ended because it used too much memory.

        Args:
            what: The program, as in "the measurement".
            bytes_: What it had reached; None where that is not known.
            by: Who noticed.
        """
        reached = "" if bytes_ is None else f"; it had reached {readable(bytes_)}"
        message = (
            f"{what} needs more memory than a job may have, {readable(self.memory_bytes)} (HEADROOM_JOB_MEMORY)"
            f"{reached}, and was ended by {by}; use a smaller model or fewer tokens, or raise the limit"
        )
        return _failed(MEMORY_LIMIT, message)

    def file_size_reached(self, what: str) -> Failed:
        """Return the failure of a program that wrote too large a file."""
        limit = readable(self.file_bytes)
        message = f"{what} wrote a file larger than a job's files may be, {limit} (HEADROOM_JOB_FILE_BYTES)"
        return _failed(FILE_SIZE_LIMIT, message)

    def cpu_reached(self, what: str) -> Failed:
        """Return the failure of a program that computed for too long."""
        limit = self.rlimits(in_cgroup=True)["RLIMIT_CPU"]
        message = f"{what} used more CPU time than a job may, {limit} s (HEADROOM_JOB_SECONDS times the CPUs)"
        return _failed(CPU_LIMIT, message)

    def deadline_reached(self) -> Failed:
        """Return the failure of an attempt that took too long."""
        message = f"the job took longer than a job may, {self.seconds:g} s (HEADROOM_JOB_SECONDS)"
        return _failed(DEADLINE, message)


def limits_of(settings: Settings) -> Limits:
    """Return the limits that the settings say, by default for memory a share of what this process may have."""
    memory = settings.job_memory or int(machine_memory() * _SHARE_OF_MACHINE)
    return Limits(int(memory), int(settings.job_file_bytes), settings.job_seconds)


def readable(bytes_: int) -> str:
    """Return a size with a unit, such as 4.0GiB."""
    return ByteSize(bytes_).human_readable()


def _failed(code: str, message: str) -> Failed:
    return Failed(code=code, message=message, bad_input=False)
