"""A round of cleaning: expired reports and then their files go, once in an interval over all schedulers."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from service.contracts.request import JobRequest
from service.scheduler.cleaning import INTERVAL, Cleaned, clean
from service.store.artifacts import ArtifactStore
from service.store.files.garbage import GRACE, Collected, Garbage
from service.store.files.identity import StoreIdentity
from service.store.files.removals import Removals
from service.store.jobs import Artifact, JobStore


def test_an_expired_report_goes_with_its_files_and_the_job_stays(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = datetime.now(UTC)

    def clock() -> datetime:
        return now

    jobs, artifacts = JobStore(engine, clock), ArtifactStore(tmp_path)
    StoreIdentity(engine).compare(artifacts)
    garbage, removals = Garbage(engine, artifacts, clock), Removals(engine, lambda *_: False, clock)
    for model in ("sample", "/models/a"):
        job = jobs.submit(JobRequest(model=model, retention_days=2 if model == "sample" else None))
        claim = jobs.claim(job.id, 1, "worker", 60)
        assert claim is not None
        name, size = artifacts.put(model.encode())
        jobs.succeed(claim, [Artifact(job.id, "report.json", name, size, "application/json")])
    assert clean(removals, garbage, None) == Cleaned(0, Collected(0, 0, 0))
    now += timedelta(days=2)
    with caplog.at_level("INFO"):
        assert clean(removals, garbage, None) == Cleaned(1, Collected(1, len("sample"), 0))
    assert "1 expired reports, 1 unneeded files (6 bytes)" in caplog.text
    assert clean(removals, garbage, 1) is None
    now += INTERVAL
    assert clean(removals, garbage, 1) == Cleaned(1, Collected(1, len("/models/a"), 0))
    assert timedelta(days=2) > GRACE
    assert [job.has_report for job in jobs.list().jobs] == [False, False]
    assert list(artifacts.entries()) == []
