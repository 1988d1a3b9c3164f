"""Finds out once what this machine offers for a sandbox, by trying it.

Containers and kernels forbid namespaces and cgroups in many ways, of which no version number tells.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from service.errors import InvalidRequest
from workers.sandbox.cgroup import Delegated, find_delegated
from workers.sandbox.user import VARIABLE, User

_LAUNCH = (sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")))
_PROBE_SECONDS = 30
# Addresses of 192.0.2.0/24 belong to nobody, and connecting a datagram socket sends nothing.
_IS_CUT_OFF = """
import errno, socket, sys
socket.socketpair()
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 9))
except OSError as error:
    sys.exit(0 if error.errno in (errno.ENETUNREACH, errno.EACCES) else str(error))
sys.exit("the network is still there")
"""
_REACHES = """
import os, sys
for path in sys.argv[1:]:
    os.stat(os.path.join(path, "."))
"""


@dataclass(frozen=True)
class Offer:
    """What this machine offers."""

    network: str | None
    """How a program leaves the network (see `launch`); None where it cannot."""
    cgroups: Delegated | None
    troubles: Mapping[str, str]
    """Why there is no `network`, no namespace for it (`namespace`), or no `cgroups`."""


def launched(
    program: Sequence[str],
    *,
    network: str | None = None,
    cgroup: Path | None = None,
    rlimits: Mapping[str, int] | None = None,
    user: User | None = None,
) -> list[str]:
    """Return the command that confines itself and becomes `program`; see `launch`."""
    confinement = {
        "parent": os.getpid(),
        "cgroup": None if cgroup is None else str(cgroup),
        "network": network,
        "rlimits": dict(rlimits or {}),
        "user": None if user is None else {"uid": user.uid, "gid": user.gid, "groups": user.groups},
    }
    return [*_LAUNCH, json.dumps(confinement), *program]


@cache
def offer() -> Offer:
    """Return what this machine offers to this process, which may move to a cgroup of its own by that."""
    network, troubles = _network()
    cgroups = None
    try:
        cgroups = find_delegated()
    except OSError as error:
        troubles["cgroups"] = error.strerror or str(error)
    return Offer(network, cgroups, troubles)


def _network() -> tuple[str | None, dict[str, str]]:
    """Return the first way to leave the network that works, and why those before it do not."""
    # Root needs no user namespace, in which it could not read other users' files.
    ways = {"namespace": "namespace" if os.geteuid() == 0 else "user-namespace", "network": "seccomp"}
    troubles: dict[str, str] = {}
    for what, way in ways.items():
        trouble = _try(launched([sys.executable, "-I", "-S", "-c", _IS_CUT_OFF], network=way))
        if trouble is None:
            return way, troubles
        troubles[what] = trouble
    return None, troubles


def check_user(name: str, user: User, directories: Sequence[Path]) -> None:
    """Raise InvalidRequest unless this process may become `user`, and that user reaches the directories."""
    program = [sys.executable, "-I", "-S", "-c", _REACHES, *map(str, directories)]
    trouble = _try(launched(program, user=user))
    if trouble is not None:
        allowed = "a user that this process may become (as root does) and that may enter HEADROOM_HOME and the program"
        raise InvalidRequest(VARIABLE, name, f"{allowed} ({trouble})")


def _try(command: Sequence[str]) -> str | None:
    """Run a command; return None where it succeeds, else the last line of its errors."""
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if ended.returncode == 0:
        return None
    lines = ended.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {ended.returncode}"
