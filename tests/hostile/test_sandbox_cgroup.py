"""Delegated cgroups, on plain files in place of the kernel's."""

import os
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from workers.failures import JobFailed
from workers.sandbox.cgroup import Delegated, find_delegated
from workers.sandbox.limits import Limits
from workers.sandbox.probe import Offer
from workers.sandbox.sandbox import Sandbox


class Tree:
    """A cgroup file system, with this process in `service/main`, and what /proc says of it."""

    def __init__(self, root: Path, controllers: str = "cpu memory") -> None:
        self.service = root / "fs" / "service"
        self.main = self.service / "main"
        self.main.mkdir(parents=True)
        for group in (root / "fs", self.service, self.main):
            (group / "cgroup.controllers").write_text(controllers + "\n")
            (group / "cgroup.subtree_control").write_text("\n")
            (group / "cgroup.procs").touch()
        self.mounts, self.own = root / "mountinfo", root / "cgroup"
        self.mounts.write_text(
            f"22 1 0:20 / /proc rw - proc proc rw\n30 25 0:26 / {root / 'fs'} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
        )
        self.own.write_text("4:memory:/elsewhere\n0::/service/main\n")

    def find(self) -> Delegated:
        return find_delegated(self.mounts, self.own)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_the_parent_of_the_worker_s_own_cgroup_is_taken_first(tree: Tree) -> None:
    assert tree.find().root == tree.service
    assert (tree.service / "cgroup.subtree_control").read_text() == "+memory"
    assert sorted(path.name for path in tree.main.iterdir() if path.is_dir()) == []


def test_a_worker_in_the_root_of_its_subtree_moves_to_a_leaf(tree: Tree) -> None:
    (tree.service / "cgroup.controllers").write_text("cpu\n")
    assert tree.find().root == tree.main
    leaf = tree.main / f"headroom-worker-{os.getpid()}"
    assert (leaf / "cgroup.procs").read_text() == "0"
    assert (tree.main / "cgroup.subtree_control").read_text() == "+memory"


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (lambda tree: tree.mounts.write_text("22 1 0:20 / /proc rw - proc proc rw\n"), "cgroup v2 is not mounted"),
        (lambda tree: tree.own.write_text("4:memory:/elsewhere\n"), "this process is in no cgroup v2"),
    ],
)
def test_a_machine_without_cgroup_v2_says_so(tree: Tree, breaks, reason: str) -> None:
    breaks(tree)
    with pytest.raises(OSError, match=reason):
        tree.find()


def test_a_subtree_without_the_memory_controller_is_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="has no memory controller"):
        Tree(tmp_path, "hugetlb").find()


def test_a_program_joins_a_cgroup_with_its_limit_before_it_runs(tree: Tree) -> None:
    with tree.find().group("job", 1 << 30) as group:
        (group.path / "memory.events").write_text("low 0\noom 0\noom_kill 0\n")
        assert group.path.parent == tree.service
        assert (group.path / "memory.max").read_text() == str(1 << 30)
        assert (group.was_killed(), group.peak()) == (False, None)
        (group.path / "memory.events").write_text("oom 1\noom_kill 2\n")
        (group.path / "memory.peak").write_text("1073741824\n")
        assert (group.was_killed(), group.peak()) == (True, 1 << 30)
        _empty(group.path)
    assert not group.path.exists()


def test_a_program_that_its_cgroup_ended_fails_with_the_limit(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program writes what the kernel would: it is the one that knows when it is in the cgroup."""
    joined = tmp_path / "joined"
    delegated = tree.find()

    @contextmanager
    def group(name: str, memory: int):
        with Delegated.group(delegated, name, memory) as made:
            try:
                yield made
            finally:
                joined.write_text((made.path / "cgroup.procs").read_text())
                _empty(made.path)

    monkeypatch.setattr(delegated, "group", group)
    sandbox = Sandbox(
        Limits(1 << 30, 1 << 20, 3600.0), Offer(None, delegated, {"namespace": "x", "network": "x"}), None, tmp_path
    )
    place = tree.service / f"headroom-job-{os.getpid()}"
    program = f"echo oom_kill 1 > {place}/memory.events; echo 1073741000 > {place}/memory.peak; ulimit -d; kill -9 $$"
    (tmp_path / "job").mkdir()
    lines: list[bytes] = []
    with pytest.raises(JobFailed) as raised:
        sandbox.run(["/bin/sh", "-c", program], "the measurement", tmp_path / "job", lambda: None, lines.append)
    failed = raised.value.failed
    assert failed.code == "memory-limit"
    assert "1.0GiB (HEADROOM_JOB_MEMORY); it had reached 1024.0MiB, and was ended by the kernel" in failed.message
    assert (joined.read_text(), lines) == ("0", [b"unlimited\n"])
    assert f"by cgroups in {tree.service}" in sandbox.description()
    assert not place.exists()


def test_a_cgroup_that_cannot_be_made_is_an_error(tree: Tree) -> None:
    with pytest.raises(OSError, match="Not a directory"), Delegated(tree.mounts).group("job", 1):
        pytest.fail("it was made")


def _empty(path: Path) -> None:
    """Remove the files, as the kernel does with a cgroup's; `rmdir` does the rest."""
    for file in path.iterdir():
        with suppress(IsADirectoryError):
            file.unlink()
