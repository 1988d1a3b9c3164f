"""How many submissions and status reads the API answers, and how fast.

    python tests/benchmarks/service_load.py submissions [--database sqlite] [--rate 100] [--seconds 20]
    python tests/benchmarks/service_load.py reads [--jobs 100000] [--queued 20000] [--rate 400]
    python tests/benchmarks/service_load.py reads --streams 500 [--rounds 3] [--rate 200]
    python tests/benchmarks/service_load.py imports

One API process with a broker of its own; on PostgreSQL in a schema of its own of HEADROOM_TEST_POSTGRESQL. No worker
takes jobs. Requests are sent at a fixed rate by this process; times run from when a request was due. With `--streams`
each round reads without streams and then beside so many open event streams of queued jobs, half of which get an event
meanwhile; the ratios are of the medians of the rounds. The load of the machine is printed, because whatever else runs
on it slows the API.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
from load_client import Connection, at_rate
from sqlalchemy import insert, text

from service.contracts.request import JobRequest
from service.local import broker
from service.processes import spawn, terminate
from service.store.database import make_engine, upgrade, writer
from service.store.hosts.clock import utcnow
from service.store.job_records import new_id
from service.store.jobs import JobStore
from service.store.statuses import Status
from service.store.tables import DispatchRow, EventRow, JobRow

POSTGRESQL = os.environ.get("HEADROOM_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/test")
KEY = "the-key-of-the-benchmarks-" + "0" * 16
BODY = {"model": "sample", "sequences": 2, "sequence_length": 64, "schemes": ["nf4"]}
_CHUNK = 5000


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["submissions", "reads", "imports"])
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--queued", type=int, default=20_000)
    parser.add_argument("--streams", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    measure = {"submissions": submissions, "reads": reads, "imports": imports}[options.what]
    measured = measure(options) | {"load": [round(one, 1) for one in os.getloadavg()], "cores": os.cpu_count()}
    print(json.dumps(measured, indent=1))


def submissions(options: argparse.Namespace) -> dict[str, Any]:
    """Submit jobs at a fixed rate."""

    async def send(connection: Connection, _number: int) -> int:
        return (await connection.request("POST", "/v1/jobs", BODY))[0]

    rate = options.rate or (100 if options.database == "postgresql" else 50)
    with (
        tempfile.TemporaryDirectory() as home,
        database(options.database, home) as url,
        api(home, url) as (port, server),
    ):
        asyncio.run(at_rate(port, KEY, 10, 2, send))  # connections and caches are there afterwards
        before = server.cpu_times()
        measured = asyncio.run(at_rate(port, KEY, rate, options.seconds, send))
        return {"rate": rate} | measured | cost(server, before, rate * options.seconds)


def reads(options: argparse.Namespace) -> dict[str, Any]:
    """Read the status of jobs, half of them queued, at a fixed rate."""
    with tempfile.TemporaryDirectory() as home, database(options.database, home) as url:
        engine = make_engine(url)
        upgrade(engine)
        queued, ended = fill(engine, options.jobs, options.queued)
        with api(home, url) as (port, server):
            rate = options.rate or 400
            measured = asyncio.run(reading(port, server, JobStore(engine), queued, ended, rate, options))
        engine.dispose()
    return {"rate": rate, "jobs": options.jobs, "queued": options.queued, "streams": options.streams} | measured


def cost(server: psutil.Process, before: Any, answers: float) -> dict[str, Any]:
    """Return what the API used since `before`: this does not depend on what else the machine does, as times do."""
    now = server.cpu_times()
    seconds = now.user + now.system - before.user - before.system
    return {
        "processor time of the API for an answer, ms": round(seconds / answers * 1e3, 2),
        "resident memory of the API, MB": round(server.memory_info().rss / 1e6),
    }


async def reading(
    port: int,
    server: psutil.Process,
    store: JobStore,
    queued: list[str],
    ended: list[str],
    rate: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Read at a fixed rate; with streams in turns without and beside them."""
    ids = [job_id for pair in zip(queued[:: max(1, len(queued) // 500)], ended, strict=False) for job_id in pair]

    async def send(connection: Connection, number: int) -> int:
        return (await connection.request("GET", f"/v1/jobs/{ids[number % len(ids)]}"))[0]

    async def once() -> dict[str, Any]:
        before = server.cpu_times()
        measured = await at_rate(port, KEY, rate, options.seconds, send)
        return measured | cost(server, before, rate * options.seconds)

    await at_rate(port, KEY, 50, 2, send)
    if not options.streams:
        return await once()
    alone, beside = [], []
    for number in range(options.rounds):
        alone.append(await once())
        followed = queued[number * options.streams : (number + 1) * options.streams]
        beside.append(await beside_streams(port, store, followed, options.seconds, once))
    compared = {
        figure: [statistics.median(one[figure] for one in measured) for measured in (alone, beside)]
        for figure in ("answers a second", "p50, ms", "p99, ms", "processor time of the API for an answer, ms")
    }
    ratios = {figure: round(with_streams / without, 2) for figure, (without, with_streams) in compared.items()}
    return {"without and with streams": compared, "ratios": ratios, "last round": beside[-1]}


async def beside_streams(
    port: int, store: JobStore, followed: list[str], seconds: float, once: Callable[[], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """Measure while the events of these jobs are streamed, half of which are canceled meanwhile."""
    streams = [await Connection(port, KEY).stream(f"/v1/jobs/{job_id}/events") for job_id in followed]
    received = [asyncio.create_task(stream.kinds("cancelled")) for stream in streams]
    await asyncio.sleep(2)
    canceled = len(followed) // 2
    cancelling = asyncio.create_task(cancel(store, followed[:canceled], seconds))
    measured = await once()
    await cancelling
    ended = await asyncio.wait_for(asyncio.gather(*received[:canceled]), 60)
    measured["events of each canceled job's stream"] = sorted({len(seen) for seen in ended})
    for task in received:
        task.cancel()
    for stream in streams:
        stream.writer.close()
    return measured


async def cancel(store: JobStore, job_ids: list[str], seconds: float) -> None:
    """Cancel jobs one after the other, all in the time, as another process would."""
    for job_id in job_ids:
        await asyncio.to_thread(store.cancel, job_id)
        await asyncio.sleep(seconds / len(job_ids) / 2)


def imports(_options: argparse.Namespace) -> dict[str, Any]:
    """Import the API in fresh interpreters, whose own start is not counted."""
    timed = "import time; t = time.perf_counter(); import service.api.app; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", timed]
    seconds = [float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(6)]
    return {"import service.api.app, seconds": sorted(round(one, 2) for one in seconds[1:])}


@contextlib.contextmanager
def database(kind: str, home: str) -> Iterator[str]:
    """Yield the URL of an empty database."""
    if kind == "sqlite":
        yield f"sqlite:///{home}/headroom.db"
        return
    schema = f"headroom_{secrets.token_hex(8)}"
    with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            yield f"{POSTGRESQL}?options=-csearch_path%3D{schema}"
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


@contextlib.contextmanager
def api(home: str, url: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run the API and a broker; yield the port and the API's process."""
    log_path = Path(home, "log")
    with log_path.open("ab") as log:
        queue, socket, broker_url = broker.start(Path(home), log)
        while not socket.exists():
            time.sleep(0.02)
        settings = {
            "HEADROOM_HOME": home,
            "HEADROOM_DATABASE_URL": url,
            "HEADROOM_BROKER_URL": broker_url,
            "HEADROOM_API_KEY": KEY,
            "HEADROOM_PORT": "0",
        }
        process = spawn([sys.executable, "-m", "service.api"], env={**os.environ, **settings}, stdout=log, stderr=log)
    try:
        while not (listening := re.search(r"running on http://127\.0\.0\.1:(\d+)", log_path.read_text())):
            assert process.poll() is None, log_path.read_text()
            time.sleep(0.05)
        yield int(listening[1]), psutil.Process(process.pid)
    finally:
        terminate(process, 5)
        terminate(queue, 5)


def fill(engine: Any, jobs: int, queued: int) -> tuple[list[str], list[str]]:
    """Insert jobs, the last `queued` of them queued; return the ids of those and of the others."""
    request, now = JobRequest(model="sample").model_dump(mode="json"), utcnow()
    ids = []
    for begin in range(0, jobs, _CHUNK):
        rows = []
        for number in range(begin, min(begin + _CHUNK, jobs)):
            at = now - timedelta(seconds=jobs - number)
            waits = number >= jobs - queued
            row = {"id": new_id(at), "request": request, "model": "sample", "created_at": at, "queued_at": at}
            row |= {"status": Status.queued if waits else Status.cancelled, "finished_at": None if waits else at}
            rows.append(row | {"dispatch": 1, "events": 1, "attempts": 0, "losses": 0, "fence": 0})
            ids.append(row["id"])
        created = [{"job_id": row["id"], "created_at": row["created_at"]} for row in rows]
        events = [{"job_id": row["job_id"], "at": row["created_at"]} for row in created]
        with writer(engine).begin() as connection:
            connection.execute(insert(JobRow).values(cancel_requested=False), rows)
            connection.execute(insert(DispatchRow).values(number=1), created)
            connection.execute(insert(EventRow).values(sequence=1, kind="queued", data={}), events)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    return ids[jobs - queued :], ids[: jobs - queued]


if __name__ == "__main__":
    main()
