"""Schedulers that are killed between any two steps of a run, and real ones that are killed at random: it ends once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from audited import LEASE, LIMIT, Clock, Model, Service
from sqlalchemy import Engine, event, func, select

from service.contracts.audits.audit import AuditRun
from service.processes import spawn, terminate
from service.store.audit_tables import AuditRerunRow, AuditRunRow
from service.store.database import make_engine, upgrade
from service.store.hosts.clock import utcnow
from service.store.statuses import Status
from service.store.tables import JobRow

GOOD, WORSE = Model("a"), Model("b", shift=1.0)
KILLED = 9


def killed_round(url: str, home: Path, clock: Clock, step: int) -> bool:
    """Do a round in a process that dies at its n-th point: each commit has one right before it and one right after it.

    Returns whether it lived to the end of the round.
    """
    child = os.fork()
    if child == 0:
        engine = make_engine(url)
        points = iter(range(10_000))

        def die_here(*_: object) -> None:
            if next(points) == step:
                os._exit(KILLED)

        event.listen(engine, "commit", die_here)
        event.listen(engine, "checkin", die_here)
        try:
            Service(engine, home, clock).round()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def survive(url: str, home: Path, clock: Clock, jobs: Callable[[], None]) -> int:
    """Bring all runs to their end, though schedulers die at every point of every round; return how many died."""
    deaths = 0
    for _ in range(5):
        step = 0
        while not killed_round(url, home, clock, step):
            deaths, step = deaths + 1, step + 1
            clock.move(seconds=LEASE * 2)  # so that the next one may judge what the dead one held
        jobs()
    return deaths


def test_a_run_ends_once_though_schedulers_die_between_every_two_steps(
    engine: Engine, url: str, tmp_path: Path, clock: Clock, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.runs.judging.MOST_JUDGMENTS", 1000)  # here they die for no fault of the run
    service.audit()
    service.run(GOOD)
    service.audits.update("shipping", definition := service.audits.get("shipping").definition)
    service.audits.update("shipping", definition.model_copy(update={"schedule": "0 3 1 6 *"}))
    clock.now = clock.now.replace(month=6, hour=3)
    engine.dispose()

    def work() -> None:
        for job in service.queued():
            service.work(GOOD if service.claim_terms(job) == f"sha256:{'a' * 64}" else WORSE, job)

    deaths = survive(url, tmp_path, clock, work)
    assert deaths > 15
    last, first = service.audits.runs("shipping").runs
    assert (first.verdict, last.verdict, last.trigger) == ("pass", "fail", "schedule")
    assert len(last.reruns) == 1
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(JobRow)) == 4  # two runs, and a rerun of two models
        assert connection.scalar(select(func.count()).select_from(AuditRerunRow)) == 1
    assert {job.status for job in service.jobs.list().jobs} == {Status.succeeded}


def test_real_schedulers_that_are_killed_at_random_end_every_run_once(tmp_path: Path) -> None:
    """Two processes at a time, of which the older is killed whenever runs have ended, while a worker does the jobs."""
    environment = {
        **os.environ,
        "HEADROOM_HOME": str(tmp_path),
        "HEADROOM_BROKER_URL": f"redis+socket://{tmp_path / 'none.sock'}",
        "HEADROOM_SCHEDULER_SECONDS": "0.05",
        "HEADROOM_LEASE_SECONDS": "0.4",
    }
    engine = make_engine(f"sqlite:///{tmp_path / 'headroom.db'}")
    upgrade(engine)
    service = Service(engine, tmp_path, utcnow)
    names = [service.audit(name=f"a{number}", limits=(LIMIT,)) for number in range(3)]
    asked = [service.audits.request_run(name) for name in names for _ in range(3)]
    schedulers: list[subprocess.Popen[bytes]] = []

    def unended() -> list[AuditRun]:
        return [run for run in (service.audits.run(one.id) for one in asked) if run.verdict is None]

    def start() -> None:
        command = [sys.executable, "-m", "service.scheduler"]
        schedulers.append(spawn(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    try:
        start()
        start()
        killed, seen = 0, len(asked)
        while left := len(unended()):
            time.sleep(0.05)
            for job in service.queued():
                service.work(GOOD, job)
            if left < seen and killed < 5:  # they have done something: the older of the two goes
                seen = left
                schedulers[killed].send_signal(signal.SIGKILL)
                schedulers[killed].wait()
                killed += 1
                start()
    finally:
        for one in schedulers:
            terminate(one, 5)
    assert killed >= 2
    verdicts = [service.audits.run(one.id).verdict for one in asked]
    assert verdicts == ["pass", "unchanged", "unchanged"] * 3
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(JobRow)) == len(asked)
        assert connection.scalar(select(func.count(func.distinct(AuditRunRow.job_id)))) == len(asked)
    engine.dispose()
