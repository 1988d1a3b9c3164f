"""Garbage collection, in a directory and in a bucket of a real server, on both databases."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import Engine

from service.contracts.audits.audit import AuditDefinition
from service.contracts.files import StoredFile, Upload
from service.contracts.request import JobRequest, JobSubmission
from service.errors import IdempotencyKeyReused, LimitReached, OtherStore
from service.storage import bucket
from service.storage.cache import FileCache
from service.storage.opening import open_storage
from service.storage.port import Entry
from service.store.artifacts import ArtifactStore
from service.store.audits import AuditStore
from service.store.files.checkpoints import CheckpointStore
from service.store.files.garbage import GRACE, RENEWED, Garbage
from service.store.files.identity import StoreIdentity
from service.store.files.removals import Removals
from service.store.files.uploads import UploadStore
from service.store.jobs import Artifact, Claim, JobStore
from service.store.owners.access import Access, Limits
from service.submission import submit

HOUR = timedelta(hours=1)


class Present:
    """The machine's clock, moved ahead: files get the times of the file system or of the bucket's server."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def present() -> Present:
    return Present()


@pytest.fixture
def jobs(engine: Engine, present: Present) -> JobStore:
    return JobStore(engine, present)


@pytest.fixture(params=["directory", "bucket"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path, engine: Engine) -> ArtifactStore:
    """An empty store that belongs to the database."""
    is_bucket = request.param == "bucket"
    place = str(request.getfixturevalue("bucket_url")) if is_bucket else (tmp_path / "artifacts").as_uri()
    store = ArtifactStore(open_storage(place, FileCache(tmp_path / "cache", 1 << 30)))
    StoreIdentity(engine).compare(store)
    return store


@pytest.fixture
def garbage(engine: Engine, artifacts: ArtifactStore, present: Present) -> Garbage:
    return Garbage(engine, artifacts, present)


def names(artifacts: ArtifactStore) -> set[str]:
    return {entry.key for entry in artifacts.entries()}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def file(artifacts: ArtifactStore, text: str) -> StoredFile:
    name, size = artifacts.put(text.encode())
    return StoredFile(name="text.txt", sha256=name, size=size)


def claimed(jobs: JobStore) -> Claim:
    claim = jobs.claim(jobs.submit(JobRequest(model="sample")).id, 1, "worker", 60)
    assert claim is not None
    return claim


def submission(text: str) -> JobSubmission:
    return JobSubmission(model="sample", calibration=Upload(name="text.txt", text=text))


def test_the_files_of_refused_submissions_go_after_the_grace_period(
    jobs: JobStore, artifacts: ArtifactStore, garbage: Garbage, present: Present
) -> None:
    submit(jobs, artifacts, submission("accepted"), idempotency_key="key")
    with pytest.raises(IdempotencyKeyReused):
        submit(jobs, artifacts, submission("never stored"), idempotency_key="key")
    full = jobs.seen_by(Access("ann", limits=Limits(queued_jobs=0, upload_bytes=1000)))
    for text in ("one", "two", "three"):
        with pytest.raises(LimitReached):
            submit(full, artifacts, submission(text))
    present.ahead = GRACE - HOUR
    assert garbage.collect().files == 0
    present.ahead = GRACE + HOUR
    collected = garbage.collect()
    assert (collected.files, collected.size) == (3, len("onetwothree"))
    assert names(artifacts) == {sha256("accepted")}


def test_what_a_row_names_stays(
    jobs: JobStore, artifacts: ArtifactStore, garbage: Garbage, engine: Engine, present: Present
) -> None:
    audits = AuditStore(engine, artifacts, present)
    claim = claimed(jobs)
    jobs.succeed(claim, [Artifact(claim.job_id, "report.json", *artifacts.put(b"report"), "application/json")])
    texts = {name: file(artifacts, name) for name in ("calibration", "labelled", "in an audit", "in an earlier audit")}
    jobs.submit(JobRequest(model="sample", calibration=texts["calibration"], labelled=texts["labelled"]))
    definition = AuditDefinition(name="shipping", model="sample", calibration=texts["in an earlier audit"])
    audits.create(definition)
    artifacts.put(b"nobody's")
    present.ahead = GRACE + HOUR
    assert garbage.collect().files == 2
    assert names(artifacts) == {sha256(text) for text in ("report", *texts)} - {sha256("in an audit")}
    audits.update("shipping", definition.model_copy(update={"calibration": file(artifacts, "in an audit")}))
    present.ahead = 2 * GRACE + HOUR
    assert garbage.collect().files == 1
    assert names(artifacts) == {sha256(text) for text in ("report", *texts)} - {sha256("in an earlier audit")}
    Removals(engine, audits.report_is_baseline, present).delete(claim.job_id)
    assert garbage.collect().files == 1
    assert sha256("report") not in names(artifacts)


def test_a_job_that_runs_for_longer_than_the_grace_period_keeps_what_it_has_put(
    jobs: JobStore, artifacts: ArtifactStore, garbage: Garbage, present: Present
) -> None:
    claim = claimed(jobs)
    name, size = artifacts.put(b"report")
    present.ahead = GRACE * 3
    assert garbage.collect().files == 0
    jobs.succeed(claim, [Artifact(claim.job_id, "report.json", name, size, "application/json")])
    assert garbage.collect().files == 0
    assert names(artifacts) == {name}


def test_a_file_that_is_put_again_may_keep_its_time_only_for_as_long_as_the_collection_knows() -> None:
    assert bucket.FRESH <= RENEWED < GRACE


def test_what_is_submitted_while_it_is_about_to_be_removed_stays(
    jobs: JobStore, artifacts: ArtifactStore, garbage: Garbage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The submission comes after the collection has looked for rows, and before it removes anything."""
    monkeypatch.setattr(bucket, "FRESH", timedelta(0))
    artifacts.put(b"needed again")
    artifacts.put(b"needed by nobody")
    time.sleep(1.1)  # a bucket's times are whole seconds
    look = garbage._unnamed

    def look_and_submit(entries: list[Entry], uploads: set[str]) -> list[Entry]:
        unnamed = list(look(entries, uploads))
        assert len(unnamed) == 2
        submit(jobs, artifacts, submission("needed again"))
        return unnamed

    monkeypatch.setattr(garbage, "_unnamed", look_and_submit)
    assert garbage.collect(timedelta(seconds=1)).files == 1
    assert names(artifacts) == {sha256("needed again")}


def test_submissions_during_collections_keep_their_files(tmp_path: Path, jobs: JobStore, engine: Engine) -> None:
    artifacts = ArtifactStore(tmp_path)
    garbage = Garbage(engine, artifacts)
    texts = [f"text {number}" for number in range(24)]
    for text in texts:
        os.utime(artifacts.path(artifacts.put(text.encode())[0]), (0, 0))
    ended = Event()

    def collect() -> int:
        files = garbage.collect().files
        while not ended.is_set():
            files += garbage.collect().files
        return files

    with ThreadPoolExecutor(1) as pool:
        collecting = pool.submit(collect)
        for text in texts:
            submit(jobs, artifacts, submission(text))
        ended.set()
        collecting.result()
    assert names(artifacts) == {sha256(text) for text in texts}


def test_checkpoints_of_ended_jobs_go(
    jobs: JobStore, artifacts: ArtifactStore, garbage: Garbage, present: Present, tmp_path: Path
) -> None:
    checkpoints = CheckpointStore(artifacts.storage)
    layers = tmp_path / "layers"
    layers.write_bytes(b"layers")
    running, ended, lost = claimed(jobs), claimed(jobs), Claim("f" * 32, 1, JobRequest(model="sample"), 1)
    for claim in (running, ended, lost):
        checkpoints.save(claim, 1, "{}", {"layers": layers}, lambda: None)
    jobs.cancelled(ended)
    assert garbage.collect().checkpoints == 0
    present.ahead = GRACE + HOUR
    jobs.release(running)
    assert garbage.collect().checkpoints == 2
    assert checkpoints.jobs(present()) == {running.job_id}
    assert checkpoints.latest(running.job_id) is not None
    assert artifacts.read_id() is not None


def test_the_files_of_another_store_are_not_collected(artifacts: ArtifactStore, garbage: Garbage) -> None:
    artifacts.put(b"of another database")
    artifacts.write_id("another")
    with pytest.raises(OtherStore):
        garbage.collect(-GRACE)
    assert names(artifacts) == {sha256("of another database")}


def test_one_scheduler_collects_in_an_interval(garbage: Garbage, present: Present) -> None:
    with ThreadPoolExecutor(4) as pool:
        turns = list(pool.map(lambda _: garbage.take_turn(HOUR), range(8)))
    assert sorted(turns) == [False] * 7 + [True]
    assert not garbage.take_turn(HOUR)
    present.ahead = HOUR
    assert garbage.take_turn(HOUR)


def test_an_uploaded_file_stays_until_it_expires(
    garbage: Garbage, artifacts: ArtifactStore, engine: Engine, present: Present
) -> None:
    week = 7 * 86_400.0
    uploads = UploadStore(engine, quota_bytes=100, keep_seconds=week, clock=present)
    digest, size = artifacts.put(b"uploaded")
    uploads.add("", StoredFile(name="a.txt", sha256=digest, size=size))
    present.ahead = timedelta(seconds=week) - HOUR
    assert garbage.collect().files == 0
    present.ahead += GRACE
    assert garbage.collect().files == 0  # a request may have named it just before
    present.ahead += 2 * HOUR
    assert garbage.collect().files == 1
    assert names(artifacts) == set()
