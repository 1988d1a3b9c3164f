"""Downloads that are redirected to presigned URLs of a bucket, and those that stay with the API."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from service.api.app import make_app
from service.startup import stores_on
from service.store.database import make_engine


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of the artifact store: in a bucket, unless a test says `directory`."""
    if getattr(request, "param", "bucket") == "directory":
        return (tmp_path / "artifacts").as_uri()
    return str(request.getfixturevalue("bucket_url"))


@pytest.fixture
def world(world, place: str) -> Iterator[Any]:
    """The service of the other tests with this store."""
    settings = world.settings.model_copy(update={"artifacts_url": place, "presigned_downloads": True})
    engine = make_engine(settings.database)
    stores = stores_on(engine, settings)
    yield replace(world, app=make_app(settings, stores), stores=stores, settings=settings)
    engine.dispose()


@pytest.mark.parametrize("name", ["report.html", "bundle.zip"])
def test_a_download_is_redirected_to_a_url_that_needs_no_key(
    client: TestClient, report_id: str, files: dict[str, bytes], name: str
) -> None:
    answer = client.get(f"/v1/reports/{report_id}/{name}")
    etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (307, b"", etag)
    assert answer.headers["cache-control"] == "no-store"
    sent = httpx.get(answer.headers["location"], trust_env=False)
    assert (sent.status_code, sent.content) == (200, files[name])
    part = httpx.get(answer.headers["location"], headers={"Range": "bytes=2-4"}, trust_env=False)
    assert (part.status_code, part.content) == (206, files[name][2:5])


def test_tags_headers_and_csv_stay_with_the_api(client: TestClient, report_id: str, files: dict[str, bytes]) -> None:
    path = f"/v1/reports/{report_id}/report.html"
    etag = f'"{hashlib.sha256(files["report.html"]).hexdigest()}"'
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 304
    changed = client.get(path, headers={"If-None-Match": '"other"'})
    assert (changed.status_code, changed.content) == (200, files["report.html"])
    assert "content-security-policy" in changed.headers
    head = client.head(path)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", etag)
    assert head.headers["content-length"] == str(len(files["report.html"]))
    assert client.get(f"/v1/reports/{report_id}/tables/sites.csv").status_code == 200


@pytest.mark.parametrize("place", ["directory"], indirect=True)
def test_a_directory_sends_its_files_itself(client: TestClient, report_id: str, files: dict[str, bytes]) -> None:
    answer = client.get(f"/v1/reports/{report_id}/report.html")
    assert (answer.status_code, answer.content) == (200, files["report.html"])


def test_a_start_with_a_directory_says_that_the_setting_has_no_effect(tmp_path: Path) -> None:
    code = "from service.api.__main__ import _app; from service.settings import settings; _app(settings())"
    environment = {"HEADROOM_HOME": str(tmp_path), "HEADROOM_PRESIGNED_DOWNLOADS": "true", "HEADROOM_API_KEY": "k" * 32}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "HEADROOM_PRESIGNED_DOWNLOADS has no effect: file:///" in done.stderr
