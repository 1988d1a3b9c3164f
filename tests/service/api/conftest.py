"""The API over a real store on SQLite, called through its ASGI interface."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pytest
from fastapi import FastAPI
from pyarrow import parquet
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.api.app import make_app
from service.contracts.request import JobRequest
from service.settings import Settings
from service.startup import Stores, stores_on
from service.store.artifacts import ArtifactStore
from service.store.database import make_engine, upgrade
from service.store.job_records import Artifact, Claim, Job
from service.store.jobs import JobStore

KEY = "the-key-of-the-tests"
LARGEST_BODY = 4096


@dataclass(frozen=True)
class World:
    """An API and the parts behind it."""

    app: FastAPI
    stores: Stores
    settings: Settings

    @property
    def store(self) -> JobStore:
        """The jobs."""
        return self.stores.jobs

    @property
    def artifacts(self) -> ArtifactStore:
        """The files."""
        return self.stores.artifacts

    def submit(self, model: str = "sample") -> Job:
        """Put a job into the queue, past the API."""
        return self.store.submit(JobRequest(model=model))

    def claim(self, job: Job) -> Claim:
        """Begin a job, as a worker does."""
        claim = self.store.claim(job.id, self.store.get(job.id).dispatch, "worker", 60)
        assert claim is not None
        return claim

    def finish(self, job: Job, files: dict[str, bytes]) -> None:
        """End a job with a report of these files."""
        self.succeed(self.claim(job), files)

    def succeed(self, claim: Claim, files: dict[str, bytes]) -> None:
        """End a job that has begun with a report of these files."""
        rows = []
        for name, content in files.items():
            sha256, size = self.artifacts.put(content)
            rows.append(Artifact(claim.job_id, name, sha256, size, "application/octet-stream"))
        self.store.succeed(claim, rows)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with the newest schema and nothing in it, to be copied."""
    file = tmp_path_factory.mktemp("database") / "empty.db"
    engine = make_engine(f"sqlite:///{file}")
    upgrade(engine)
    engine.dispose()
    return file


@pytest.fixture
def world(tmp_path: Path, empty_database: Path) -> Iterator[World]:
    """An empty service."""
    settings = Settings(home=tmp_path, api_key=SecretStr(KEY), max_upload_bytes=LARGEST_BODY)
    shutil.copy(empty_database, tmp_path / "headroom.db")
    engine = make_engine(settings.database)
    settings.artifacts.mkdir()
    stores = stores_on(engine, settings)
    yield World(make_app(settings, stores), stores, settings)
    engine.dispose()


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    """A caller who has the key."""
    with TestClient(
        world.app, headers={"Authorization": f"Bearer {KEY}"}, raise_server_exceptions=False, follow_redirects=False
    ) as caller:
        yield caller


@pytest.fixture
def stranger(world: World) -> Iterator[TestClient]:
    """A caller without a key."""
    with TestClient(world.app, raise_server_exceptions=False) as caller:
        yield caller


@pytest.fixture
def files() -> dict[str, bytes]:
    """The files of a small report."""
    table = io.BytesIO()
    parquet.write_table(pyarrow.table({"layer": [0, 1, 2], "abs_max": [1.5, None, 1e-7]}), table, row_group_size=2)
    report = {
        "report.json": json.dumps({"job_id": "x"}).encode(),
        "report.html": b"<!doctype html><title>Report</title>",
        "summary.md": b"# Headroom: x",
        "figures/error_growth.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "figures/error_growth.png": bytes(range(256)),
        "tables/sites.parquet": table.getvalue(),
    }
    bundle = io.BytesIO()
    with zipfile.ZipFile(bundle, "w") as archive:
        for name, content in report.items():
            archive.writestr(name, content)
    return {**report, "bundle.zip": bundle.getvalue()}


@pytest.fixture
def report_id(world: World, files: dict[str, bytes]) -> str:
    """The id of a job that has left a report."""
    job = world.submit()
    world.finish(job, files)
    return job.id


def is_problem(response: object, status: int, code: str) -> dict[str, object]:
    """Check that a response is a problem document, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["type"] == f"urn:headroom:problem:{code}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    return document


@pytest.fixture
def problem() -> Callable[..., dict[str, object]]:
    """The check for problem documents."""
    return is_problem
