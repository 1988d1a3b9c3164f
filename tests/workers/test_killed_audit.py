"""Workers that are killed with an audit's job in hand, beside a real scheduler: the run ends once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from sqlalchemy import func, select
from test_worker import MEASURE, Site, site, wait_for

from service.contracts.audits.audit import AuditDefinition
from service.processes import spawn, terminate
from service.store.alerts import AlertStore
from service.store.artifacts import ArtifactStore
from service.store.audit_tables import AuditRunRow
from service.store.audits import AuditStore
from service.store.tables import JobRow

STORED = Path(__file__).parent / "reporting" / "stored" / "schema_1_0"
LIMIT = "int8.compression <= 0.001"
"""No scheme meets it, so that the run opens an alert and announces it."""
RESOLVE = """
import json, pathlib, sys
pathlib.Path(sys.argv[3]).write_text(json.dumps(dict(model=sys.argv[1], content="sha256:1", hardware="cpu")))
print(json.dumps(dict(kind="finished")))
"""
WORKER = """
import os, signal, sys
from service import queue
from service.settings import settings
from workers.app import make_worker
from workers.sandbox.programs import Commands
from workers.supervisor import Supervisor
run, dies = Supervisor.run, sys.argv[3]
def run_and_die(supervisor, *message):
    if dies == "before": os.kill(os.getpid(), signal.SIGKILL)
    done = run(supervisor, *message)
    if dies == "after" and done: os.kill(os.getpid(), signal.SIGKILL)
Supervisor.run = run_and_die
python = (sys.executable, "-I", "-S", "-c")
measurement = (*python, sys.argv[1], str(settings().home))
commands = Commands(measurement=measurement, reporting=(*python, ""), resolution=(*python, sys.argv[2]))
make_worker(settings(), commands).worker_main([*queue.WORKER_ARGUMENTS, "--loglevel=INFO"])
"""
"""A worker that dies before its first job, when it has taken and acknowledged the message, or after it."""

__all__ = ["site"]


def start_scheduler(site: Site) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "HEADROOM_HOME": str(site.home),
        "HEADROOM_BROKER_URL": site.url,
        "HEADROOM_SCHEDULER_SECONDS": "0.1",
    }
    with (site.home / "scheduler.log").open("wb") as log:
        return spawn([sys.executable, "-m", "service.scheduler"], env=environment, stdout=log, stderr=log)


def start_worker(site: Site, dies: str) -> subprocess.Popen[bytes]:
    report = json.dumps(json.loads((STORED / "report.json").read_text()))
    measure = MEASURE.replace('"{}"', repr(report))
    site.command = (sys.executable, "-c", WORKER, measure, RESOLVE, dies)
    return site.worker()


def test_the_run_of_killed_workers_ends_once(site: Site) -> None:
    artifacts = ArtifactStore(site.settings.artifacts)
    audits, alerts = AuditStore(site.engine, artifacts), AlertStore(site.engine)
    definition = AuditDefinition(name="watch", model="sample", limits=(LIMIT,), reruns=0)
    audit = audits.create(definition)
    asked = audits.request_run("watch")
    site.hold()
    scheduler = start_scheduler(site)
    try:
        wait_for(lambda: audits.run(asked.id).started_at is not None)
        [job] = site.store.list().jobs
        assert start_worker(site, "before").wait() == -signal.SIGKILL
        second = start_worker(site, "never")
        wait_for(lambda: site.is_measuring(job.id))
        second.kill()
        second.wait()
        site.expire()
        site.go_on()
        assert start_worker(site, "after").wait() == -signal.SIGKILL
        wait_for(lambda: audits.run(asked.id).verdict is not None)
        start_worker(site, "never")
        again = audits.request_run("watch")
        wait_for(lambda: audits.run(again.id).verdict is not None)
    finally:
        terminate(scheduler, 5)
    attempt = ["started", "resolved"]
    assert site.kinds(job.id) == ["queued", *attempt, "requeued", *attempt, "succeeded"]
    run = audits.run(asked.id)
    assert (run.verdict, run.report_id) == ("fail", job.id)
    assert audits.run(again.id).verdict == "unchanged"
    assert [one.run_id for one in alerts.announcements(audit.id, 10)] == [run.id]
    with site.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(AuditRunRow)) == 2
        assert connection.scalar(select(func.count()).select_from(JobRow)) == 2
    assert len(site.measurements()) == 2
