"""How fast the API sends a file, relative to `python -m http.server` with the same bytes.

    python tests/benchmarks/downloads.py [--bytes N]... [--rounds N]

The API is the real one in a process of its own, with its middleware, a key and a database. Both servers are asked in
turns over the loopback address, with a new connection each time; a round asks each once. The medians of the rounds are
compared.
"""

import argparse
import contextlib
import http.client
import os
import secrets
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from service.contracts.request import JobRequest
from service.processes import spawn, terminate
from service.settings import Settings
from service.startup import open_stores
from service.store.jobs import Artifact

ROOT = Path(__file__).resolve().parents[2]
KEY = "benchmark-" + secrets.token_hex(16)
SIZES = (64 << 20, 1_500_000, 100_000)
ROUNDS = 21
START_SECONDS = 60.0
_READ = 1 << 20


def store(home: Path, content: Path) -> str:
    """Store a file as the bundle of a job's report; return its path in the API."""
    stores = open_stores(Settings(home=home))
    job = stores.jobs.submit(JobRequest(model="sample"))
    claim = stores.jobs.claim(job.id, 1, "benchmark", 600)
    assert claim is not None
    name, size = stores.artifacts.put(content)
    stores.jobs.succeed(claim, [Artifact(job.id, "bundle.zip", name, size, "application/zip")])
    return f"/v1/reports/{job.id}/bundle.zip"


@contextlib.contextmanager
def served(command: list[str], port: int, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a server until the end of the context; it answers from its beginning."""
    with tempfile.TemporaryFile() as log:
        process = spawn([sys.executable, *command], env=dict(environment), stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not answers(port):
                assert process.poll() is None, "a server did not start"
                assert time.monotonic() < deadline, "a server did not answer"
                time.sleep(0.05)
            yield
        finally:
            terminate(process, 5)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def seconds(port: int, path: str, size: int) -> float:
    """Return how long one download takes, from the connection to the last byte."""
    buffer = memoryview(bytearray(_READ))
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
    response = connection.getresponse()
    received = 0
    while count := response.readinto(buffer):
        received += count
    taken = time.perf_counter() - began
    connection.close()
    assert (response.status, received) == (200, size), (response.status, received)
    return taken


def measure(size: int, rounds: int) -> None:
    """Print the medians for one size."""
    with tempfile.TemporaryDirectory() as place:
        home, folder = Path(place, "home"), Path(place, "folder")
        folder.mkdir()
        (folder / "file").write_bytes(os.urandom(size))
        path = store(home, folder / "file")
        ports = free_port(), free_port()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")}
        environment |= {"PYTHONPATH": str(ROOT), "HEADROOM_HOME": str(home), "HEADROOM_API_KEY": KEY}
        api = ["-m", "service.api"]
        plain = ["-m", "http.server", str(ports[1]), "--bind", "127.0.0.1", "--directory", str(folder)]
        with (
            served(api, ports[0], environment | {"HEADROOM_PORT": str(ports[0])}),
            served(plain, ports[1], environment),
        ):
            for port, of in ((ports[0], path), (ports[1], "/file")):
                seconds(port, of, size)
            pairs = [(seconds(ports[0], path, size), seconds(ports[1], "/file", size)) for _ in range(rounds)]
    api_time, plain_time = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(plain / api for api, plain in pairs)
    print(
        f"{size:>10} bytes: API {size / api_time / 1e6:7.0f} MB/s ({api_time * 1000:.1f} ms), "
        f"http.server {size / plain_time / 1e6:7.0f} MB/s ({plain_time * 1000:.1f} ms), ratio {ratio:.2f}",
        flush=True,
    )


def main() -> None:
    """Measure the sizes asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bytes", type=int, action="append", help=f"size of the file; default: {SIZES}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    options = parser.parse_args()
    for size in options.bytes or SIZES:
        measure(size, options.rounds)


if __name__ == "__main__":
    main()
