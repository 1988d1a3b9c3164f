"""Which directories a worker takes models from: symbolic links are followed, and what lies outside is not told."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from bench import Bench

from service.contracts.request import JobRequest
from service.local.stack import trusting
from service.settings import Settings
from workers.failures import JobFailed
from workers.model_files.resolution import resolve
from workers.model_files.roots import directory_within
from workers.samples import MODEL


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a model, beside a directory that is not to be read."""
    Path(shutil.copytree(MODEL, tmp_path / "models" / "mine"))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text('{"password": "hunter2"}')
    return tmp_path / "models"


def outside(root: Path) -> dict[str, Path]:
    """Return paths that lead out of the root, whether or not there is something."""
    (root / "link").symlink_to(root.parent / "secret")
    (root / "file-link").mkdir()
    (root / "file-link" / "config.json").symlink_to(root.parent / "secret" / "config.json")
    (root / "loop").symlink_to(root / "loop")
    return {
        "present": root.parent / "secret",
        "absent": root.parent / "nowhere",
        "up": root / ".." / "secret",
        "link": root / "link",
        "link to a file": root / "file-link",
        "beside": root.parent / "models-of-others",
        "loop": root / "loop",
        "system": Path("/etc"),
    }


def test_a_directory_below_a_root_is_given_with_links_resolved(root: Path) -> None:
    (root.parent / "alias").symlink_to(root)
    for given in (root / "mine", root / "." / "mine", root.parent / "alias" / "mine"):
        assert directory_within(given, [root]) == root / "mine"
        assert directory_within(given, [root.parent / "alias"]) == root / "mine"
    assert directory_within(root / "absent", [root]) == root / "absent"


def test_one_message_stands_for_everything_outside(root: Path) -> None:
    paths = outside(root)
    said = set()
    for path in paths.values():
        for roots in ([root], []):
            with pytest.raises(JobFailed) as caught:
                directory_within(path, roots)
            assert (caught.value.failed.code, caught.value.failed.bad_input) == ("model-not-allowed", True)
            said.add(caught.value.failed.message.replace(repr(str(path)), "PATH"))
    assert len(said) == 1
    assert "hunter2" not in said.pop()


def test_without_roots_a_worker_takes_no_directory(root: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench", JobRequest(model=str(root / "mine")))
    bench.settings = bench.settings.model_copy(update={"model_roots": ()})
    error = bench.run("raise SystemExit('nothing is to be measured')").error
    assert error is not None
    assert error.code == "model-not-allowed"
    bench.engine.dispose()


@pytest.mark.parametrize("newest_in", [False, True])
def test_an_audit_resolves_nothing_outside(root: Path, newest_in: bool) -> None:
    for path in outside(root).values():
        with pytest.raises(JobFailed, match="is not in a directory from which"):
            resolve(str(path), "cpu", newest_in=newest_in, roots=[root])


def test_the_newest_directory_is_no_way_out(root: Path) -> None:
    (root / "zz").symlink_to(root.parent / "secret")
    os.utime(root.parent / "secret", (2e9, 2e9))
    with pytest.raises(JobFailed, match="is not in a directory from which"):
        resolve(str(root), "cpu", newest_in=True, roots=[root])


@pytest.mark.parametrize(
    ("value", "roots"), [("", ()), ("/a", ("/a",)), ("/a:/b c", ("/a", "/b c")), ("/a::", ("/a",))]
)
def test_roots_are_absolute_paths(monkeypatch: pytest.MonkeyPatch, value: str, roots: Any) -> None:
    monkeypatch.setenv("HEADROOM_MODEL_ROOTS", value)
    assert tuple(map(str, Settings().model_roots)) == roots
    monkeypatch.setenv("HEADROOM_MODEL_ROOTS", f"{value}:models")
    with pytest.raises(ValueError, match="absolute paths of directories"):
        Settings()


def test_the_embedded_stack_takes_any_model_only_from_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADROOM_MODEL_ROOTS", "HEADROOM_ANY_MODEL_TYPE"):
        monkeypatch.delenv(name, raising=False)
    for host in ("127.0.0.1", "::1", "localhost"):
        assert trusting(host) == {"HEADROOM_MODEL_ROOTS": "/", "HEADROOM_ANY_MODEL_TYPE": "true"}
    for host in ("0.0.0.0", "::", "192.168.1.5", ""):
        assert trusting(host) == {}
    monkeypatch.setenv("HEADROOM_MODEL_ROOTS", "/models")
    assert trusting("127.0.0.1") == {"HEADROOM_ANY_MODEL_TYPE": "true"}
