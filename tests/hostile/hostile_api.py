"""An API in a process of its own on the loopback address, requests that try to harm it, and what they cost it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import httpx

from service.processes import spawn, terminate

KEY = "a-key-of-the-tests-with-32-characters"
START_SECONDS = 60.0
MIB = 1 << 20


def body(name: str) -> bytes:
    """Return the hostile body of a job of that name."""
    made: dict[str, object] = {
        "a list of 700,000 numbers as schemes": {"model": "sample", "schemes": [1] * (700_000)},
        "a list of numbers that just fits": {"model": "sample", "schemes": [1] * 340_000},
        "empty objects": {"model": "sample", "schemes": [{}] * 250_000},
        "unknown keys": {"model": "sample", **{f"key{i}": 0 for i in range(80_000)}},
        "unknown keys, few enough to be named": {"model": "sample", **{f"key{i}": 0 for i in range(1_900)}},
        "a long scheme": {"model": "sample", "schemes": ["x" * (MIB - 100)]},
        "a long setting": {"model": "sample", "schemes": [{"scheme": "nf4", "settings": {"x" * (MIB - 100): 1}}]},
        "long refused values": {"model": "sample", "heads": {f"k{i}": "v" * 5_000 for i in range(200)}},
        "a long base64 text": {"model": "sample", "calibration": {"name": "a", "content_base64": "A" * (MIB - 200)}},
        "many patterns": {"model": "sample", "schemes": [{"scheme": "nf4", "keep": ["a"] * 200_000}]},
    }
    if name == "nested lists":
        return b'{"model": "sample", "schemes": ' + b"[" * 500_000 + b"]" * 500_000 + b"}"
    return json.dumps(made[name], separators=(",", ":")).encode()


CASES = {
    "a list of 700,000 numbers as schemes": 413,
    "a list of numbers that just fits": 400,
    "empty objects": 400,
    "unknown keys": 400,
    "unknown keys, few enough to be named": 422,
    "a long scheme": 422,
    "a long setting": 422,
    "long refused values": 422,
    "a long base64 text": 202,
    "many patterns": 400,
    "nested lists": 400,
}
"""Bodies of `POST /v1/jobs`, and the status that answers each."""


@dataclass
class Api:
    """A running API."""

    url: str
    pid: int

    def client(self) -> httpx.Client:
        """Return a caller with the key."""
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60.0, trust_env=False)

    def peak_bytes(self) -> int:
        """Return the most memory that was resident since the last `forget_peak`."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))

    def forget_peak(self) -> None:
        """Let the peak begin anew at what is resident now."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")


@contextlib.contextmanager
def running(home: Path) -> Iterator[Api]:
    """Run an API on an empty home."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")}
    environment |= {"HEADROOM_HOME": str(home), "HEADROOM_API_KEY": KEY}
    with socket.create_server(("127.0.0.1", 0)) as listener, (home / "log").open("wb") as log:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        descriptor = listener.fileno()
        process = spawn(
            [sys.executable, "-m", "service.api", "--fd", str(descriptor)],
            env=environment,
            pass_fds=(descriptor,),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _wait(url, process, home / "log")
        yield Api(url, process.pid)
    finally:
        terminate(process, 5)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/healthz", trust_env=False, timeout=5.0).is_success:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@contextlib.contextmanager
def watched(api: Api) -> Iterator[list[float]]:
    """Ask for /healthz again and again; the list holds the seconds that each answer took."""
    seconds: list[float] = []
    stop = Event()

    def ask() -> None:
        with httpx.Client(base_url=api.url, timeout=60.0, trust_env=False) as client:
            while not stop.is_set():
                began = time.perf_counter()
                client.get("/healthz")
                seconds.append(time.perf_counter() - began)
                stop.wait(0.005)

    thread = Thread(target=ask)
    thread.start()
    while not seconds:
        time.sleep(0.005)
    try:
        yield seconds
    finally:
        stop.set()
        thread.join()
