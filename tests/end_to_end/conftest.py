"""The installed `headroom` command, in an environment of its own, with every process it starts watched."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from service.local import broker
from service.processes import spawn, terminate

HEADROOM = Path(sys.executable).with_name("headroom")


@dataclass(frozen=True)
class Machine:
    """One user's environment: a home, and where the broker is."""

    home: Path
    environment: dict[str, str]

    def run(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [HEADROOM, *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout, cwd=self.home
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command that goes on."""
        return subprocess.Popen(
            [HEADROOM, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.home,
        )

    @contextlib.contextmanager
    def serve(self) -> Iterator["Serving"]:
        """Run `headroom serve` until the context ends or the test ends it."""
        with self.start("serve", "--port", "0", "--json") as process:
            try:
                told = ""
                while not told.endswith("}\n"):
                    line = process.stdout.readline()
                    assert line, process.stderr.read()
                    told += line
                key = (self.home / "api-key").read_text().strip()
                yield Serving(process, json.loads(told)["url"], key)
            finally:
                if process.poll() is None:
                    process.terminate()
                process.communicate(timeout=240)


@dataclass(frozen=True)
class Serving:
    """A stack that stays."""

    process: subprocess.Popen[str]
    url: str
    key: str

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Call the API, and return its document."""
        headers = {"Authorization": f"Bearer {self.key}"}
        answer = httpx.request(method, self.url + path, headers=headers, trust_env=False, **options)
        assert answer.is_success, answer.text
        return answer.json()

    def family(self) -> list[psutil.Process]:
        """Return every process that the stack has started by now."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def find(self, module: str) -> psutil.Process:
        """Return the process of the stack that runs a module, once there is one."""
        return until(lambda: next((child for child in self.family() if module in command_of(child)), None))

    def ended(self, job_id: str) -> Any:
        """Return the job, once it has ended."""
        return until(lambda: (job := self.call("GET", f"/v1/jobs/{job_id}"))["finished_at"] and job)


def command_of(process: psutil.Process) -> list[str]:
    """Return the command line of a process, empty when it has just gone."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def until(found: Callable[[], Any], seconds: float = 240) -> Any:
    """Return what `found` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)
    return result


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without any Redis of its own: the packaged broker is used."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")}
    # Nothing but Python: no server can be found on this PATH.
    path = {"PATH": str(HEADROOM.parent), "HEADROOM_HOME": str(home), "COLUMNS": "200"}
    return Machine(home, {**kept, **path, "HEADROOM_LEASE_SECONDS": "10", "HEADROOM_SCHEDULER_SECONDS": "0.2"})


@pytest.fixture
def redis_machine(machine: Machine, tmp_path: Path) -> Iterator[Machine]:
    """The same with a Redis server that was there before: the machine's own, else one started for the test."""
    with _redis_url(tmp_path) as url:
        yield Machine(machine.home, {**machine.environment, "HEADROOM_BROKER_URL": url})


@contextlib.contextmanager
def _redis_url(directory: Path) -> Iterator[str]:
    """Yield the URL of an empty database of a Redis server on loopback, and leave it empty."""
    with _server(directory) as port:
        for number in range(1, 16):
            url = f"redis://127.0.0.1:{port}/{number}"
            with contextlib.closing(redis.Redis.from_url(url)) as client:
                if client.dbsize() == 0:
                    yield url
                    client.flushdb()
                    return
        raise AssertionError("the Redis server has no empty database")


@contextlib.contextmanager
def _server(directory: Path) -> Iterator[int]:
    if _answers(6379):
        yield 6379
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    process = spawn([str(broker.program()), *options], stdout=subprocess.DEVNULL)
    try:
        until(lambda: _answers(port), 30)
        yield port
    finally:
        terminate(process, 5)


def _answers(port: int) -> bool:
    with contextlib.closing(redis.Redis(port=port)) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
