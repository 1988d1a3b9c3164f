"""A worker that is killed in the middle of an audit's job, beside a real scheduler: the run ends once."""

import json
import os
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
import sys
from service import queue
from service.settings import settings
from workers.app import make_worker
from workers.sandbox.programs import Commands
python = (sys.executable, "-I", "-S", "-c")
measurement = (*python, sys.argv[1], str(settings().home))
commands = Commands(measurement=measurement, reporting=(*python, ""), resolution=(*python, sys.argv[2]))
make_worker(settings(), commands).worker_main([*queue.WORKER_ARGUMENTS, "--loglevel=INFO"])
"""

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


def test_the_run_of_a_killed_worker_ends_once(site: Site) -> None:
    report = json.dumps(json.loads((STORED / "report.json").read_text()))
    measure = MEASURE.replace('"{}"', repr(report))
    site.command = (sys.executable, "-c", WORKER, measure, RESOLVE)
    artifacts = ArtifactStore(site.settings.artifacts)
    audits, alerts = AuditStore(site.engine, artifacts), AlertStore(site.engine)
    definition = AuditDefinition(name="watch", model="sample", limits=(LIMIT,), reruns=0)
    audit = audits.create(definition)
    asked = audits.request_run("watch")
    site.hold()
    first = site.worker()
    scheduler = start_scheduler(site)
    try:
        wait_for(lambda: audits.run(asked.id).started_at is not None)
        [job] = site.store.list().jobs
        wait_for(lambda: site.is_measuring(job.id))
        first.kill()
        first.wait()
        site.expire()
        site.go_on()
        site.worker()
        wait_for(lambda: audits.run(asked.id).verdict is not None)
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
