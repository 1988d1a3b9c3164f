"""The scripts' environment: made once, made again when something changed, and a clear word when it cannot be."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKE = 'set -euo pipefail; source "$0/deploy/environment.sh"; make_environment worker,local; say ready'


@pytest.fixture
def clone(tmp_path):
    """What the scripts need of a clone."""
    shutil.copytree(ROOT / "deploy", tmp_path / "clone" / "deploy")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "clone")
    return tmp_path / "clone"


def program(path, text):
    """Write a shell program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def tools(tmp_path):
    """A PATH with the commands that every system has, and no Python."""
    directory = tmp_path / "tools"
    directory.mkdir()
    for name in ("bash", "sh", "cat", "dirname", "rm"):
        (directory / name).symlink_to(shutil.which(name))
    return directory


def make(clone, path):
    """Make the environment."""
    environment = {"PATH": str(path), "HOME": os.environ.get("HOME", "/")}
    bash = str(shutil.which("bash"))
    return subprocess.run([bash, "-c", MAKE, clone], env=environment, capture_output=True, text=True, timeout=60)


def test_without_python_the_message_says_what_is_missing(clone, tools):
    done = make(clone, tools)
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "HEADROOM_PYTHON" in done.stderr
    assert not (clone / ".venv").exists()


def test_an_old_python_is_passed_over(clone, tools):
    program(tools / "python3", "exit 1")
    assert "Python 3.11 or newer is needed" in make(clone, tools).stderr


def test_a_python_without_venv_is_named(clone, tools):
    program(tools / "python3", 'case "$*" in *ensurepip*) exit 1 ;; esac')
    done = make(clone, tools)
    assert done.returncode == 1
    assert f"{tools / 'python3'} cannot make environments" in done.stderr
    assert "python3-venv" in done.stderr


@pytest.fixture
def installs(clone, tmp_path):
    """An environment whose pip only writes down what it is asked for; returns what it was."""
    asked = tmp_path / "asked"
    asked.touch()
    record = f'case "$*" in *"pip install"*) echo "$*" >> {asked}; test ! -e {tmp_path}/offline; exit ;; esac'
    program(clone / ".venv" / "bin" / "python", f'{record}\nexec {sys.executable} "$@"')
    return lambda: [line.split("constraints.txt ")[1].removeprefix("-q ") for line in asked.read_text().splitlines()]


def test_the_second_run_installs_nothing(clone, tools, installs):
    first = make(clone, tools)
    assert (first.returncode, first.stdout.splitlines()[-1]) == (0, "==> ready"), first.stderr
    everything = ["torch", f"-e {clone}[worker,local]"]
    assert installs() == everything
    second = make(clone, tools)
    assert second.returncode == 0
    assert "up to date" in second.stdout
    assert installs() == everything


@pytest.mark.parametrize("file", ["pyproject.toml", "deploy/constraints.txt"])
def test_a_change_of_what_is_needed_installs_again(clone, tools, installs, file):
    make(clone, tools)
    with (clone / file).open("a") as changed:
        changed.write("# changed\n")
    assert make(clone, tools).returncode == 0
    assert len(installs()) == 4


def test_an_install_that_fails_is_said_and_tried_again(clone, tools, installs, tmp_path):
    (tmp_path / "offline").touch()
    done = make(clone, tools)
    assert done.returncode == 1
    assert "pip could not install torch" in done.stderr
    assert "ready" not in done.stdout
    (tmp_path / "offline").unlink()
    assert make(clone, tools).returncode == 0
    assert installs() == ["torch", "torch", f"-e {clone}[worker,local]"]


def test_the_first_check_that_fails_stops_the_tests_and_is_named(clone, tools, installs):
    for name in ("ruff", "mypy", "lint-imports", "pytest"):
        program(clone / ".venv" / "bin" / name, f'echo "{name} $*"; test {name} != mypy')
    environment = {"PATH": str(tools), "HOME": "/"}
    done = subprocess.run(
        [str(shutil.which("bash")), clone / "deploy" / "test.sh"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "test.sh: types failed"
    assert "ruff format --check ." in done.stdout
    assert "lint-imports" not in done.stdout
    assert f"-e {clone}[worker,local,dev]" in installs()
