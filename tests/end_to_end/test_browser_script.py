"""What the browser checks need is put in place, or the script says in one line what is missing."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    """A function that runs the script in a clone where only these programs exist besides a system's own."""
    shutil.copytree(ROOT / "deploy", tmp_path / "clone" / "deploy")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "grep", "mkdir", "tail", "touch"):
        (tools / name).symlink_to(shutil.which(name))

    def script(programs=None, **environment):
        for name, text in ({"id": "echo 0"} | (programs or {})).items():
            (tools / name).write_text(f"#!{shutil.which('sh')}\n{text}\n")
            (tools / name).chmod(0o755)
        return subprocess.run(
            [str(tools / "bash"), str(tmp_path / "clone" / "deploy" / "browser.sh")],
            env={"PATH": str(tools), "HOME": os.environ.get("HOME", "/"), "TOOLS": str(tools)} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return script


def test_a_browser_that_cannot_be_had_is_named(run):
    done = run()
    assert (done.returncode, done.stderr) == (
        1,
        "browser.sh: chromium is missing, and there is no apt-get here to install it.\n",
    )


def test_only_root_installs(run):
    done = run({"apt-get": "exit 0", "id": "echo 1000"})
    assert done.stderr == "browser.sh: chromium is missing, and only root can install it: apt-get install chromium\n"


def test_the_words_of_a_failed_installation_are_kept(run):
    done = run({"apt-get": "echo 'E: no network' >&2; exit 100"})
    assert (done.returncode, done.stderr) == (1, "browser.sh: apt-get could not install chromium: E: no network\n")


def test_a_setting_that_names_no_program_is_named(run):
    done = run(HEADROOM_CHROMIUM="/nowhere/chromium")
    assert done.stderr == "browser.sh: HEADROOM_CHROMIUM: '/nowhere/chromium' cannot be run.\n"


def test_what_is_missing_is_installed_once(run, tmp_path):
    programs = {
        "apt-get": 'echo "$*" >>"$TOOLS/asked"; echo "#!/bin/sh" >"$TOOLS/chromium"; '
        f'{shutil.which("chmod")} +x "$TOOLS/chromium"',
        "npm": 'echo "npm $*" >>"$TOOLS/asked"; mkdir -p "$3/node_modules/axe-core"; '
        'version="${9#axe-core@}"; echo "{ \\"version\\": \\"$version\\" }" >"$3/node_modules/axe-core/package.json"',
    }
    assert run(programs).stdout.endswith("the browser checks have what they need\n")
    asked = (tmp_path / "tools" / "asked").read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["update", "install", "npm"]
    assert run().returncode == 0
    assert (tmp_path / "tools" / "asked").read_text().splitlines() == asked


def test_the_script_can_be_run():
    assert (ROOT / "deploy" / "browser.sh").stat().st_mode & stat.S_IXUSR
