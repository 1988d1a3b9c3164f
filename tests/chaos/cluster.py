"""A service of many processes that can be harmed: an API, two schedulers whose clocks are a minute apart, workers.

They use PostgreSQL (a schema of their own), a Redis of their own and an S3 store of their own. PostgreSQL and S3 they
reach through proxies, so that both can seem to be restarted. The workers run small programs in place of the measurement
and the drawing; each has, where this user may mount one, a small file system of its own, which can be full.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import redis
from sqlalchemy import make_url

from service.local.broker import program
from service.processes import spawn, terminate

POSTGRESQL = os.environ.get("HEADROOM_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/test")
KEY = "the-key-of-the-chaos-" + "0" * 16
LEASE_SECONDS = 5
HOME_BYTES = 16 << 20
"""Size of a worker's file system."""
_NOT_SERVICE = ("s3", "s3-proxy", "postgresql-proxy", "redis")
MEASURE = """
import json, pathlib, random, sys, time
asked, target = json.loads(pathlib.Path(sys.argv[-2]).read_text()), pathlib.Path(sys.argv[-1])
say = lambda **line: print(json.dumps(line), flush=True)
for done in range(3):
    say(kind="progress", stage="sweep", done=done, total=3, elapsed_seconds=done)
    time.sleep(random.uniform(0, 0.6))
target.mkdir()
(target / "report.json").write_text(json.dumps({"job_id": asked["job_id"]}))
say(kind="finished")
"""
WORKER = """
import sys
from service import queue
from service.settings import settings
from workers.app import make_worker
from workers.sandbox.programs import Commands
python = (sys.executable, "-I", "-S", "-c")
commands = Commands(measurement=(*python, sys.argv[1]), reporting=(*python, ""))
make_worker(settings(), commands).worker_main([*queue.WORKER_ARGUMENTS, "--loglevel=INFO"])
"""
SCHEDULER = """
import sys
from datetime import datetime, timedelta
from functools import partial
from service.scheduler import __main__ as scheduler
from service.scheduler import rounds
from service.store.hosts import clock
class Apart(datetime):
    @classmethod
    def now(cls, tz=None): return datetime.now(tz) + timedelta(seconds=float(sys.argv[1]))
clock.datetime = Apart
rounds.run_round = partial(rounds.run_round, answer_seconds=3.0)
scheduler.main()
"""
"""A scheduler on a host whose clock is off by so many seconds, which soon misses messages."""


class Cluster:
    """The processes by name, and what they share."""

    def __init__(self, directory: Path, database_url: str, application: str, workers: int) -> None:
        self.directory = directory
        self.application = application
        """Name by which PostgreSQL knows the connections of these processes."""
        self.port, s3_port, s3_proxy, postgresql_proxy = (_free_port() for _ in range(4))
        database = make_url(database_url)
        through_proxy = database.set(host="127.0.0.1", port=postgresql_proxy).render_as_string(hide_password=False)
        self.url = f"http://127.0.0.1:{self.port}"
        self._sockets = Path(tempfile.mkdtemp(prefix="headroom-chaos-"))
        self._socket = self._sockets / "broker.sock"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")},
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_proxy}",
            "PGAPPNAME": application,
            "HEADROOM_DATABASE_URL": through_proxy,
            "HEADROOM_BROKER_URL": f"redis+socket://:secret@{self._socket}",
            "HEADROOM_ARTIFACTS_URL": "s3://chaos/prefix",
            "HEADROOM_API_KEY": KEY,
            "HEADROOM_PORT": str(self.port),
            "HEADROOM_LEASE_SECONDS": str(LEASE_SECONDS),
            "HEADROOM_SCHEDULER_SECONDS": "0.2",
            "HEADROOM_DEVICE": "cpu",
        }
        moto = str(Path(sys.executable).with_name("moto_server"))
        python = sys.executable
        proxy = [python, str(Path(__file__).with_name("proxy.py"))]
        database_address = [database.host or "127.0.0.1", str(database.port or 5432)]
        redis_options = ["--port", "0", "--unixsocket", str(self._socket), "--requirepass", "secret", "--save", ""]
        self._commands = {
            "s3": [moto, "-H", "127.0.0.1", "-p", str(s3_port)],
            "s3-proxy": [*proxy, str(s3_proxy), "127.0.0.1", str(s3_port)],
            "postgresql-proxy": [*proxy, str(postgresql_proxy), *database_address],
            "redis": [str(program()), *redis_options],
            "api": [python, "-m", "service.api"],
            "scheduler-1": [python, "-c", SCHEDULER, "0"],
            "scheduler-2": [python, "-c", SCHEDULER, "61"],
            **{f"worker-{number}": [python, "-c", WORKER, MEASURE] for number in range(1, workers + 1)},
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._mounted: list[Path] = []

    @property
    def can_fill(self) -> bool:
        """Whether the workers have file systems of their own."""
        return bool(self._mounted)

    @property
    def names(self) -> list[str]:
        """Return the names of the service's own processes."""
        return [name for name in self._commands if name not in _NOT_SERVICE]

    def start(self, name: str) -> None:
        """Start a process, each with a home of its own."""
        home = self.directory / name
        home.mkdir(exist_ok=True)
        environment = {**self._environment, "HEADROOM_HOME": str(home)}
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = spawn(self._commands[name], env=environment, stdout=log, stderr=log, cwd=home)

    def start_all(self) -> None:
        """Start every process; the stores first, then the API, which makes the schema."""
        for name in _NOT_SERVICE:
            self.start(name)
        self._wait(lambda: httpx.get(self._environment["AWS_ENDPOINT_URL"], trust_env=False).is_success)
        bucket = f"{self._environment['AWS_ENDPOINT_URL']}/chaos"
        assert httpx.put(bucket, trust_env=False).is_success
        self._wait(self._socket.exists)
        self.start("api")
        self._wait(lambda: httpx.get(f"{self.url}/readyz", trust_env=False).is_success)
        for name in self.names[1:]:
            if name.startswith("worker"):
                self._mount(self.directory / name)
            self.start(name)

    def _mount(self, home: Path) -> None:
        home.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={HOME_BYTES}", "headroom-chaos", str(home)]
        if os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            self._mounted.append(home)

    def fill(self, name: str, seconds: float) -> None:
        """Let a worker's file system be full for a time."""
        ballast = self.directory / name / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        time.sleep(seconds)
        ballast.unlink()

    def kill(self, name: str, seconds: float = 0.0) -> None:
        """End a process with SIGKILL, and start it again after some seconds."""
        self._processes[name].kill()
        self._processes[name].wait()
        time.sleep(seconds)
        self.start(name)

    def start_ended(self) -> None:
        """Start again what has ended by itself, as with an API whose database did not answer at its start."""
        for name, process in list(self._processes.items()):
            if process.poll() is not None:
                self.start(name)

    def restart_postgresql(self, seconds: float) -> None:
        """Have all connections end, and new ones refused for a time."""
        self._processes["postgresql-proxy"].kill()
        self.end_connections(1.0, lambda: 0.0)
        self.kill("postgresql-proxy", seconds)

    def pause(self, name: str, seconds: float) -> None:
        """Let a process stand still for a time."""
        process = self._processes[name]
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    def redis(self) -> redis.Redis:
        """Return a client of the broker."""
        return redis.Redis(unix_socket_path=str(self._socket), password="secret")

    def end_connections(self, share: float, choose: Callable[[], float]) -> int:
        """Have PostgreSQL end a share of the connections of these processes; return their number."""
        with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
            query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
            pids = [pid for (pid,) in connection.execute(query, [self.application]) if choose() < share]
            for pid in pids:
                connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        return len(pids)

    def stop(self) -> None:
        """End every process."""
        for name in reversed(list(self._processes)):
            self._processes[name].send_signal(signal.SIGCONT)
            terminate(self._processes[name], 1)
        for home in self._mounted:
            subprocess.run(["umount", "--lazy", str(home)], check=True)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if condition():
                    return
            assert time.monotonic() < deadline, f"a process did not come up; its log is in {self.directory}"
            time.sleep(0.1)


@contextlib.contextmanager
def running_cluster(directory: Path, workers: int) -> Iterator[tuple[Cluster, str]]:
    """Run a cluster in a schema of its own; yield it with the URL of its database."""
    schema = f"headroom_{secrets.token_hex(8)}"
    with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        url = f"{POSTGRESQL}?options=-csearch_path%3D{schema}"
        cluster = Cluster(directory, url, schema, workers)
        try:
            cluster.start_all()
            yield cluster, url
        finally:
            cluster.stop()
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
