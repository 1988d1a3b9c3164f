"""Workers that are killed between any two steps of an audit's run: the run ends once.

The steps are not listed: every commit and every change to a file is one. A worker runs in a process of its own, which
ends itself by SIGKILL at its n-th point, for n = 0, 1, 2, ... until one lives to the end. Each is killed in a run
of its own; then the lease runs out, and another worker does what is left.
"""

import json
import os
import signal
import sys
from collections import Counter
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from audited import LEASE, Clock, Service
from sqlalchemy import Engine, event, func, select

from service.contracts.audits.audit import AuditRun
from service.settings import Settings
from service.store.alerts import AlertStore
from service.store.audit_tables import AuditRunRow
from service.store.notifications.tables import AlertRow
from service.store.statuses import JOB_ENDED
from service.store.tables import ArtifactRow, JobRow
from workers.sandbox.programs import Commands
from workers.supervisor import Supervisor

REPORT = Path(__file__).parents[2] / "workers" / "reporting" / "stored" / "schema_1_0" / "report.json"
LIMIT = "int8.compression <= 0.001"
"""No scheme meets it, so that the run opens an alert and announces it."""
FINISHED = """echo '{"kind": "finished"}'"""
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.link", "shutil.rmtree", "shutil.copyfile", "subprocess.Popen")
"""Audit events of Python: a file is about to be changed, or a program to be started."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def is_change(name: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event of Python says that a file is about to be changed, or a program to be started."""
    if name == "open":
        return isinstance(arguments[0], str | Path) and arguments[0] != os.devnull and bool(arguments[2] & WRITING)
    return name in CHANGES or (name == "os.mkdir" and not Path(arguments[0]).exists())


def die_at(step: int, engine: Engine) -> None:
    """Have this process end at its n-th point: before a commit, after it, and before a file is changed.

    Files are the same whatever the database, so only those beside SQLite count.
    """
    points = count()

    def point(*_: object) -> None:
        if next(points) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(engine, "commit", point)
    event.listen(engine, "checkin", point)
    if engine.dialect.name == "sqlite":
        sys.addaudithook(lambda name, arguments: point() if is_change(name, arguments) else None)


class Fleet:
    """A scheduler, and workers with small programs for resolution, measurement and drawing."""

    def __init__(self, engine: Engine, home: Path, clock: Clock) -> None:
        home.mkdir()
        self.engine, self._clock = engine, clock
        self.service = Service(engine, home, clock)
        self.settings = Settings(home=home, lease_seconds=LEASE, device="cpu")
        self.weights, self._measured, report = home / "weights", home / "measured", home / "report.json"
        report.write_text(json.dumps(json.loads(REPORT.read_text()) | {"headroom_version": version("headroom")}))
        resolved = f"""printf '{{"model": "sample", "content": "%s", "hardware": "cpu"}}' "$(cat {self.weights})" """
        scripts = {
            "resolution": f'{resolved} > "$3"; {FINISHED}',
            "measurement": f'echo once >> {self._measured}; mkdir "$2"; cp {report} "$2"; {FINISHED}',
            "reporting": f'cp {self.weights} "$1/summary.md"',
        }
        self._commands = Commands(**{what: ("/bin/sh", "-c", script, "sh") for what, script in scripts.items()})

    def work(self) -> None:
        """Do the job whose turn it is, if there is one."""
        Supervisor(
            self.service.jobs, self.service.artifacts, self.settings, worker="host:1", commands=self._commands
        ).run_next()

    def work_and_die(self, step: int) -> bool:
        """Do the same in a process that dies at a point; return whether it lived to the end."""
        self.engine.dispose()  # no connection is shared by two processes
        child = os.fork()
        if child == 0:
            try:
                die_at(step, self.engine)
                self.work()
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        return status == 0

    def run(self, audit: str, step: int) -> tuple[AuditRun, str, bool]:
        """Ask for a run of an audit, and bring it to its end though its first worker dies at a point.

        Returns it with the last event of its job at that death, and whether the worker lived.
        """
        asked = self.service.audits.request_run(audit)
        self.service.round()
        job_id = self.service.queued()[0]
        lived = self.work_and_die(step)
        last = self.service.jobs.events(job_id)[-1].kind
        self._clock.move(seconds=2 * LEASE)
        self.service.jobs.requeue_expired(3)
        self.work()
        self.service.round()
        kinds = [one.kind for one in self.service.jobs.events(job_id)]
        assert [kind for kind in kinds if kind in JOB_ENDED] == kinds[-1:]
        assert kinds.count("started") <= 2
        return self.service.audits.run(asked.id), last, lived

    def count(self, table: Any, *conditions: Any) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(table).where(*conditions)) or 0

    @property
    def measurements(self) -> int:
        return len(self._measured.read_text().splitlines())


@pytest.fixture
def fleet(engine: Engine, tmp_path: Path, clock: Clock) -> Fleet:
    """A service that has nothing to do yet."""
    return Fleet(engine, tmp_path / "home", clock)


def test_a_run_ends_once_though_workers_die_between_every_two_steps(fleet: Fleet) -> None:
    deaths: Counter[str] = Counter()
    alerts = AlertStore(fleet.engine)
    for step in count():
        fleet.weights.write_text(str(step))
        name = fleet.service.audit(name=f"a{step}", model="sample", limits=(LIMIT,), reruns=0)
        run, last, lived = fleet.run(name, step)
        assert (run.verdict, fleet.count(AuditRunRow, AuditRunRow.audit_id == run.audit_id)) == ("fail", 1)
        assert fleet.count(ArtifactRow, ArtifactRow.job_id == run.report_id) == 3  # report, summary and bundle
        assert fleet.count(AlertRow, AlertRow.audit_id == run.audit_id) == 1
        assert [one.run_id for one in alerts.announcements(run.audit_id, 10)] == [run.id]
        if lived:
            break
        deaths[last] += 1
    assert deaths.keys() >= {"queued", "started", "resolved", "progress", "succeeded"}
    assert deaths.total() == step > 15
    assert fleet.count(JobRow) == fleet.count(AuditRunRow) == step + 1
    assert step + 1 <= fleet.measurements <= 2 * step  # what was measured before a death is not measured again
    assert list((fleet.settings.home / "work").iterdir()) == []


def test_an_unchanged_run_ends_once_though_workers_die_between_every_two_steps(fleet: Fleet) -> None:
    fleet.weights.write_text("same")
    name = fleet.service.audit(model="sample", limits=(LIMIT,), reruns=0)
    first, _, _ = fleet.run(name, step=1_000_000)
    deaths: Counter[str] = Counter()
    for step in count():
        run, last, lived = fleet.run(name, step)
        assert (run.verdict, run.report_id) == ("unchanged", None)
        if lived:
            break
        deaths[last] += 1
    assert deaths.keys() >= {"queued", "started", "resolved", "cancelled"}
    assert fleet.count(JobRow) == fleet.count(AuditRunRow) == step + 2
    assert fleet.measurements == 1
    alerts = AlertStore(fleet.engine)
    assert [one.run_id for one in alerts.announcements(first.audit_id, 10)] == [first.id]
