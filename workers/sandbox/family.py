"""The processes of a job's program: itself and all its descendants, in any process group.

A process that leaves its group and whose parent ends would become a child of init, out of sight. The worker asks to be
the one that such processes fall to (`PR_SET_CHILD_SUBREAPER`), so all of them stay below the worker. It runs one
program at a time: what is below it and was not before belongs to the program.
"""

import ctypes
import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

log = logging.getLogger(__name__)

_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36
_ROUNDS = 100
_END_SECONDS = 5.0
_COUNTED = ("RssAnon:", "RssShmem:")
"""What a process holds for itself. Pages of files, such as mapped weights, are given up when memory is short."""


def settle_worker() -> None:
    """Become the parent of orphaned descendants, and protect this process's memory from its own user."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class Family:
    """The processes below this one, but for those that were there when the family began."""

    def __init__(self, strangers: frozenset[int]) -> None:
        self._strangers = strangers

    @classmethod
    def begin(cls) -> Self:
        """Begin a family, before its first process starts."""
        return cls(frozenset(process.pid for process in psutil.Process().children()))

    def members(self) -> list[psutil.Process]:
        """Return the processes that there are now, and those that have ended and were not waited for."""
        strangers = set(self._strangers)
        members = []
        for process in psutil.Process().children(recursive=True):  # parents before their children
            with suppress(psutil.NoSuchProcess):
                if process.pid in strangers or process.ppid() in strangers:
                    strangers.add(process.pid)
                else:
                    members.append(process)
        return members

    def resident_bytes(self) -> int:
        """Return the memory that the processes hold, without pages of files."""
        return sum(_resident_bytes(process.pid) for process in self.members())

    def end(self) -> None:
        """Kill whatever is left, also what is started meanwhile."""
        for _ in range(_ROUNDS):
            members = self.members()
            if not members:
                return
            for process in members:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    process.kill()
            psutil.wait_procs(members, timeout=_END_SECONDS)
        log.error("processes of a job are left: %s", ", ".join(str(process.pid) for process in self.members()))


def _resident_bytes(pid: int) -> int:
    """Return what one process holds; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_COUNTED))
