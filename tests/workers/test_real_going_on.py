"""The real measurement, killed in the middle, and the attempt that goes on; every process is real."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from bench import Bench, alive, program

from service.contracts.request import JobRequest
from service.store.database import writer
from service.store.jobs import Job, JobStore
from service.store.statuses import Status
from workers.sandbox.programs import Commands
from workers.supervisor import Supervisor

SMALL = JobRequest(model="sample", sequences=2, sequence_length=32, schemes=("nf4",))
WAITS = """
import os, pathlib, sys, time
from workers.measurement.runtime.progress import ProgressReporter
say = ProgressReporter._say
def say_and_wait(self, line):
    say(self, line)
    if (getattr(line, "stage", None), getattr(line, "done", None)) == ("sweep", 4):
        home = pathlib.Path(sys.argv[-1]).parents[4]
        (home / "reached").write_text(f"{os.getpid()}\\n")
        while not (home / "go").exists(): time.sleep(0.05)
ProgressReporter._say = say_and_wait
from workers.measurement.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""A measurement that waits after its fourth layer, when the streams after three are kept."""

FILLS = """
import sys
import torch
from workers.measurement.layers import advance
run_layer = advance.run_layer
def in_small_memory(module, hidden, arguments):
    if len(hidden) > 1 and hidden.shape[0] * hidden.shape[1] > 32:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return run_layer(module, hidden, arguments)
advance.run_layer = in_small_memory
from workers.measurement.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""A measurement on a device that has room for batches of one sequence, or of as many tokens in shorter ones."""

WORK = """
import sys
from service.settings import settings
from service.store.artifacts import ArtifactStore
from service.store.database import make_engine
from service.store.jobs import JobStore
from workers.sandbox.programs import Commands
from workers.supervisor import Supervisor
store = JobStore(make_engine(sys.argv[1]))
commands = Commands(measurement=(sys.executable, "-c", sys.argv[3]))
Supervisor(store, ArtifactStore(settings().artifacts), settings(), worker="a", commands=commands).run(sys.argv[2], 1)
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path, SMALL)
    made.settings = made.settings.model_copy(update={"checkpoint_seconds": 0.0})
    return made


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


def run_to_the_end(bench: Bench, measurement: Sequence[str] = Commands.measurement) -> Job:
    """Run the job as a worker would, with the real measurement and next to no drawing."""
    commands = Commands(measurement=measurement, reporting=program(""))
    supervisor = Supervisor(bench.store, bench.artifacts, bench.settings, worker="b", commands=commands)
    supervisor.run(bench.job_id, bench.job.dispatch)
    return bench.job


@contextmanager
def working(bench: Bench) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Let a worker process begin the job; yields it and its measurement's id when four layers are done."""
    environment = {
        **os.environ,
        "HEADROOM_HOME": str(bench.settings.home),
        "HEADROOM_DEVICE": "cpu",
        "HEADROOM_CHECKPOINT_SECONDS": "0",
    }
    command = [sys.executable, "-c", WORK, str(bench.engine.url), bench.job_id, WAITS]
    with subprocess.Popen(command, env=environment) as worker:
        reached = bench.settings.home / "reached"
        try:
            wait_for(lambda: reached.exists() and reached.read_text().endswith("\n"))
            yield worker, int(reached.read_text())
        except BaseException:
            worker.kill()
            raise


def take_away(bench: Bench) -> None:
    """Let the lease run out."""
    later = JobStore(bench.engine, lambda: bench.store._clock().replace(year=2100))
    assert later.requeue_expired(3) == [bench.job_id]


def pause(bench: Bench, worker: subprocess.Popen[bytes]) -> None:
    """Let the worker stand still, but not in a transaction, which nobody else could write after."""
    with writer(bench.engine).begin():
        worker.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)


def kill_in_the_middle(bench: Bench) -> None:
    with working(bench) as (worker, measurement):
        worker.kill()
    wait_for(lambda: not alive(measurement))
    take_away(bench)


def sweep_begins_at(bench: Bench) -> list[int]:
    """The layers at which the attempts' sweeps began."""
    told = [event for event in bench.store.events(bench.job_id) if event.kind in ("started", "progress")]
    return [
        event.data["done"]
        for before, event in pairwise(told)
        if event.data.get("stage") == "sweep" and before.data.get("stage") != "sweep"
    ]


def tables(bench: Bench) -> dict[str, str]:
    """The sums of the stored tables, by name."""
    rows = bench.store.artifacts(bench.job_id)
    return {row.name: row.sha256 for row in rows if row.name.startswith("tables/")}


def test_a_killed_worker_s_job_goes_on_from_where_it_was(bench: Bench, tmp_path: Path) -> None:
    kill_in_the_middle(bench)
    job = run_to_the_end(bench)
    assert (job.status, job.attempts, job.error) == (Status.succeeded, 2, None)
    assert sweep_begins_at(bench) == [0, 3]
    assert bench.no_work_is_left()
    uninterrupted = Bench(tmp_path / "other", SMALL)
    run_to_the_end(uninterrupted)
    assert sweep_begins_at(uninterrupted) == [0]
    assert tables(bench) == tables(uninterrupted) != {}


def test_a_killed_measurement_goes_on_in_the_same_attempt(bench: Bench, tmp_path: Path) -> None:
    with working(bench) as (worker, measurement):
        os.kill(measurement, signal.SIGKILL)
        (bench.settings.home / "go").touch()
        assert worker.wait() == 0
    assert (bench.job.status, bench.job.attempts, bench.job.error) == (Status.succeeded, 1, None)
    assert sweep_begins_at(bench) == [0, 3]
    assert bench.no_work_is_left()
    uninterrupted = Bench(tmp_path / "other", SMALL)
    run_to_the_end(uninterrupted)
    assert tables(bench) == tables(uninterrupted) != {}


def test_a_device_that_is_full_gives_the_report_of_half_the_batch(bench: Bench, tmp_path: Path) -> None:
    job = run_to_the_end(bench, (sys.executable, "-c", FILLS))
    assert (job.status, job.attempts, job.error) == (Status.succeeded, 1, None)
    assert sweep_begins_at(bench) == [0, 0]
    assert bench.no_work_is_left()
    report = json.loads(bench.artifacts.path(bench.store.artifact(job.id, "report.json").sha256).read_text())
    assert (report["calibration"]["batch_sequences"], report["timing"]["resumed_at_layer"]) == (1, None)
    asked = Bench(tmp_path / "other", SMALL.model_copy(update={"batch_sequences": 1}))
    assert run_to_the_end(asked).status is Status.succeeded
    assert tables(bench) == tables(asked) != {}


def test_what_other_software_left_is_not_gone_on_from(bench: Bench) -> None:
    kill_in_the_middle(bench)
    left = bench.settings.home / "work" / bench.job_id / "attempt-1/measured/.out.unfinished/identity.json"
    identity = json.loads(left.read_text())
    identity["software"]["torch"] = "1.0"
    left.write_text(json.dumps(identity))
    assert run_to_the_end(bench).status is Status.succeeded
    assert sweep_begins_at(bench) == [0, 0]
    assert bench.no_work_is_left()


def test_two_measurements_are_never_at_work_in_one_directory(bench: Bench) -> None:
    with working(bench) as (worker, measurement):
        pause(bench, worker)  # it sleeps through the loss of its lease, and its measurement does not
        take_away(bench)
        assert run_to_the_end(bench).status is Status.succeeded
        assert sweep_begins_at(bench) == [0, 0]
        stored = tables(bench)
        assert alive(measurement)
        (bench.settings.home / "go").touch()
        wait_for(lambda: not alive(measurement))
        worker.send_signal(signal.SIGCONT)
        assert worker.wait() == 0
    assert (bench.job.status, tables(bench)) == (Status.succeeded, stored)
    assert bench.no_work_is_left()
