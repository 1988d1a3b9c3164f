"""Limits the memory of a job's program by a cgroup v2, where a subtree is delegated to the worker.

A subtree is delegated when the worker may write to it, as with `Delegate=memory` in a systemd unit. Processes may only
be in its leaves, so the worker moves to a leaf of its own if it is in the subtree's root; and it hands the memory
controller down, after which every program gets a leaf with a `memory.max`. The kernel ends a program that needs more
with all its processes.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_MEMORY = "+memory"
_EMPTY_SECONDS = 5.0
"""How long a killed program's processes may take to leave their cgroup."""


@dataclass(frozen=True)
class Group:
    """The cgroup of one program."""

    path: Path

    def was_killed(self) -> bool:
        """Whether the kernel has killed the program because it reached its limit."""
        return self._event("oom_kill") > 0

    def peak(self) -> int | None:
        """Return the most memory in use so far, in bytes; None on kernels before 5.19, which do not report it."""
        try:
            return int((self.path / "memory.peak").read_text())
        except (OSError, ValueError):
            return None

    def _event(self, name: str) -> int:
        counts = dict(line.split() for line in (self.path / "memory.events").read_text().splitlines())
        return int(counts.get(name, 0))


class Delegated:
    """A subtree whose memory controller the worker may use."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def group(self, name: str, memory: int) -> Iterator[Group]:
        """Make a cgroup that allows `memory` bytes and no swap; at the end kill what is in it, and remove it.

        Raises OSError when it cannot be made.
        """
        group = Group(self.root / name)
        if (
            group.path.exists()
        ):  # of a worker with this id that was killed: what was counted there is not this program's
            _remove(group.path)
        group.path.mkdir()
        try:
            (group.path / "memory.max").write_text(str(memory))
            for file, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                with suppress(FileNotFoundError):  # a kernel without swap accounting, or before 4.19
                    (group.path / file).write_text(value)
            yield group
        finally:
            _remove(group.path)


def find_delegated(mounts: Path = Path("/proc/self/mountinfo"), own: Path = Path("/proc/self/cgroup")) -> Delegated:
    """Return the delegated subtree that this process is in. Raises OSError that says why there is none."""
    mount = _mount_point(mounts)
    present = mount / _own_path(own)
    reasons = []
    # The parent first: systemd's DelegateSubgroup= starts a service in a leaf of the subtree.
    for root in (present,) if present == mount else (present.parent, present):
        try:
            _hand_down(root, present)
        except OSError as error:
            reasons.append(f"{root}: {error.strerror}")
        else:
            return Delegated(root)
    raise OSError("; ".join(reasons))


def _mount_point(mounts: Path) -> Path:
    for line in mounts.read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.split()[0] == "cgroup2":
            return Path(fields.split()[4])
    raise OSError("cgroup v2 is not mounted")


def _own_path(own: Path) -> str:
    for line in own.read_text().splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::").lstrip("/")
    raise OSError("this process is in no cgroup v2")


def _hand_down(root: Path, present: Path) -> None:
    """Give leaves of `root` the memory controller. Raises OSError; then everything is as it was."""
    if "memory" not in (root / "cgroup.controllers").read_text().split():
        raise OSError(0, "it has no memory controller")
    control = root / "cgroup.subtree_control"
    if "memory" in control.read_text().split() and os.access(root, os.W_OK) and root != present:
        return
    leaf = None
    if root == present:
        leaf = root / f"headroom-worker-{os.getpid()}"
        leaf.mkdir(exist_ok=True)
    try:
        if leaf is not None:
            (leaf / "cgroup.procs").write_text("0")
        control.write_text(_MEMORY)
    except OSError:
        if leaf is not None:
            with suppress(OSError):
                (root / "cgroup.procs").write_text("0")
            with suppress(OSError):
                leaf.rmdir()
        raise


def _remove(path: Path) -> None:
    kill = path / "cgroup.kill"
    if kill.exists():  # since Linux 5.14; the program itself has ended by now
        kill.write_text("1")
    deadline = time.monotonic() + _EMPTY_SECONDS
    while time.monotonic() < deadline:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # a process that was killed is still there
            time.sleep(0.01)
        else:
            return
