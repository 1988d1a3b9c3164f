"""An S3-compatible object store for tests of every kind: moto's server, a process on the loopback address."""

import contextlib
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.processes import spawn, terminate

CREDENTIALS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "secret"}
START_SECONDS = 60.0


class ObjectStore:
    """A server with buckets; it can be ended, and started anew without what it held."""

    def __init__(self, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which obstore finds it."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}

    def start(self) -> None:
        with self._log.open("ab") as log:
            program = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(self.port)]
            self._process = spawn(program, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            terminate(self._process, 5)

    def make_bucket(self) -> str:
        """Make a bucket and return its name."""
        name = f"bucket-{secrets.token_hex(6)}"
        assert httpx.put(f"{self.url}/{name}", trust_env=False).is_success
        return name

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url, timeout=1.0, trust_env=False).is_success
        return False


@pytest.fixture(scope="session")
def shared_object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """One server for all tests of a process."""
    server = ObjectStore(tmp_path_factory.mktemp("object-store") / "log")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def object_store(shared_object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The server, with the environment of this process set to it."""
    for name, value in shared_object_store.environment.items():
        monkeypatch.setenv(name, value)
    return shared_object_store


@pytest.fixture
def bucket_url(object_store: ObjectStore) -> str:
    """URL of an empty place in a bucket of its own."""
    return f"s3://{object_store.make_bucket()}/some/prefix"
