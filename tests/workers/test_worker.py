"""Real Celery workers on a real broker, killed, stopped and cut off, with small programs for the measurement."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from service import queue
from service.contracts.request import JobRequest
from service.errors import ServiceUnreachable
from service.local.broker import program
from service.processes import spawn, terminate
from service.scheduler.rounds import run_round
from service.settings import Settings
from service.store.database import make_engine, upgrade
from service.store.hosts.clock import utcnow
from service.store.jobs import JobStore
from service.store.statuses import Status
from service.store.tables import JobRow
from workers.app import worker_name

LEASE = 600.0
"""So long that no worker that is alive loses its job, however slow the machine."""

MEASURE = """
import json, os, pathlib, sys, time
home, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[-1])
with open(home / "pids", "a") as pids: print(os.getpid(), file=pids)
print(json.dumps(dict(kind="progress", stage="sweep", done=0, total=9, elapsed_seconds=0)), flush=True)
while (home / "hold").exists(): time.sleep(0.02)
target.mkdir()
(target / "report.json").write_text("{}")
print(json.dumps(dict(kind="finished")), flush=True)
"""
WORKER = """
import sys
from service import queue
from service.settings import settings
from workers.app import make_worker
from workers.sandbox.programs import Commands
python = (sys.executable, "-I", "-S", "-c")
commands = Commands(measurement=(*python, sys.argv[1], str(settings().home)), reporting=(*python, ""))
make_worker(settings(), commands).worker_main([*queue.WORKER_ARGUMENTS, "--loglevel=INFO"])
"""


class Site:
    """One broker, one database, a scheduler in a thread, and workers as processes."""

    def __init__(self, home: Path, socket_home: Path) -> None:
        self.home = home
        self._socket = socket_home / "broker.sock"
        self.url = f"redis+socket://:secret@{self._socket}"
        self._broker = self._start_broker()
        self.settings = Settings(home=home, broker_url=SecretStr(self.url))
        self.engine = make_engine(self.settings.database)
        upgrade(self.engine)
        self.store = JobStore(self.engine)
        self.command = (sys.executable, "-c", WORKER, MEASURE)
        """What a worker is."""
        self.workers: list[subprocess.Popen[bytes]] = []
        self._ended = Event()
        self._scheduler = Thread(target=self._schedule)
        self._scheduler.start()

    def _start_broker(self) -> subprocess.Popen[bytes]:
        options = ["--port", "0", "--unixsocket", str(self._socket), "--requirepass", "secret", "--save", ""]
        process = spawn([str(program()), *options], stdout=subprocess.DEVNULL, cwd=self._socket.parent)
        wait_for(self._socket.exists)
        return process

    def restart_broker(self) -> None:
        """Replace the broker by an empty one at the same address."""
        terminate(self._broker, 5)
        self._socket.unlink(missing_ok=True)
        self._broker = self._start_broker()

    def _schedule(self) -> None:
        app = queue.make_app(self.settings)
        send, waiting = partial(queue.send, app), partial(queue.waiting, app)
        while not self._ended.wait(0.1):
            with suppress(ServiceUnreachable):
                run_round(self.store, send, waiting, max_attempts=3, answer_seconds=0.5)
        app.close()

    def worker(self, device: str = "auto") -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "HEADROOM_DEVICE": device,
            "HEADROOM_HOME": str(self.home),
            "HEADROOM_BROKER_URL": self.url,
            "HEADROOM_LEASE_SECONDS": str(LEASE),
        }
        with (self.home / "worker.log").open("ab") as log:
            process = spawn(self.command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self.workers.append(process)
        return process

    def submit(self) -> str:
        return self.store.submit(JobRequest(model="sample")).id

    def hold(self) -> None:
        """Let measurements wait in the middle until `go_on`."""
        (self.home / "hold").touch()

    def go_on(self) -> None:
        (self.home / "hold").unlink()

    def status(self, job: str) -> Status:
        return self.store.get(job).status

    def is_measuring(self, job: str) -> bool:
        return self.store.get(job).progress is not None

    def kinds(self, job: str) -> list[str]:
        return [event.kind for event in self.store.events(job) if event.kind != "progress"]

    def measurements(self) -> list[int]:
        """Process ids of all measurements so far."""
        path = self.home / "pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def expire(self) -> None:
        """Let all leases run out."""
        JobStore(self.engine, lambda: utcnow() + timedelta(seconds=2 * LEASE)).requeue_expired(3)

    def messages(self) -> list[Any]:
        """What the messages in the broker say: the job's id and the dispatch's number."""
        with self.client() as client:
            bodies = [json.loads(message)["body"] for message in client.lrange(queue.QUEUE, 0, -1)]
        return [json.loads(base64.b64decode(body))[0] for body in bodies]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url.replace("redis+socket", "unix"))

    def close(self) -> None:
        self._ended.set()
        self._scheduler.join()
        for worker in self.workers:
            terminate(worker, 5)
        terminate(self._broker, 5)
        self.engine.dispose()


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process exists and is not a corpse that nobody has collected."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture
def site(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site without workers."""
    made = Site(tmp_path, tmp_path_factory.mktemp("b"))
    yield made
    made.close()


def test_a_killed_worker_leaves_no_orphan_and_its_job_ends_with_one_report(site: Site) -> None:
    job = site.submit()
    site.hold()
    first = site.worker()
    wait_for(lambda: site.is_measuring(job))
    (orphan,) = site.measurements()
    assert alive(orphan)
    first.kill()
    first.wait()
    wait_for(lambda: not alive(orphan))
    site.expire()
    site.go_on()
    site.worker()
    wait_for(lambda: site.status(job) is Status.succeeded)
    assert site.kinds(job) == ["queued", "started", "requeued", "started", "succeeded"]
    assert [row.name for row in site.store.artifacts(job)] == ["bundle.zip", "report.json"]
    assert len(site.measurements()) == 2
    wait_for(lambda: list((site.home / "work").iterdir()) == [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_worker_that_is_told_to_stop_gives_its_job_back(site: Site, number: signal.Signals) -> None:
    job = site.submit()
    site.hold()
    worker = site.worker()
    wait_for(lambda: site.is_measuring(job))
    (measurement,) = site.measurements()
    worker.send_signal(number)
    worker.wait(120)
    assert not alive(measurement)
    assert (site.status(job), site.kinds(job)) == (Status.queued, ["queued", "started", "requeued"])
    assert [path.name for path in (site.home / "work").iterdir()] == [job]


def test_a_worker_without_its_broker_says_for_what_it_waits(tmp_path: Path) -> None:
    url = f"redis+socket://:hush@{tmp_path / 'none.sock'}"
    environment = {**os.environ, "HEADROOM_HOME": str(tmp_path), "HEADROOM_BROKER_URL": url}
    worker = spawn(
        [sys.executable, "-m", "workers.app"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        assert worker.stderr is not None
        assert worker.stderr.readline().startswith(b"headroom worker: jobs run with")
        line = worker.stderr.readline().decode()
        assert line.startswith("headroom worker: HEADROOM_BROKER_URL: the broker at redis+socket://:**@")
        assert line.endswith("it is tried again until it answers\n")
        assert "hush" not in line
    finally:
        terminate(worker, 30)
        worker.communicate()


@pytest.mark.parametrize("device", ["cuda:1", "auto"])
def test_a_job_names_its_worker_and_the_worker_s_device(site: Site, device: str) -> None:
    job = site.submit()
    worker = site.worker(device)
    wait_for(lambda: site.status(job) is Status.succeeded)
    name = f"{socket.gethostname()}:{worker.pid}:{device}"
    assert [event.data["worker"] for event in site.store.events(job) if event.kind == "started"] == [name]


def test_a_worker_s_name_fits_into_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 255)
    name = worker_name(Settings(device="cuda:99"))
    assert len(name) <= JobRow.__table__.c.worker.type.length
    assert name.endswith(f":{os.getpid()}:cuda:99")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "cuda:1-{pid}@{host}"),
        (["-n", "mine@here"], "mine@here"),
        (["--hostname=mine@%h"], "mine@{host}"),
        (["-nmine@here"], "mine@here"),
    ],
)
def test_celery_knows_a_worker_by_its_device_unless_told_another_name(
    site: Site, options: list[str], name: str
) -> None:
    environment = {**os.environ, "HEADROOM_HOME": str(site.home), "HEADROOM_BROKER_URL": site.url}
    log = site.home / "named.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "workers.app", *options]
        worker = spawn(command, env={**environment, "HEADROOM_DEVICE": "cuda:1"}, stdout=file, stderr=file)
    site.workers.append(worker)
    wait_for(lambda: " ready.\n" in log.read_text())
    assert f" {name.format(pid=worker.pid, host=socket.gethostname())} ready.\n" in log.read_text()


def test_a_worker_does_not_load_torch() -> None:
    code = "import sys, workers.app; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


def test_an_idle_worker_stops_too(site: Site) -> None:
    worker = site.worker()
    job = site.submit()
    wait_for(lambda: site.status(job) is Status.succeeded)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(120) == 0


def test_a_busy_worker_leaves_messages_to_others(site: Site) -> None:
    site.hold()
    site.worker()
    first = site.submit()
    wait_for(lambda: site.is_measuring(first))
    second = site.submit()
    wait_for(lambda: not site.store.unsent_dispatches())
    time.sleep(0.5)
    assert [second, 1] in site.messages()
    site.worker()
    wait_for(lambda: site.is_measuring(second))
    assert site.is_measuring(first)
    site.go_on()
    wait_for(lambda: [site.status(job) for job in (first, second)] == [Status.succeeded] * 2)


def test_doubled_stale_and_unknown_messages_repeat_nothing(site: Site) -> None:
    app = queue.make_app(site.settings)
    job = site.submit()
    for _ in range(3):
        queue.send(app, job, 1)
        queue.send(app, job, 0)
        queue.send(app, "0" * 32, 1)
    site.worker()
    last = site.submit()
    wait_for(lambda: site.status(last) is Status.succeeded)
    wait_for(lambda: not any(queue.waiting(app).values()))
    assert site.kinds(job) == ["queued", "started", "succeeded"]
    assert len(site.measurements()) == 2
    app.close()


def test_an_emptied_redis_loses_and_repeats_nothing(site: Site) -> None:
    site.hold()
    site.worker()
    jobs = [site.submit() for _ in range(4)]
    wait_for(lambda: any(site.is_measuring(job) for job in jobs) and not site.store.unsent_dispatches())
    with site.client() as client:
        client.flushall()  # the server is this test's own
    site.go_on()
    wait_for(lambda: all(site.status(job) is Status.succeeded for job in jobs))
    assert [site.kinds(job) for job in jobs] == [["queued", "started", "succeeded"]] * 4
    assert len(site.measurements()) == 4


def test_a_broker_that_restarts_is_found_again(site: Site) -> None:
    site.hold()
    site.worker()
    job = site.submit()
    wait_for(lambda: site.is_measuring(job))
    site.restart_broker()
    site.go_on()
    wait_for(lambda: site.status(job) is Status.succeeded)
    after = site.submit()
    wait_for(lambda: site.status(after) is Status.succeeded)
    assert site.kinds(job) == ["queued", "started", "succeeded"]
