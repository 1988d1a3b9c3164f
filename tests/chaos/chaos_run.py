"""One run of chaos: jobs are submitted while faults happen, and afterwards every job is accounted for.

    python tests/chaos/chaos_run.py [--seed N] [--jobs 300] [--faults 200] [--workers 4]

Which faults happen, in which order and to which process, follows from the seed; when they hit does not. It needs
PostgreSQL (HEADROOM_TEST_POSTGRESQL). Exits with 1 where a job was lost or doubled, or failed for no allowed reason.
"""

import argparse
import io
import json
import random
import secrets
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
from cluster import KEY, LEASE_SECONDS, Cluster, running_cluster

from service import queue
from service.store.database import make_engine
from service.store.job_records import Job
from service.store.jobs import JobStore
from service.store.statuses import JOB_ENDED, Status

ALLOWED_FAILURES = frozenset({"worker-lost", "disk-full"})
"""With the first a job fails that has lost its worker three times, with the second one whose worker's disk is full."""
BODY = {"model": "sample", "schemes": ["nf4"]}
OWNERS = 3
"""They take turns at submitting, each with a key of its own."""
FAULT_SECONDS = 1.5
"""About how long a fault takes, with the pause before it."""
END_SECONDS = 300.0
"""How long the jobs may take to end after the last fault."""


@dataclass
class Outcome:
    """What became of the jobs."""

    accepted: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    """Jobs by status."""
    failed: dict[str, int] = field(default_factory=dict)
    """Failed jobs by the code of the failure."""
    lost: list[str] = field(default_factory=list)
    """Accepted jobs that are not there, or have not ended, or whose report is not there."""
    doubled: list[str] = field(default_factory=list)
    """Jobs that ended twice, or came twice of one submission."""
    unexplained: list[str] = field(default_factory=list)
    """Jobs that failed for a reason that is not allowed."""
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, doubled or unexplained."""
        return not (self.lost or self.doubled or self.unexplained)


class Chaos:
    """Faults on a cluster, chosen by a generator."""

    def __init__(self, cluster: Cluster, choose: random.Random) -> None:
        self._cluster = cluster
        self._choose = choose
        self._held_back: list[bytes] = []
        self.faults: dict[str, Callable[[], object]] = {
            "API killed": lambda: cluster.kill("api"),
            "scheduler killed": lambda: cluster.kill(self._one("scheduler")),
            "worker killed": lambda: cluster.kill(self._one("worker")),
            "worker stopped past its lease": lambda: cluster.pause(self._one("worker"), LEASE_SECONDS * 1.3),
            "scheduler stopped": lambda: cluster.pause(self._one("scheduler"), 1.0),
            "Redis emptied": self._flush,
            "Redis killed": lambda: cluster.kill("redis"),
            "messages doubled": self._double,
            "message delayed": self._delay,
            "database connections ended": lambda: cluster.end_connections(0.5, choose.random),
            "S3 stands still": lambda: cluster.pause("s3", 2.0),
            "S3 restarted": lambda: cluster.kill("s3-proxy", 3.0),
            "PostgreSQL restarted": lambda: cluster.restart_postgresql(3.0),
        }
        if cluster.can_fill:
            self.faults["disk full"] = lambda: cluster.fill(self._one("worker"), 1.5)

    def fault(self, name: str) -> None:
        """Do one; a broker that was killed just now is let alone."""
        try:
            self.faults[name]()
        except ConnectionError:
            return

    def _one(self, kind: str) -> str:
        return self._choose.choice([name for name in self._cluster.names if name.startswith(kind)])

    def _flush(self) -> None:
        with self._cluster.redis() as client:
            client.flushall()  # the server is this run's own

    def _double(self) -> None:
        with self._cluster.redis() as client:
            for message in client.lrange(queue.QUEUE, 0, 20):
                client.lpush(queue.QUEUE, message)

    def _delay(self) -> None:
        """Send a message that was held back before, and hold back another one."""
        with self._cluster.redis() as client:
            for message in self._held_back:
                client.lpush(queue.QUEUE, message)
            self._held_back = [message for message in [client.rpop(queue.QUEUE)] if message is not None]


class Submitter:
    """Submits jobs one after the other, each until it is accepted: again under the same key where no answer came."""

    def __init__(self, url: str, jobs: int, pause: float) -> None:
        self.accepted: dict[str, str] = {}
        """Ids by idempotency keys."""
        self.changed: list[str] = []
        """Keys that got another job at a second submission."""
        self._url = url
        self._jobs = jobs
        self._pause = pause
        self._client = httpx.Client(timeout=20, trust_env=False)
        self._keys = [self._make_key(f"owner-{number}") for number in range(OWNERS)]
        self.thread = Thread(target=self._run)

    def _run(self) -> None:
        try:
            for number in range(self._jobs):
                key = f"{number}-{secrets.token_hex(8)}"
                self.accepted[key] = self._submit(key, number)
                if number % 5 == 0 and self._submit(key, number) != self.accepted[key]:
                    self.changed.append(key)
                time.sleep(self._pause)
        finally:
            self._client.close()

    def _make_key(self, name: str) -> str:
        body, headers = {"name": name, "scopes": ["submit"]}, {"Authorization": f"Bearer {KEY}"}
        made: str = self._client.post(f"{self._url}/v1/keys", json=body, headers=headers).json()["key"]
        return made

    def _submit(self, key: str, number: int) -> str:
        headers = {"Idempotency-Key": key, "Authorization": f"Bearer {self._keys[number % OWNERS]}"}
        while True:
            try:
                answer = self._client.post(f"{self._url}/v1/jobs", json=BODY, headers=headers)
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            if answer.status_code == 202:
                job_id: str = answer.json()["id"]
                return job_id
            assert answer.status_code >= 500, answer.text
            time.sleep(0.2)


def run(directory: Path, *, seed: int, jobs: int, faults: int, workers: int) -> Outcome:
    """Do one run, and return what became of the jobs."""
    began = time.monotonic()
    choose = random.Random(seed)
    outcome = Outcome()
    with running_cluster(directory, workers) as (cluster, database_url):
        chaos = Chaos(cluster, choose)
        names = list(chaos.faults)
        planned = [names[number % len(names)] for number in range(faults)]  # each kind, as often as the others
        choose.shuffle(planned)
        submitter = Submitter(cluster.url, jobs, pause=faults * FAULT_SECONDS / jobs)
        submitter.thread.start()
        for name in planned:
            time.sleep(choose.uniform(0.1, 0.9))
            cluster.start_ended()
            chaos.fault(name)
        while submitter.thread.is_alive():
            cluster.start_ended()
            submitter.thread.join(0.2)
        engine = make_engine(database_url)
        try:
            account(JobStore(engine), cluster, submitter, outcome)
        finally:
            engine.dispose()
    outcome.faults = dict(Counter(planned))
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def account(store: JobStore, cluster: Cluster, submitter: Submitter, outcome: Outcome) -> None:
    """Wait for the ends of the jobs, and say of each what became of it."""
    outcome.accepted = len(submitter.accepted)
    deadline = time.monotonic() + END_SECONDS
    while (counts := store.counts()) and any(counts[status] for status in set(Status) - set(JOB_ENDED)):
        if time.monotonic() > deadline:
            break
        cluster.start_ended()
        time.sleep(0.2)
    outcome.ended = {str(status): count for status, count in counts.items() if count}
    outcome.doubled += submitter.changed
    if sum(counts.values()) > len(submitter.accepted):
        outcome.doubled.append(f"{sum(counts.values())} jobs of {len(submitter.accepted)} submissions")
    for job_id in submitter.accepted.values():
        job, events = store.get(job_id), store.events(job_id)
        outcome.attempts += job.attempts
        if (problem := ended_twice(job, events)) is not None:
            outcome.doubled.append(f"{job_id}: {problem}")
        if job.status is Status.failed:
            code = "none" if job.error is None else job.error.code
            outcome.failed[code] = outcome.failed.get(code, 0) + 1
        if job.status is Status.failed and (job.error is None or job.error.code not in ALLOWED_FAILURES):
            outcome.unexplained.append(f"{job_id}: {job.error}")
        if job.status not in JOB_ENDED or (job.status is Status.succeeded and not has_report(cluster, job_id)):
            outcome.lost.append(f"{job_id}: {job.status}")


def ended_twice(job: Job, events: Any) -> str | None:
    """Return what is wrong with a job's events, if anything: one end, and no gap."""
    kinds = [event.kind for event in events]
    ends = [kind for kind in kinds if kind in JOB_ENDED]
    if [event.sequence for event in events] != list(range(1, len(events) + 1)):
        return "its events have a gap"
    if job.status in JOB_ENDED and (ends != [str(job.status)] or kinds[-1] != job.status):
        return f"it ended as {ends}"
    if kinds.count("started") != job.attempts:
        return f"{kinds.count('started')} starts of {job.attempts} attempts"
    return None


def has_report(cluster: Cluster, job_id: str) -> bool:
    """Whether the job's report can be downloaded, and is its own."""
    url = f"{cluster.url}/v1/reports/{job_id}/bundle.zip"
    answer = httpx.get(url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False)
    if not answer.is_success:
        return False
    with zipfile.ZipFile(io.BytesIO(answer.content)) as bundle:
        return bool(json.loads(bundle.read("report.json")) == {"job_id": job_id})


def main() -> None:
    """Run once and print the outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    directory = Path(tempfile.mkdtemp(prefix="headroom-chaos-logs-"))
    print(f"seed {seed}, logs in {directory}", flush=True)
    outcome = run(directory, seed=seed, jobs=options.jobs, faults=options.faults, workers=options.workers)
    print(json.dumps(asdict(outcome), indent=1))
    sys.exit(0 if outcome.is_good else 1)


if __name__ == "__main__":
    main()
