"""Workers for one job, and workers that hear of none."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import Bench, alive

from service.contracts.request import JobRequest
from service.processes import spawn
from service.store.statuses import Status
from workers.lifetime import DONE, FAILED, NONE_WAITING, NOT_ENDED, IdleWatch, run_once


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def test_a_worker_for_one_job_takes_the_oldest_and_leaves_the_others(bench: Bench) -> None:
    second = bench.store.submit(JobRequest(model="sample")).id
    assert run_once(bench.supervisor(), bench.store) == DONE
    assert (bench.job.status, bench.store.get(second).status) == (Status.succeeded, Status.queued)


def test_a_job_that_fails_gives_the_worker_s_exit_status(bench: Bench) -> None:
    assert run_once(bench.supervisor("sys.exit(3)"), bench.store) == FAILED


def test_a_worker_without_a_job_ends(bench: Bench) -> None:
    bench.run()
    assert run_once(bench.supervisor(), bench.store) == NONE_WAITING


def test_a_worker_that_is_stopped_in_its_one_job_says_so(bench: Bench) -> None:
    thread = bench.meanwhile(lambda: setattr(bench, "stopping", True))
    assert run_once(bench.supervisor("progress('sweep', 0, 9)\ntime.sleep(600)"), bench.store) == NOT_ENDED
    thread.join()
    assert bench.job.status is Status.queued


def test_the_program_for_one_job_needs_no_broker(tmp_path: Path) -> None:
    environment = {**os.environ, "HEADROOM_HOME": str(tmp_path)}
    environment.pop("HEADROOM_BROKER_URL", None)
    command = [sys.executable, "-m", "workers.app", "--once"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (NONE_WAITING, "")
    assert ended.stderr.startswith("headroom worker: jobs run with")
    assert ended.stderr.endswith("INFO] no job waits for this worker\n")


class Restarts:
    """An idle watch over a bench's store, that counts instead of restarting."""

    def __init__(self, bench: Bench) -> None:
        self.count = 0
        self.watch = IdleWatch(bench.supervisor().jobs_wait, self._restart, seconds=120)

    def _restart(self) -> None:
        self.count += 1


@pytest.fixture
def restarts(bench: Bench) -> Restarts:
    return Restarts(bench)


def test_a_worker_that_hears_of_no_job_beside_a_queue_restarts(restarts: Restarts) -> None:
    for now in (0, 60, 119):
        restarts.watch.look(now)
    assert restarts.count == 0
    restarts.watch.look(120)
    assert restarts.count == 1


def test_the_time_begins_anew_when_the_queue_was_empty(restarts: Restarts, bench: Bench) -> None:
    restarts.watch.look(0)
    bench.run()
    restarts.watch.look(100)
    bench.store.submit(JobRequest(model="sample"))
    for now in (130, 249):
        restarts.watch.look(now)
    assert restarts.count == 0
    restarts.watch.look(250)
    assert restarts.count == 1


def test_the_time_begins_anew_with_every_message(restarts: Restarts, bench: Bench) -> None:
    during: list[int] = []

    def run(_job: str, _dispatch: int) -> bool:
        restarts.watch.look(500)
        during.append(restarts.count)
        return False

    restarts.watch.look(0)
    restarts.watch.working(run)(bench.job_id, 0)
    restarts.watch.look(501)
    assert (during, restarts.count) == ([0], 0)
    restarts.watch.look(621)
    assert restarts.count == 1


def test_a_database_that_is_away_restarts_nothing(restarts: Restarts, bench: Bench) -> None:
    restarts.watch.look(0)
    bench.engine.dispose()
    (bench.settings.home.parent / "headroom.db").unlink()
    restarts.watch.look(200)
    assert restarts.count == 0


RESTART = """
import os, pathlib, sys, threading, time
from workers.lifetime import renewal
runs = pathlib.Path(sys.argv[1])
with runs.open("a") as file: print(os.getpid(), file=file)
if len(runs.read_text().split()) < 2:
    threading.Thread(target=renewal()).start()
    time.sleep(600)
time.sleep(float(sys.argv[2]))
"""
PARENT = """
import sys, time
from service.processes import spawn
spawn([sys.executable, "-c", *sys.argv[1:]])
time.sleep(600)
"""


def test_a_restarted_worker_keeps_its_process_id_and_its_arguments(tmp_path: Path) -> None:
    process = spawn([sys.executable, "-c", RESTART, str(tmp_path / "runs"), "0"])
    assert process.wait(120) == 0
    assert (tmp_path / "runs").read_text().split() == [str(process.pid)] * 2


def test_a_restarted_worker_dies_with_its_parent(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.touch()
    parent = spawn([sys.executable, "-c", PARENT, RESTART, str(runs), "600"])
    wait_for(lambda: len(runs.read_text().split()) == 2)
    pid = int(runs.read_text().split()[0])
    assert alive(pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(pid))
