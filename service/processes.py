"""Starts child processes that end with their parent, and ends them with everything that they started.

A parent that is killed with `kill -9` cannot stop its children, so on Linux each child asks the kernel for a signal
when its parent ends (`PR_SET_PDEATHSIG`). Every child leads a process group of its own: Ctrl-C in the terminal reaches
only the parent, which then stops the child, and the child is ended together with its own children.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
# Looked up before any fork: the child must do as little as possible between fork and exec.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def spawn(
    command: Sequence[str], *, on_parent_death: signal.Signals = signal.SIGKILL, **options: Any
) -> subprocess.Popen[bytes]:
    """Start `command` in a process group of its own, to be signalled when this process dies.

    The kernel watches the thread that calls this, so call it from one that lives as long as the child may, such
    as the main thread. Where the system has no such watch (macOS), only the process group is set. `options` go
    to `subprocess.Popen`, whose OSError is passed on when the program cannot be started.
    """
    tie = _tie_to(os.getpid(), on_parent_death) if _LIBC is not None else None
    return subprocess.Popen(command, start_new_session=True, preexec_fn=tie, **options)


def parent_death_signal() -> int:
    """Return the signal that this process gets when its parent dies; 0: none. Call it from the main thread.

    The kernel keeps it for each thread, and a new thread has none.
    """
    number = ctypes.c_int(0)
    if _LIBC is not None:
        _LIBC.prctl(_PR_GET_PDEATHSIG, ctypes.byref(number))
    return number.value


def replace_process(arguments: Sequence[str], on_parent_death: int) -> NoReturn:
    """Have Python run `arguments` in this process, which from then on gets the signal when its parent dies; 0: none.

    It may be called from any thread, whose own signal would be used otherwise. Raises OSError.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, on_parent_death)
    os.execv(sys.executable, [sys.executable, *arguments])


def terminate(process: subprocess.Popen[bytes], grace_seconds: float) -> int:
    """End a spawned process and its whole group: SIGTERM, then SIGKILL after `grace_seconds`.

    Returns the exit status. Safe to call on a process that has ended.
    """
    _signal_group(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_seconds)
    # Also when the leader has gone in time: it may have left members of its group behind.
    _signal_group(process, signal.SIGKILL)
    return process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _tie_to(parent: int, number: signal.Signals) -> Callable[[], None]:
    def tie() -> None:
        assert _LIBC is not None
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # the parent died before the kernel was asked
            os._exit(1)

    return tie
