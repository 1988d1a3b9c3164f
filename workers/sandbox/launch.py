"""Confines this process and becomes a job's program.

    python -I -S launch.py CONFINEMENT PROGRAM [ARGUMENT...]

CONFINEMENT is one JSON object:

| key | value |
|---|---|
| `parent` | process id of the worker; when it ends, the program is killed |
| `cgroup` | directory of the cgroup to join, or null |
| `network` | how to leave the network: `namespace`, `user-namespace`, or null to keep it |
| `rlimits` | name of a resource limit, such as `RLIMIT_DATA`, to its value |
| `user` | `{"uid": ..., "gid": ..., "groups": [...]}` to become another user, or null |

The program takes the place of this process, so nothing stays between it and the worker. Needs the standard library
only, and starts without site packages: it runs once for every program of a job. Exit status 125: it could not confine
the process or start the program; standard error says why.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FAILED = 125

# From <linux/sched.h>, <linux/prctl.h> and <linux/capability.h>.
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_KEPT_CAPABILITIES = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: root still reads models that belong to other users."""
_LAST_CAPABILITY = 63
_CPU_GRACE_SECONDS = 5
"""Between SIGXCPU, which a program may catch, and SIGKILL."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_IS_LINUX = sys.platform == "linux"


def main(arguments: Sequence[str]) -> int:
    """Run the program; returns only when that fails."""
    confinement, program = json.loads(arguments[0]), arguments[1:]
    try:
        confine(confinement)
    except OSError as error:
        print(f"sandbox: the program cannot be confined: {error}", file=sys.stderr)
        return FAILED
    try:
        os.execve(program[0], list(program), os.environ)
    except OSError as error:
        print(f"sandbox: {program[0]!r} cannot be started: {error.strerror}", file=sys.stderr)
    return FAILED


def confine(confinement: dict[str, Any]) -> None:
    """Apply a confinement to this process. Raises OSError."""
    if confinement["cgroup"] is not None:
        Path(confinement["cgroup"], "cgroup.procs").write_text("0")  # 0 is the process that writes
    _leave_network(confinement["network"])
    if _IS_LINUX and os.geteuid() == 0:
        _drop_capabilities()
    for name, value in confinement["rlimits"].items():
        _limit(name, value)
    if (user := confinement["user"]) is not None:
        os.setgroups(user["groups"])
        os.setgid(user["gid"])
        os.setuid(user["uid"])
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.umask(0o077)
    # Python ignores these, and a program inherits that.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # Only now: a change of user cancels the request.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != confinement["parent"]:  # it ended before the kernel was asked
        os._exit(FAILED)


def _leave_network(how: str | None) -> None:
    if how == "namespace":
        _unshare(_CLONE_NEWNET)
    elif how == "user-namespace":
        uid, gid = os.geteuid(), os.getegid()
        _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        # The user stays who it is; a process without privileges may map no other, and not before it denies setgroups.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _drop_capabilities() -> None:
    """Take from root what lets it reach other processes, the network and the kernel; in force after exec."""
    for capability in range(_LAST_CAPABILITY + 1):
        if capability not in _KEPT_CAPABILITIES and _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            return  # past the kernel's last one, or root in a container that has no capability to drop


def _limit(name: str, value: int) -> None:
    kind = getattr(resource, name)
    _, hardest = resource.getrlimit(kind)
    ceiling = sys.maxsize if hardest == resource.RLIM_INFINITY else hardest
    soft = min(value, ceiling)
    grace = _CPU_GRACE_SECONDS if name == "RLIMIT_CPU" else 0
    resource.setrlimit(kind, (soft, min(soft + grace, ceiling)))


def _unshare(flags: int) -> None:
    if _LIBC.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")


def _prctl(option: int, value: int) -> None:
    if _IS_LINUX and _LIBC.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
