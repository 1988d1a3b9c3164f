"""Two scheduler processes that race over the same due times: each becomes one run with one job."""

import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from audited import Service
from sqlalchemy import Engine, func, insert, select, update

from service.processes import spawn, terminate
from service.store.audit_records import owned_name
from service.store.audit_tables import AuditRow, AuditRunRow
from service.store.database import writer
from service.store.hosts.clock import utcnow
from service.store.job_records import new_id
from service.store.tables import JobRow

AUDITS = 1000
STARTED = 20
"""Runs that are started before the schedulers are stopped."""


def add_audits(engine: Engine, service: Service, due_at: datetime) -> None:
    """Make audits that are due once a year, and next in almost a year."""
    schedule = f"{due_at.minute} {due_at.hour} {due_at.day} {due_at.month} *"
    service.audit(name="a0", schedule=schedule, catch_up_seconds=31 * 86400, limits=())
    columns = AuditRow.__table__.columns
    with writer(engine).begin() as connection:
        row = connection.execute(select(AuditRow.__table__)).one()._mapping
        first = {column.name: row[column.name] for column in columns}
        others = []
        for number in range(1, AUDITS):
            name = f"a{number}"
            tokens = {kind: f"{kind} {number}" for kind in ("badge_token", "feed_token")}
            own = {"id": new_id(utcnow()), "owned_name": owned_name(row["owner"], name), **tokens}
            others.append({**first, **own, "definition": {**first["definition"], "name": name}})
        connection.execute(insert(AuditRow), others)


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


def test_two_schedulers_racing_over_1000_due_times_make_1000_runs(engine: Engine, url: str, tmp_path: Path) -> None:
    """The times become due in one transaction, while both processes look twenty times a second."""
    due_at = (datetime.now(UTC) - timedelta(days=1)).replace(second=0, microsecond=0)
    add_audits(engine, Service(engine, tmp_path, utcnow), due_at)
    environment = {
        **os.environ,
        "HEADROOM_HOME": str(tmp_path),
        "HEADROOM_DATABASE_URL": url,
        "HEADROOM_BROKER_URL": f"redis+socket://{tmp_path / 'none.sock'}",
        "HEADROOM_SCHEDULER_SECONDS": "0.05",
    }
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    schedulers = []
    try:
        for path in logs:
            with path.open("wb") as log:
                schedulers.append(spawn([sys.executable, "-m", "service.scheduler"], env=environment, stderr=log))
        wait_for(lambda: all("the scheduler runs a round" in path.read_text() for path in logs))
        with writer(engine).begin() as connection:
            connection.execute(update(AuditRow).values(handled_at=due_at - timedelta(days=1), next_run_at=due_at))

        def count(rows: type[AuditRunRow | JobRow]) -> int:
            with engine.connect() as connection:
                return connection.scalar(select(func.count()).select_from(rows)) or 0

        wait_for(lambda: count(AuditRunRow) >= AUDITS)
        wait_for(lambda: count(JobRow) >= STARTED)  # by then the slower of the two has been through all times too
    finally:
        for one in schedulers:
            terminate(one, 5)
    assert count(AuditRunRow) == AUDITS
    with engine.connect() as connection:
        runs = connection.execute(select(AuditRunRow.audit_id, AuditRunRow.scheduled_at, AuditRunRow.job_id)).all()
        assert set(connection.scalars(select(AuditRow.runs))) == {1}
    assert {scheduled_at for _, scheduled_at, _ in runs} == {due_at}
    assert len({audit for audit, _, _ in runs}) == AUDITS
    jobs = [job for _, _, job in runs if job is not None]
    assert len(jobs) == len(set(jobs)) == count(JobRow) >= STARTED
    assert not any("Traceback" in path.read_text() for path in logs)
