"""The driver: a step that fails, hangs, crashes or is cut short leaves its line, and harms no other."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from gpu_driver import Run, run_steps
from gpu_prepare import NotReady, _check, prepare
from gpu_steps import HERE, Step
from gpu_table import as_markdown

SAY = "import json, os, signal, subprocess, sys, time\ndef say(**line): print(json.dumps(line), flush=True)\n"
FIGURE = "say(figure='share', value=0.5, unit='', at_most=0.4, met=False)\n"
FAULTS = {
    "fails": "say(detail='device', value='a device')\nraise ValueError('a fault')",
    "finds": FIGURE + "say(problem='one is wrong')\nsay(problem='two is wrong')",
    "hangs": FIGURE + "print(subprocess.Popen(['sleep', '600']).pid, file=sys.stderr, flush=True)\ntime.sleep(600)",
    "dies": FIGURE + "print('not JSON', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)",
    "skips": "say(skipped='nothing to do')",
    "works": "say(figure='count', value=1, unit='')\nsay(figure='count', value=2, unit='')",
}


def steps(directory: Path, *names: str, budget: float = 30) -> list[Step]:
    made = []
    for name in names:
        file = directory / f"{name}.py"
        file.write_text(SAY + FAULTS[name])
        made.append(Step(name, f"what {name}", 1 if name == "hangs" else budget, file))
    return made


def lines(out: Path) -> dict[str, dict[str, Any]]:
    return {line["step"]: line for line in map(json.loads, (out / "gpu.jsonl").read_text().splitlines())}


def run(directory: Path, *names: str, **options: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    status = run_steps(Run(directory, directory, dict(os.environ), **options), steps(directory, *names))
    return status, lines(directory)


def test_every_fault_leaves_its_line_and_the_next_step_runs(tmp_path: Path) -> None:
    status, found = run(tmp_path, *FAULTS)
    assert status == 1
    assert list(found) == list(FAULTS)
    assert {name: line["status"] for name, line in found.items()} == {
        "fails": "failed",
        "finds": "failed",
        "hangs": "timeout",
        "dies": "failed",
        "skips": "skipped",
        "works": "ok",
    }
    assert found["fails"]["error"] == "exit status 1: ValueError: a fault"
    assert found["fails"]["details"] == {"device": "a device"}
    assert found["finds"]["error"] == "one is wrong; two is wrong"
    assert found["hangs"]["error"] == "not done after 1 s"
    assert found["dies"]["error"].startswith("killed by SIGSEGV")
    assert found["skips"]["error"] == "nothing to do"
    for cut_short in ("finds", "hangs", "dies"):
        assert found[cut_short]["figures"] == [
            {"figure": "share", "value": 0.5, "unit": "", "at_most": 0.4, "met": False}
        ]
    assert [figure["value"] for figure in found["works"]["figures"]] == [2]


def test_what_a_step_has_started_ends_with_it(tmp_path: Path) -> None:
    run(tmp_path, "hangs")
    child = int((tmp_path / "logs/hangs.txt").read_text())
    until = time.monotonic() + 10
    while alive(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_steps_that_are_ok_or_skipped_give_status_0(tmp_path: Path) -> None:
    status, _ = run(tmp_path, "works", "skips")
    assert status == 0


def test_after_the_deadline_no_step_begins(tmp_path: Path) -> None:
    status, found = run(tmp_path, "works", deadline=time.monotonic())
    assert status == 0
    assert (found["works"]["status"], found["works"]["error"]) == ("skipped", "not begun: no time was left")
    assert "what works (works): skipped: not begun: no time was left" in (tmp_path / "gpu.md").read_text()


def test_the_deadline_cuts_a_step_short(tmp_path: Path) -> None:
    file = steps(tmp_path, "hangs")[0].file
    long = Step("hangs", "what hangs", 60, file)
    run_steps(Run(tmp_path, tmp_path, dict(os.environ), deadline=time.monotonic() + 2), [long])
    assert lines(tmp_path)["hangs"]["status"] == "timeout"


def test_the_last_step_may_take_what_is_left(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text(SAY + "time.sleep(1.5)\n" + FAULTS["works"])
    made = [Step(f"slow-{last}", "what is slow", 1, file, until_the_end=last) for last in (False, True)]
    run_steps(Run(tmp_path, tmp_path, dict(os.environ)), made)
    assert [line["status"] for line in lines(tmp_path).values()] == ["timeout", "ok"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_leaves_what_it_has(how: signal.Signals, tmp_path: Path) -> None:
    made = [Step(s.name, s.title, 60, s.file) for s in steps(tmp_path, "works", "hangs", "skips")]
    code = (
        "import os, sys; from pathlib import Path; from gpu_driver import *; from gpu_steps import Step\n"
        "out = Path(sys.argv[1]); run = Run(out, out, dict(os.environ)); run.interruption.listen()\n"
        "made = [Step(f, 'what ' + f, 60, out / (f + '.py')) for f in ('works', 'hangs', 'skips')]\n"
        "sys.exit(run_steps(run, made))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=HERE, stdout=subprocess.PIPE)
    log = tmp_path / "logs/hangs.txt"
    while not (log.is_file() and log.read_text().strip()):
        time.sleep(0.02)
    process.send_signal(how)
    process.communicate()
    assert process.returncode == 1
    found = lines(tmp_path)
    assert list(found) == [step.name for step in made]
    assert (found["works"]["status"], found["hangs"]["status"]) == ("ok", "failed")
    assert found["hangs"]["error"] == f"interrupted by {how.name}"
    assert found["hangs"]["figures"][0]["value"] == 0.5
    assert found["skips"]["error"] == f"not begun: interrupted by {how.name}"
    assert "what hangs (hangs): failed" in (tmp_path / "gpu.md").read_text()


def test_the_table_names_the_device_the_goals_and_what_failed(tmp_path: Path) -> None:
    _, found = run(tmp_path, "fails", "finds", "works")
    table = as_markdown([found["fails"] | {"step": "device"}, found["finds"], found["works"]], dry=False)
    assert table.startswith("# Headroom on a device\n")
    assert "|  | share | 0.5 | at most 0.4: missed |" in table
    assert "|  | count | 2 |  |" in table
    assert "- what fails (device): failed: exit status 1: ValueError: a fault" in table
    assert "  - two is wrong" in table
    assert "dry run" not in table
    assert "Every step was ok." in as_markdown([found["works"]], dry=False)


def wheel(directory: Path, name: str, version: str) -> None:
    """Write a wheel of one module that says its version."""
    directory.mkdir(exist_ok=True)
    information = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        file.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{information}/RECORD", "")


def test_wheels_and_the_version_are_put_on_the_path(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "headroom_probe", "1.5")
    environment = prepare(tmp_path / "site", str(tmp_path / "wheels"))
    code = "import headroom_probe, workers, importlib.metadata as m; "
    code += "print(headroom_probe.VERSION, m.version('headroom'), m.distribution('headroom').locate_file(''))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert done.stdout.split() == ["1.5", project["version"], str(tmp_path / "site")], done.stderr


def test_a_folder_without_wheels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"WHEELS: the folder holds no \*\.whl"):
        prepare(tmp_path / "site", str(tmp_path))


def test_what_is_missing_or_too_old_is_named() -> None:
    with pytest.raises(NotReady, match=r"nonesuch is missing; pytest is [\d.]+, at least 999\.1 is needed\. Install"):
        _check(sys.path, {"nonesuch": "", "pytest": "999.1", "torch": "2.11"})


FORK = """
import subprocess, sys
import gpu_forking, gpu_running, gpu_steps
from pathlib import Path
gpu_forking.preload({"PYTHONPATH": "", "MARK": "seen"}, module="json")
file = Path(sys.argv[1])
for code, limit in (
    ("import json, os; print(json.dumps({'detail': 'mark', 'value': os.environ['MARK']}))", 60),
    ("import sys; sys.exit(3)", 60),
    ("import os; os.kill(os.getpid(), 11)", 60),
    ("raise ValueError('broken')", 60),
    ("import subprocess; subprocess.run(['sleep', '600'])", 1),
):
    file.write_text(code)
    step = gpu_steps.Step("one", "one", 1, file)
    line = gpu_running.run_step(step, [], limit, file.with_suffix(".txt"), None, gpu_running.Interruption())
    print(line["status"], line["details"], line.get("error"))
"""


def test_a_step_in_a_fork_ends_as_a_process_does(tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(f"if __name__ == '__main__':\n{textwrap.indent(FORK, '    ')}")
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    command = [sys.executable, str(driver), str(tmp_path / "step.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines() == [
        "ok {'mark': 'seen'} None",
        "failed {} exit status 3",
        "failed {} killed by SIGSEGV",
        "failed {} exit status 1: ValueError: broken",
        "timeout {} not done after 1 s",
    ], done.stderr
