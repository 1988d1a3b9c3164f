"""The memory that a worker believes to have, in control groups of both versions, on plain files in their place."""

from pathlib import Path

import psutil
import pytest

from workers.sandbox.memory import machine_memory

GIB = 1 << 30
MACHINE = 64 * GIB
V1_WITHOUT_LIMIT = 9223372036854771712


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 GiB."""
    total = psutil.virtual_memory()._replace(total=MACHINE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: total)


def memory(directory: Path, mounts: str, own: str, limits: dict[str, object]) -> int:
    """Return the memory where these files of limits are there, and /proc says so of mounts and groups."""
    for name, limit in limits.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    (directory / "mounts").write_text(mounts.format(directory))
    (directory / "own").write_text(own)
    return machine_memory(directory / "mounts", directory / "own")


V2 = "22 27 0:21 / /proc rw - proc proc rw\n30 25 0:26 / {}/fs rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "33 31 0:30 / {0}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {1} {0}/memory rw,relatime - cgroup cgroup rw,memory\n"
)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, MACHINE),
        ({"fs/a.slice/b.service/memory.max": "max"}, MACHINE),
        ({"fs/a.slice/b.service/memory.max": 2 * GIB, "fs/a.slice/memory.max": "max"}, 2 * GIB),
        ({"fs/a.slice/b.service/memory.max": "max", "fs/a.slice/memory.max": 3 * GIB}, 3 * GIB),
        ({"fs/a.slice/b.service/memory.max": 4 * GIB, "fs/memory.max": GIB}, GIB),
        ({"fs/a.slice/b.service/memory.max": 400 * GIB}, MACHINE),
        ({"fs/other.slice/memory.max": GIB}, MACHINE),
    ],
)
def test_the_least_limit_of_a_unit_its_slices_and_its_container_counts(
    tmp_path: Path, limits: dict[str, object], expected: int
) -> None:
    assert memory(tmp_path, V2, "0::/a.slice/b.service\n", limits) == expected


@pytest.mark.parametrize(
    ("root", "path", "limits", "expected"),
    [
        ("/", "/docker/1/job", {"memory/docker/1/memory.limit_in_bytes": 5 * GIB}, 5 * GIB),
        ("/docker/1", "/docker/1/job", {"memory/job/memory.limit_in_bytes": 2 * GIB}, 2 * GIB),
        ("/docker/1", "/docker/1", {"memory/memory.limit_in_bytes": 3 * GIB}, 3 * GIB),
        (
            "/docker/1",
            "/docker/12",
            {"memory/memory.limit_in_bytes": 3 * GIB, "memory/2/memory.limit_in_bytes": GIB},
            3 * GIB,
        ),
        ("/", "/../../x", {"memory/memory.limit_in_bytes": 4 * GIB, "x/memory.limit_in_bytes": GIB}, 4 * GIB),
        ("/", "/a", {"memory/a/memory.limit_in_bytes": V1_WITHOUT_LIMIT, "cpu/a/memory.limit_in_bytes": GIB}, MACHINE),
    ],
)
def test_the_limits_of_a_container_with_cgroup_v1_count(
    tmp_path: Path, root: str, path: str, limits: dict[str, object], expected: int
) -> None:
    mounts = V1.replace("{1}", root)
    assert memory(tmp_path, mounts, f"4:memory:{path}\n1:cpu,cpuacct:/a\n0::/\n", limits) == expected


def test_a_system_without_control_groups_has_its_memory(tmp_path: Path) -> None:
    assert machine_memory(tmp_path / "none", tmp_path / "none") == MACHINE
