"""The memory that this process may have: the machine's, or the least limit of the control groups that it is in.

A limit of a group holds for every group below it, so each ancestor counts: a container's, a pod's, a systemd unit's
(`MemoryMax=`) or a slice's. Groups are those of cgroup v2, or of the memory controller of cgroup v1.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_LIMIT_FILES = {"": "memory.max", "memory": "memory.limit_in_bytes"}
"""By the name of the hierarchy in /proc/self/cgroup; that of cgroup v2 has none."""


def machine_memory(mounts: Path = Path("/proc/self/mountinfo"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the memory that this process may have, in bytes; `mounts` and `own` are replaced in tests."""
    sizes = [int(psutil.virtual_memory().total)]
    with suppress(OSError):  # a system without control groups
        for file in _limit_files(mounts, own):
            with suppress(OSError, ValueError):  # the root has no limit, others may have "max"
                sizes.append(int(file.read_text()))
    return min(sizes)


def _limit_files(mounts: Path, own: Path) -> Iterator[Path]:
    """Yield the files with the limits of the groups that this process is in."""
    lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    paths = {controller: path for _, controllers, path in lines for controller in controllers.split(",")}
    for line in mounts.read_text().splitlines():
        mounted, _, kind = line.partition(" - ")
        root, place = mounted.split()[3:5]
        file_system, _, options = kind.split(" ", 2)
        controllers = {"cgroup2": [""], "cgroup": options.split(",")}.get(file_system, [])
        for controller in _LIMIT_FILES.keys() & controllers & paths.keys():
            for group in _with_parents(Path(place), _below(paths[controller], root)):
                yield group / _LIMIT_FILES[controller]


def _below(path: str, root: str) -> str:
    """Return the path of a group from the mounted group `root` on; empty where it does not lie below that."""
    root = root.rstrip("/")
    return path.removeprefix(root).strip("/") if f"{path}/".startswith(f"{root}/") and "/.." not in path else ""


def _with_parents(top: Path, below: str) -> Iterator[Path]:
    group = top / below
    while group != top:
        yield group
        group = group.parent
    yield top
