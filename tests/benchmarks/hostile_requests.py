"""What one client that sends hostile requests does to the API: time until /healthz answers, and resident memory.

    python tests/benchmarks/hostile_requests.py [--connections 16] [--seconds 5]

The API is a process of its own on an SQLite file. Each kind of body is sent over so many connections at once, again and
again, by a process of its own, while this one asks for /healthz every 5 ms; the last kind is an upload of 200 MiB.
Prints a line of JSON for each kind: answers, the slowest and the median /healthz in seconds, and the peak of resident
memory in MiB.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Thread

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))

from hostile_api import CASES, MIB, Api, body, running, watched


def main() -> None:
    """Print what each kind of body costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as home,
        running(Path(home)) as api,
        ProcessPoolExecutor(1, mp_context=fresh) as client,
    ):
        client.submit(body, "a long scheme").result()  # it has started
        for name in CASES:
            api.forget_peak()
            with watched(api) as health:
                statuses = client.submit(_attack, api, name, options.connections, options.seconds).result()
            _print(name, statuses, health, api.peak_bytes())
        api.forget_peak()
        with watched(api) as health:
            status = client.submit(_upload, api).result()
        _print("an upload of 200 MiB", Counter([status]), health, api.peak_bytes())


def _print(name: str, statuses: Counter[int | str], health: list[float], peak: int) -> None:
    facts = {"slowest": round(max(health), 3), "median": round(statistics.median(health), 4)}
    print(json.dumps({"sent": name, "answers": statuses, "healthz": facts, "peak_mib": peak // MIB}), flush=True)


def _attack(api: Api, name: str, connections: int, seconds: float) -> Counter[int | str]:
    """Send a kind of body over so many connections for so long; return how often each status came."""
    content = body(name)
    statuses: Counter[int | str] = Counter()
    end = time.monotonic() + seconds

    def send() -> None:
        with api.client() as client:
            while time.monotonic() < end:
                try:
                    statuses[client.post("/v1/jobs", content=content).status_code] += 1
                except Exception as error:  # a connection that is closed while the body is sent
                    statuses[type(error).__name__] += 1

    threads = [Thread(target=send) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def _upload(api: Api) -> int:
    block = b'{"text": "' + b"word " * 200 + b'"}\n'
    pieces = (block * (MIB // len(block)) for _ in range(200))
    with api.client() as client:
        return client.post("/v1/files", params={"name": "a.jsonl"}, content=pieces).status_code


if __name__ == "__main__":
    main()
