"""Children that cannot outlive their parent, and groups that end together."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from service.processes import spawn, terminate

PARENT = """
import subprocess, sys, time
from service.processes import spawn
print(spawn(["sleep", "600"]).pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Whether a process exists and is not a corpse that nobody has collected."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
        wait_for(lambda: not alive(child))


def test_a_child_leads_a_group_of_its_own() -> None:
    with spawn(["cat", "/proc/self/stat"], stdout=subprocess.PIPE) as child:
        output, _ = child.communicate()
    pid, _, _, _, group, session = output.decode().split()[:6]
    assert pid == group == session == str(child.pid)


def test_terminate_ends_the_whole_group() -> None:
    child = spawn(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child:
        grandchild = int(child.stdout.readline())
        assert terminate(child, 10) == -signal.SIGTERM
    wait_for(lambda: not alive(grandchild))


def test_terminate_kills_what_does_not_listen() -> None:
    child = spawn(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child:
        child.stdout.readline()
        assert terminate(child, 0.2) == -signal.SIGKILL


def test_terminate_tells_how_an_ended_child_ended() -> None:
    child = spawn(["sh", "-c", "exit 3"])
    child.wait()
    assert [terminate(child, 0), terminate(child, 0)] == [3, 3]
