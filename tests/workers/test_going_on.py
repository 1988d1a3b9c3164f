"""Attempts that go on where an earlier one at the same job was broken off, with small programs for the measurement."""

import errno
import os
from importlib.metadata import version
from pathlib import Path

import pytest
from bench import DRAW, LEASE, MEASURE, Bench
from sqlalchemy.exc import OperationalError

from service.contracts.request import JobRequest
from service.store.jobs import JobStore
from service.store.statuses import Status
from workers.directories import WorkDirectories

BROKEN_OFF = """
unfinished = target.with_name("." + target.name + ".unfinished")
unfinished.mkdir(exist_ok=True)
(unfinished / "layers").write_text("5")
progress('sweep', 5, 9)
time.sleep(600)
"""
COUNTED = """
with (target.parents[4] / "runs").open("a") as runs: print("measured", file=runs)
"""
WHOLE = COUNTED + MEASURE.replace(
    "write_text(request)", f'write_text(\'{{"headroom_version": "{version("headroom")}"}}\')'
)
SLOW_DRAWING = "(target / 'half.svg').touch()\ntime.sleep(600)\n"


def refuses(code: str, *, bad_input: bool = True) -> str:
    """A measurement that cannot go on from what it finds, and otherwise works."""
    return (
        COUNTED
        + f"""
if target.with_name("." + target.name + ".unfinished").exists():
    say(kind="failed", code="{code}", message="it cannot go on", bad_input={bad_input})
    sys.exit(2)
"""
        + MEASURE
    )


def runs(bench: Bench) -> int:
    """How often a counted measurement was started."""
    return len((bench.settings.home / "runs").read_text().splitlines())


def stop_in_the_middle(bench: Bench, measure: str = BROKEN_OFF, draw: str = DRAW) -> None:
    """Run an attempt until it says how far it is, and stop its worker then."""
    thread = bench.meanwhile(lambda: setattr(bench, "stopping", True))
    assert bench.run(measure, draw).status is Status.queued
    thread.join()
    bench.stopping = False


def left_by(bench: Bench, job_id: str, attempt: int = 0) -> Path:
    """Make a working directory with something in it."""
    directory = bench.settings.home / "work" / job_id / f"attempt-{attempt}"
    (directory / "measured" / ".out.unfinished").mkdir(parents=True)
    return directory


def test_the_next_attempt_finds_what_a_stopped_worker_left(bench: Bench) -> None:
    stop_in_the_middle(bench)
    told = "(target.parent / '.out.unfinished' / 'layers').read_text()"
    job = bench.run(f"say(kind='warning', code='found', message={told})\n" + MEASURE)
    assert (job.status, job.attempts) == (Status.succeeded, 2)
    found = [event.data["message"] for event in bench.store.events(job.id) if event.kind == "warning"]
    assert found == ["5"]
    assert bench.no_work_is_left()


def test_the_next_attempt_finds_what_a_worker_left_that_lost_its_lease(bench: Bench) -> None:
    later = JobStore(bench.engine, lambda: bench.store._clock().replace(year=2100))
    thread = bench.meanwhile(lambda: later.requeue_expired(3))
    assert bench.run(BROKEN_OFF).status is Status.queued
    thread.join()
    assert bench.run(COUNTED + "assert (target.parent / '.out.unfinished').is_dir()\n" + MEASURE).attempts == 2
    assert bench.job.status is Status.succeeded
    assert bench.no_work_is_left()


@pytest.mark.parametrize("code", ["bad-request", "internal"])
def test_what_cannot_be_gone_on_from_is_begun_anew_once(bench: Bench, code: str) -> None:
    stop_in_the_middle(bench)
    assert bench.run(refuses(code)).status is Status.succeeded
    assert runs(bench) == 2
    assert bench.no_work_is_left()


@pytest.mark.parametrize("code", ["out-of-memory", "device-out-of-memory", "disk-full"])
def test_what_ran_out_of_space_is_not_begun_anew(bench: Bench, code: str) -> None:
    stop_in_the_middle(bench)
    job = bench.run(refuses(code, bad_input=False))
    assert job.error is not None
    assert (job.error.code, runs(bench)) == (code, 1)
    assert bench.nothing_is_left()


FULL = """
batch = json.loads(pathlib.Path(sys.argv[1]).read_text())["batch_sequences"]
if batch is None:
    say(kind="failed", code="device-out-of-memory", message="full", bad_input=False, batch_sequences=8)
    sys.exit(1)
"""
"""Fits with a batch that is asked for, and not with the usual one."""


def test_the_next_attempt_goes_on_with_the_smaller_batch(bench: Bench) -> None:
    stop_in_the_middle(bench, COUNTED + FULL + BROKEN_OFF)
    assert runs(bench) == 2
    found = "assert (batch, (target.parent / '.out.unfinished' / 'layers').read_text()) == (4, '5')\n"
    job = bench.run(COUNTED + FULL + found + MEASURE)
    assert (job.status, job.attempts, runs(bench)) == (Status.succeeded, 2, 3)


def test_the_next_attempt_does_not_halve_the_batch_again(bench: Bench) -> None:
    stop_in_the_middle(bench, COUNTED + FULL + BROKEN_OFF)
    job = bench.run(COUNTED + FULL.replace("batch is None", "True").replace("=8", "=4"))
    assert (job.status, runs(bench)) == (Status.failed, 3)
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("device-out-of-memory", "full")


def test_a_whole_measurement_with_a_smaller_batch_is_only_drawn(bench: Bench) -> None:
    stop_in_the_middle(bench, FULL + WHOLE, SLOW_DRAWING)
    assert bench.run(FULL + WHOLE).status is Status.succeeded
    assert runs(bench) == 1


def test_a_measurement_that_fails_from_the_start_is_not_repeated(bench: Bench) -> None:
    job = bench.run(COUNTED + "say(kind='failed', code='bad-request', message='x', bad_input=True)")
    assert (job.status, runs(bench)) == (Status.failed, 1)


def test_a_whole_measurement_is_only_drawn(bench: Bench) -> None:
    stop_in_the_middle(bench, WHOLE, SLOW_DRAWING)
    assert bench.run(WHOLE).status is Status.succeeded
    assert runs(bench) == 1
    assert [event.data["stage"] for event in bench.store.events(bench.job_id) if event.kind == "progress"][-2:] == [
        "report",
        "report",
    ]


def test_a_whole_measurement_of_another_version_is_made_again(bench: Bench) -> None:
    stop_in_the_middle(bench, WHOLE.replace(version("headroom"), "0.0.1"), SLOW_DRAWING)
    assert bench.run(WHOLE).status is Status.succeeded
    assert runs(bench) == 2


def test_a_whole_measurement_with_other_settings_is_made_again(bench: Bench) -> None:
    stop_in_the_middle(bench, WHOLE, SLOW_DRAWING)
    bench.settings = bench.settings.model_copy(update={"device": "cuda"})
    assert bench.run(WHOLE).status is Status.succeeded
    assert runs(bench) == 2


def test_a_claim_removes_what_ended_and_unknown_jobs_left(bench: Bench) -> None:
    ids = {name: bench.store.submit(JobRequest(model="sample")).id for name in ("queued", "running", "cancelled")}
    assert bench.store.claim(ids["running"], 1, "host:2", LEASE)
    bench.store.cancel(ids["cancelled"])
    kept = [left_by(bench, ids["queued"]), left_by(bench, ids["running"], 1)]
    for job_id in (ids["cancelled"], "0" * 32):
        left_by(bench, job_id)
    listed = "sorted(p.name for p in target.parents[3].iterdir())"
    bench.run(f"say(kind='warning', code='seen', message=json.dumps({listed}))\n" + MEASURE)
    (seen,) = [event.data["message"] for event in bench.store.events(bench.job_id) if event.kind == "warning"]
    assert all((job_id in seen) == (name != "cancelled") for name, job_id in ids.items())
    assert "0" * 32 not in seen
    work = bench.settings.home / "work"
    assert sorted(path.name for path in work.iterdir()) == sorted(path.parent.name for path in kept)
    assert all((path / "measured" / ".out.unfinished").is_dir() for path in kept)


def test_a_job_is_done_though_the_database_cannot_say_what_is_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OperationalError("statement", {}, Exception("the database is away"))

    other = left_by(bench, "0" * 32)
    monkeypatch.setattr(bench.store, "open_jobs", away)
    assert bench.run().status is Status.succeeded
    assert other.exists()


@pytest.mark.parametrize(
    ("measure", "end"),
    [(MEASURE, "succeed"), ("sys.exit(1)", "fail"), ("progress('sweep', 0, 9)\ntime.sleep(600)\n", "cancelled")],
)
def test_the_room_is_free_before_the_end_is_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, measure: str, end: str
) -> None:
    """A database on the same disk, when that is full, cannot take the end before."""
    free: list[bool] = []
    write = getattr(bench.store, end)

    def look_and_write(*arguments: object) -> None:
        free.append(list((bench.settings.home / "work").glob("*/*")) == [])
        write(*arguments)

    monkeypatch.setattr(bench.store, end, look_and_write)
    threads = [bench.meanwhile(lambda: bench.store.cancel(bench.job_id))] if end == "cancelled" else []
    bench.run(measure)
    for thread in threads:
        thread.join()
    assert free == [True]


def test_a_directory_that_cannot_be_renamed_is_removed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    directories = WorkDirectories(tmp_path)
    (directories.take("job", 1) / "big").touch()
    monkeypatch.setattr(Path, "rename", full)
    directories.remove("job", 1)
    assert list(tmp_path.glob("*/*")) == []


def test_one_attempt_alone_gets_what_was_left(tmp_path: Path) -> None:
    here, there = WorkDirectories(tmp_path), WorkDirectories(tmp_path)
    first = here.take("job", 1)
    (first / "mark").touch()
    second = there.take("job", 3)
    assert (second / "mark").exists()
    assert not first.exists()
    late = here.take("job", 2)
    assert list(late.iterdir()) == []
    assert (second / "mark").exists()


def test_only_the_latest_of_several_attempts_is_gone_on_from(tmp_path: Path) -> None:
    directories = WorkDirectories(tmp_path)
    for attempt in (2, 10, 9):
        (tmp_path / "job" / f"attempt-{attempt}").mkdir(parents=True)
        (tmp_path / "job" / f"attempt-{attempt}" / str(attempt)).touch()
    assert [path.name for path in directories.take("job", 11).iterdir()] == ["10"]
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["attempt-11"]
    assert [path.name for path in tmp_path.iterdir()] == ["job"]


def test_a_removal_that_was_broken_off_is_finished(tmp_path: Path) -> None:
    (tmp_path / ".removed-1" / "deep").mkdir(parents=True)
    (tmp_path / "ended").mkdir()
    WorkDirectories(tmp_path).keep_only(lambda _: [])
    assert list(tmp_path.iterdir()) == []
