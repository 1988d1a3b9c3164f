"""Confines this process and becomes a job's program.

    python -I -S launch.py CONFINEMENT PROGRAM [ARGUMENT...]

CONFINEMENT is one JSON object:

| key | value |
|---|---|
| `parent` | process id of the worker; when it ends, the program is killed |
| `cgroup` | directory of the cgroup to join, or null |
| `network` | how to leave the network: `namespace`, `user-namespace`, `seccomp`, or null to keep it |
| `rlimits` | name of a resource limit, such as `RLIMIT_DATA`, to its value |
| `user` | `{"uid": ..., "gid": ..., "groups": [...]}` to become another user, or null |

The program takes the place of this process, so nothing stays between it and the worker. Needs the standard library
only, and starts without site packages: it runs once for every program of a job. Exit status 125: it could not confine
the process or start the program; standard error says why.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FAILED = 125

# From <linux/sched.h>, <linux/prctl.h> and <linux/capability.h>.
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_KEPT_CAPABILITIES = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: root still reads models that belong to other users."""
_LAST_CAPABILITY = 63
_CPU_GRACE_SECONDS = 5
"""Between SIGXCPU, which a program may catch, and SIGKILL."""
# From <linux/seccomp.h>, <linux/bpf_common.h> and <linux/audit.h>.
_SECCOMP_MODE_FILTER = 2
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in what a filter sees of a system call; the lower half of the argument comes first."""
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES
_SYSTEM_CALLS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""A machine's audit architecture, and its number of the system call `socket`."""
_IO_URING_SETUP = 425
_AF_UNIX = 1
_OTHER_TABLE = 0x40000000
"""Numbers from here on are those of x32, a second table of system calls of x86-64."""
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
    if confinement["network"] == "seccomp":
        _refuse_sockets()
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


def _refuse_sockets() -> None:
    """Let `socket` make none but Unix sockets, for this process and all that it starts; others give EACCES.

    io_uring is refused too, for it makes sockets without that call, and so is every other table of system calls.
    """
    architecture, socket_number = _SYSTEM_CALLS.get(platform.machine(), (0, 0))
    if not architecture:
        raise OSError(errno.ENOSYS, f"no seccomp filter is known for {platform.machine()}")
    # Each is an operation, the instructions to skip where its condition holds and where not, and an operand.
    code = (
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 0, 7, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_AT_LEAST, 5, 0, _OTHER_TABLE),
        (_JUMP_IF_EQUAL, 4, 0, _IO_URING_SETUP),
        (_JUMP_IF_EQUAL, 0, 2, socket_number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_IF_EQUAL, 0, 1, _AF_UNIX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    )
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
    program = struct.pack("@HP", len(code), ctypes.addressof(instructions))
    if _LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


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
