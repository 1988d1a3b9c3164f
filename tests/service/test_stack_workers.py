"""The stack's workers: how many there are, on what devices, and when one that ended is started again."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.errors import StackStopped
from service.local import workers
from service.local.devices import gpu_count, worker_devices
from service.local.workers import Workers
from service.settings import Settings


class Programs:
    """Programs that end when the test says so."""

    def __init__(self) -> None:
        self.started: list[tuple[str, str]] = []
        self.ended: dict[str, int] = {}

    def start(self, name, _arguments, *, more):
        self.ended.pop(name, None)
        self.started.append((name, more["HEADROOM_DEVICE"]))

    def exit_status(self, name):
        return self.ended.get(name)

    def check(self, name):
        raise StackStopped(f"the {name} ended")

    def how_ended(self, name):
        return f"the {name} ended (exit status {self.ended[name]})"

    def log_tail(self, name):
        return f"the log of {name}"


@pytest.fixture
def clock(monkeypatch):
    """The steady clock of the workers."""
    moved = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: moved.seconds))
    return moved


@pytest.fixture
def programs():
    return Programs()


def started_workers(programs, devices, most_short_lives=None):
    made = Workers(programs, Settings(), devices, most_short_lives)
    made.start()
    return made


def pauses(stack, programs, clock, lives):
    """End the worker after each of some lives; return the seconds until it is started again."""
    measured = []
    for life in lives:
        clock.seconds += life
        programs.ended["worker"] = 1
        began, before = clock.seconds, len(programs.started)
        while len(programs.started) == before:
            stack.check()
            clock.seconds += 0.5
        measured.append(clock.seconds - 0.5 - began)
    return measured


def test_a_worker_that_keeps_ending_soon_is_started_after_growing_pauses(programs, clock):
    stack = started_workers(programs, ["cpu"])
    assert pauses(stack, programs, clock, [1] * 9) == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert pauses(stack, programs, clock, [3600, 3600, 1, 1]) == [1, 1, 1, 2]


def test_the_others_go_on(programs, clock, caplog):
    stack = started_workers(programs, ["cuda:0", "cuda:1"])
    assert programs.started == [("worker", "cuda:0"), ("worker-2", "cuda:1")]
    programs.ended["worker-2"] = -9
    with caplog.at_level(logging.WARNING):
        stack.check()
    assert "the worker-2 ended (exit status -9) and is started again in 1 s; the log of worker-2" in caplog.text
    clock.seconds += 2
    stack.check()
    assert programs.started[2:] == [("worker-2", "cuda:1")]


def test_a_setting_that_is_not_allowed_stops_the_stack(programs):
    stack = started_workers(programs, ["cpu"])
    programs.ended["worker"] = 2
    with pytest.raises(StackStopped, match="the worker ended"):
        stack.check()


def test_a_command_does_not_wait_for_a_worker_that_never_comes_up(programs, clock):
    stack = started_workers(programs, ["cpu"], most_short_lives=3)
    pauses(stack, programs, clock, [1, 1])
    programs.ended["worker"] = 1
    with pytest.raises(StackStopped):
        stack.check()


LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)
  MIG 1g.10gb     Device  0: (UUID: MIG-1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch):
    """A PATH with a driver's tool that lists two GPUs."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTING}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "count", "devices"),
    [
        ("auto", None, ["cuda:0", "cuda:1"]),
        ("auto", 3, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda:1", None, ["cuda:1"]),
        ("cpu", 2, ["cpu", "cpu"]),
    ],
)
def test_there_is_one_worker_for_each_gpu_unless_a_number_or_a_device_is_asked_for(device, count, devices):
    assert worker_devices(device, count) == devices


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("visible", "count"), [("", 0), ("1", 1), ("0,1", 2), ("-1", 0)])
def test_hidden_gpus_do_not_count(monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == count


def test_without_a_driver_there_is_one_worker(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert worker_devices("auto", None) == ["auto"]
    assert worker_devices("auto", 2) == ["auto", "auto"]
