"""A supervisor with one job, and small programs in place of the measurement and the drawing."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from service.contracts.request import JobRequest
from service.settings import Settings
from service.store.artifacts import ArtifactStore
from service.store.database import make_engine, upgrade
from service.store.jobs import Job, JobStore
from workers.sandbox.programs import Commands
from workers.supervisor import Supervisor

REQUEST = JobRequest(model="sample")
LEASE = 60.0

SAY = """
import json, os, pathlib, signal, sys, time
def say(**line): print(json.dumps(line), flush=True)
def progress(stage, done, total): say(kind="progress", stage=stage, done=done, total=total, elapsed_seconds=0)
target = pathlib.Path(sys.argv[-1])
"""
MEASURE = """
request = pathlib.Path(sys.argv[1]).read_text()
(target / "tables").mkdir(parents=True)
(target / "report.json").write_text(request)
(target / "tables" / "sites.parquet").write_bytes(b"PAR1" + bytes(1000))
progress("load", 1, 1)
say(kind="finished")
"""
DRAW = """
(target / "figures").mkdir()
(target / "figures" / "profile.svg").write_text("<svg/>")
(target / "report.html").write_text("<html></html>")
(target / "summary.md").write_text("# Headroom")
"""
NAMES = ["bundle.zip", "figures/profile.svg", "report.html", "report.json", "summary.md", "tables/sites.parquet"]
SLEEP = "progress('sweep', 0, 9)\ntime.sleep(600)\n"


def program(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", SAY + code)


class Bench:
    """A store with one queued job, and a supervisor whose programs can be chosen."""

    def __init__(self, home: Path, request: JobRequest = REQUEST) -> None:
        self.settings = Settings(home=home / "home", lease_seconds=LEASE, device="cpu", model_roots=(Path("/"),))
        self.engine = make_engine(f"sqlite:///{home / 'headroom.db'}")
        upgrade(self.engine)
        self.store = JobStore(self.engine)
        self.artifacts = ArtifactStore(self.settings.artifacts)
        self.job_id = self.store.submit(request).id
        self.stopping = False

    def supervisor(self, measure: str = MEASURE, draw: str = DRAW, hub: str = "") -> Supervisor:
        return Supervisor(
            self.store,
            self.artifacts,
            self.settings,
            worker="host:1",
            stopping=lambda: self.stopping,
            commands=Commands(hub=program(hub), measurement=program(measure), reporting=program(draw)),
        )

    def run(self, measure: str = MEASURE, draw: str = DRAW, hub: str = "") -> Job:
        self.supervisor(measure, draw, hub).run(self.job_id, self.store.get(self.job_id).dispatch)
        return self.job

    @property
    def job(self) -> Job:
        return self.store.get(self.job_id)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.store.events(self.job_id)]

    def nothing_is_left(self) -> bool:
        """No working directory, no file in the artifact store, no row."""
        artifacts = [path for path in self.settings.artifacts.rglob("*") if path.is_file()]
        return self.no_work_is_left() and artifacts == [] and self.store.artifacts(self.job_id) == []

    def no_work_is_left(self) -> bool:
        return list((self.settings.home / "work").iterdir()) == []

    def meanwhile(self, act: Callable[[], object]) -> Thread:
        """Do something once the measurement has begun to sweep."""

        def wait_and_act() -> None:
            while self.job.progress is None:
                time.sleep(0.02)
            act()

        thread = Thread(target=wait_and_act)
        thread.start()
        return thread


def alive(pid: int) -> bool:
    """Whether a process exists and is not a corpse that nobody has collected."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def writes_pid(bench: Bench) -> tuple[str, Callable[[], int]]:
    """Code that writes the process's id beside the bench, and what reads it."""
    path = bench.settings.home / "pid"
    return f"pathlib.Path({str(path)!r}).write_text(str(os.getpid()))\n", lambda: int(path.read_text())


def waits(bench: Bench) -> tuple[str, Callable[[], None]]:
    """Code that waits, and what lets it go on."""
    path = bench.settings.home / "go"
    return f"while not os.path.exists({str(path)!r}): time.sleep(0.02)\n", path.touch
