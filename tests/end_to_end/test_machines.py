"""The API and the workers on machines of their own: a home for each, no shared directory, and S3, PostgreSQL, Redis."""

import hashlib
import io
import os
import secrets
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from conftest import until

from service.processes import spawn, terminate
from service.storage.cache import FileCache
from service.storage.opening import open_storage
from service.store.files.checkpoints import CheckpointStore

POSTGRESQL = os.environ.get("HEADROOM_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/test")
KEY = "the-key-of-the-tests-on-two-machines"
SMALL = {"model": "sample", "sequences": 2, "sequence_length": 32, "schemes": ["nf4"]}
WAITS = """
import os, pathlib, sys, time
from workers.measurement.runtime.progress import ProgressReporter
say = ProgressReporter._say
def say_and_wait(self, line):
    say(self, line)
    if (getattr(line, "stage", None), getattr(line, "done", None)) == ("sweep", 4): time.sleep(600)
ProgressReporter._say = say_and_wait
from workers.measurement.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""A measurement that stops after its fourth layer, when the streams after three are kept."""
SLOW_WORKER = """
import sys
from service import queue
from service.settings import settings
from workers.app import make_worker
from workers.sandbox.programs import Commands
commands = Commands(measurement=(sys.executable, "-c", sys.argv[1]))
make_worker(settings(), commands).worker_main([*queue.WORKER_ARGUMENTS, "--loglevel=INFO"])
"""


@dataclass
class Machines:
    """Processes that share nothing but the addresses of the database, the broker and the object store."""

    directory: Path
    environment: dict[str, str]
    url: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, home: str, *command: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start a program on the machine `home`."""
        (self.directory / home).mkdir(exist_ok=True)
        environment = {**self.environment, "HEADROOM_HOME": str(self.directory / home), **settings}
        with (self.directory / f"{home}.log").open("ab") as log:
            process = spawn(
                [sys.executable, *command], env=environment, stdout=log, stderr=log, cwd=self.directory / home
            )
        self.processes.append(process)
        return process

    def start_api(self) -> None:
        """Start the API and the scheduler on one machine."""
        self.start("api", "-m", "service.api", HEADROOM_API_KEY=KEY)
        self.start("api", "-m", "service.scheduler")
        log = self.directory / "api.log"
        until(lambda: "Uvicorn running on " in log.read_text())
        self.url = log.read_text().partition("Uvicorn running on ")[2].split()[0]

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = httpx.request(
            method, self.url + path, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, timeout=60, **options
        )
        assert answer.is_success, (path, answer.text)
        return answer

    def ended(self, job_id: str) -> dict[str, Any]:
        """Return the job, once it has ended."""

        def ended() -> dict[str, Any] | None:
            job = self.call("GET", f"/v1/jobs/{job_id}").json()
            return job if job["finished_at"] else None

        result: dict[str, Any] = until(ended)
        return result

    def sweep_begins_at(self, job_id: str) -> list[int]:
        """The layers at which the attempts' sweeps began."""
        events = self.call("GET", f"/v1/jobs/{job_id}/events").json()["events"]
        told = [event for event in events if event["kind"] in ("started", "progress")]
        return [
            event["data"]["done"]
            for before, event in pairwise(told)
            if event["data"].get("stage") == "sweep" and before["data"].get("stage") != "sweep"
        ]

    def bundle(self, job_id: str) -> zipfile.ZipFile:
        return zipfile.ZipFile(io.BytesIO(self.call("GET", f"/v1/reports/{job_id}/bundle.zip").content))


@pytest.fixture
def database() -> Iterator[str]:
    schema = f"headroom_{secrets.token_hex(8)}"
    with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            yield f"{POSTGRESQL}?options=-csearch_path%3D{schema}"
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture
def machines(tmp_path, database, redis_machine, object_store, bucket_url) -> Iterator[Machines]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")}
    environment = {
        **kept,
        **object_store.environment,
        "HEADROOM_ARTIFACTS_URL": bucket_url,
        "HEADROOM_DATABASE_URL": database,
        "HEADROOM_BROKER_URL": redis_machine.environment["HEADROOM_BROKER_URL"],
        "HEADROOM_PORT": "0",
        "HEADROOM_DEVICE": "cpu",
        "HEADROOM_LEASE_SECONDS": "10",
        "HEADROOM_SCHEDULER_SECONDS": "0.2",
        "HEADROOM_CHECKPOINT_SECONDS": "0",
    }
    made = Machines(tmp_path, environment)
    yield made
    for process in reversed(made.processes):
        terminate(process, 10)


def test_every_file_of_a_report_made_elsewhere_can_be_downloaded(machines, tmp_path):
    machines.start_api()
    machines.start("worker", "-m", "workers.app")
    text = (Path(__file__).parents[2] / "README.md").read_text() * 3
    body = {**SMALL, "calibration": {"name": "readme.txt", "text": text}}
    job = machines.ended(machines.call("POST", "/v1/jobs", json=body).json()["id"])
    assert job["status"] == "succeeded", job["error"]
    path = f"/v1/reports/{job['id']}"
    report = machines.call("GET", path).json()
    assert report["calibration"]["source"] == "readme.txt"
    with machines.bundle(job["id"]) as bundle:
        contents = {name: bundle.read(name) for name in bundle.namelist()}
    listed = [file for kind in ("figures", "tables") for entry in report[kind] for file in entry["files"]]
    assert set(listed) <= contents.keys()
    assert len(listed) > 10
    for name in ("report.html", "summary.md", *listed):
        answer = machines.call("GET", f"{path}/{name}")
        assert answer.content == contents[name]
        assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert machines.call("GET", f"{path}/tables/sites.csv").text.startswith('"layer"')
    assert machines.call("GET", "/readyz").json()["artifacts"] == "ok"
    for home in ("api", "worker"):
        assert not (tmp_path / home / "artifacts").exists()


def test_another_machine_goes_on_from_the_last_checkpoint_of_one_that_is_lost(machines, tmp_path, bucket_url):
    checkpoints = CheckpointStore(open_storage(bucket_url, FileCache(tmp_path / "cache", 0)))
    machines.start_api()
    lost = machines.start("lost", "-c", SLOW_WORKER, WAITS)
    job_id = machines.call("POST", "/v1/jobs", json=SMALL).json()["id"]
    until(lambda: (kept := checkpoints.latest(job_id)) is not None and kept.layers_done == 3)
    os.killpg(lost.pid, signal.SIGKILL)
    machines.start("other", "-m", "workers.app")
    job = machines.ended(job_id)
    assert (job["status"], job["attempts"]) == ("succeeded", 2), job["error"]
    assert machines.sweep_begins_at(job_id) == [0, 3]
    until(lambda: checkpoints.jobs(datetime.now(UTC) + timedelta(days=1)) == set())
    uninterrupted = machines.ended(machines.call("POST", "/v1/jobs", json=SMALL).json()["id"])["id"]
    assert machines.sweep_begins_at(uninterrupted) == [0]
    with machines.bundle(job_id) as one, machines.bundle(uninterrupted) as other:
        names = [name for name in one.namelist() if name.startswith("tables/")]
        assert [one.read(name) for name in names] == [other.read(name) for name in names]
    assert len(names) > 5


@pytest.mark.parametrize("program", [("-m", "workers.app"), ("-m", "service.scheduler")])
def test_a_process_with_another_store_does_not_start(machines, tmp_path, program):
    machines.start_api()
    process = machines.start("mistaken", *program, HEADROOM_ARTIFACTS_URL=(tmp_path / "elsewhere").as_uri())
    assert process.wait(120) == 2
    said = (tmp_path / "mistaken.log").read_text()
    assert "HEADROOM_ARTIFACTS_URL: " in said
    assert "is not the artifact store of this database" in said
