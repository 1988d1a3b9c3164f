"""Uploaded files: kept by content for their owner, named by jobs and audits, forgotten in the end."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from service.settings import Settings
from service.store.files.garbage import GRACE
from service.store.tables import FileRow

TEXT = "größer".encode()


def uploaded(client, name="c.jsonl", content=TEXT):
    response = client.post("/v1/files", params={"name": name}, content=content)
    assert response.status_code == 201, response.text
    return response.json()


def row_of(world, file_id):
    with Session(world.stores.uploads._reader) as session:
        return session.get(FileRow, file_id)


def test_a_file_is_stored_by_content_and_a_job_names_it(client, world):
    file = uploaded(client)
    assert (file["name"], file["bytes"], file["sha256"]) == ("c.jsonl", 8, hashlib.sha256(TEXT).hexdigest())
    assert world.artifacts.path(file["sha256"]).read_bytes() == TEXT
    body = {"model": "sample", "calibration": {"file": file["id"]}, "labelled": {"name": "p.jsonl", "file": file["id"]}}
    request = client.post("/v1/jobs", json=body).json()["request"]
    assert request["calibration"] == {"name": "c.jsonl", "sha256": file["sha256"], "size": 8}
    assert request["labelled"] == {"name": "p.jsonl", "sha256": file["sha256"], "size": 8}
    assert list((world.settings.home / "uploads").iterdir()) == []


def test_the_same_file_again_has_the_same_id(client, world):
    first = uploaded(client)
    assert uploaded(client)["id"] == first["id"]
    assert uploaded(client, name="d.jsonl")["id"] != first["id"]
    assert uploaded(client, content=b"other")["id"] != first["id"]
    with Session(world.stores.uploads._reader) as session:
        assert session.scalar(select(func.count()).select_from(FileRow)) == 3


def test_files_are_listed_newest_first_and_deleted(client, problem):
    ids = [uploaded(client, name=f"{number}.txt")["id"] for number in range(3)]
    page = client.get("/v1/files", params={"page_size": 2}).json()
    rest = client.get("/v1/files", params={"page_token": page["next_page_token"]}).json()
    assert [file["id"] for file in page["files"] + rest["files"]] == sorted(ids, reverse=True)
    assert client.get(f"/v1/files/{ids[0]}").json()["name"] == "0.txt"
    job = client.post("/v1/jobs", json={"model": "sample", "calibration": {"file": ids[0]}}).json()
    assert client.delete(f"/v1/files/{ids[0]}").status_code == 204
    problem(client.get(f"/v1/files/{ids[0]}"), 404, "not-found")
    problem(client.delete(f"/v1/files/{ids[0]}"), 404, "not-found")
    for strange in ("%00", "..", "x" * 1000):
        problem(client.get(f"/v1/files/a{strange}"), 404, "not-found")
        problem(client.delete(f"/v1/files/a{strange}"), 404, "not-found")
    assert client.get(f"/v1/jobs/{job['id']}/files/calibration").content == TEXT


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("c.txt", b"", "body: '' is empty; allowed: a file with content"),
        ("c.txt", b" \n ", "is empty; allowed: a file with content"),
        ("c.txt", "ä".encode() * 3000 + b"\xff", "is not UTF-8 text at byte 6000; allowed: UTF-8 text, as the name"),
        ("c.txt", "größer".encode()[:3], "is not UTF-8 text at byte 2"),
        ("c.parquet", b"PAR2", "is not the content of a Parquet file; allowed: a Parquet file, as the name"),
    ],
)
def test_a_file_must_be_what_its_name_says(client, world, problem, name, content, said):
    response = client.post("/v1/files", params={"name": name}, content=content[-4000:] if len(content) < 9 else content)
    if len(content) > world.settings.max_upload_bytes:
        problem(response, 413, "body-too-large")
        return
    assert said in problem(response, 422, "invalid-request")["detail"]
    assert not any(path.is_file() for path in world.settings.artifacts.rglob("*"))
    assert list((world.settings.home / "uploads").iterdir()) == []


@pytest.mark.parametrize("name", ["", "x" * 256, "a\x00b"])
def test_a_bad_name_is_refused(client, problem, name):
    problem(client.post("/v1/files", params={"name": name}, content=TEXT), 422, "invalid-request")


def test_a_streamed_file_over_the_limit_is_refused(client, world, problem):
    pieces = (b"x" * 100 for _ in range(100))
    response = client.post("/v1/files", params={"name": "c.txt"}, content=pieces)
    assert "content-length" not in response.request.headers
    assert "HEADROOM_MAX_UPLOAD_BYTES" in problem(response, 413, "body-too-large")["detail"]
    assert list((world.settings.home / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"calibration": {"file": "0" * 32}}, "calibration.file", "is not known; allowed: the id of a file of yours"),
        ({"calibration": {"file": "x"}}, "calibration.file", "text that matches"),
        ({"calibration": {"file": "ID", "text": "a", "name": "a"}}, "calibration", "and only one of them"),
        ({"calibration": {"name": "a"}}, "calibration", "give either text or content_base64, or the id of"),
        ({"calibration": {"text": "a"}}, "calibration", "give the file's name too"),
        ({"calibration": {"file": "ID", "name": "c.parquet"}}, "calibration.name", "the extension of 'c.jsonl'"),
        ({"labelled": {"file": "ID", "name": "c.parquet"}}, "labelled.name", "a JSON Lines file"),
    ],
)
def test_a_file_that_a_job_cannot_name(client, world, problem, fields, field, said):
    file_id = uploaded(client)["id"]
    [(key, named)] = fields.items()
    sent = {inner: file_id if value == "ID" else value for inner, value in named.items()}
    document = problem(client.post("/v1/jobs", json={"model": "sample", key: sent}), 422, "invalid-request")
    assert [error["field"] for error in document["errors"]] == [field]
    assert said in document["detail"]
    assert sum(world.store.counts().values()) == 0


def test_a_file_has_no_more_than_the_quota_leaves(client, world, problem):
    world.stores.uploads._quota = 20
    uploaded(client)
    uploaded(client, name="b.txt", content=b"x" * 12)
    uploaded_again = client.post("/v1/files", params={"name": "c.txt"}, content=iter([b"y"]))
    assert "20 bytes (HEADROOM_FILE_QUOTA_BYTES" in problem(uploaded_again, 413, "quota-reached")["detail"]
    announced = client.post("/v1/files", params={"name": "c.txt"}, content=b"y")
    problem(announced, 413, "quota-reached")


def test_a_file_expires_unless_it_is_named(client, world, problem):
    clock = datetime.now(UTC)
    world.stores.uploads._clock = lambda: clock
    ids = [uploaded(client, name=name)["id"] for name in ("a", "b")]
    week = timedelta(seconds=Settings().file_seconds)
    clock += week - timedelta(seconds=1)
    assert world.stores.uploads.use(ids[0]).expires_at == clock + timedelta(hours=1)
    clock += timedelta(seconds=1)
    assert [file["id"] for file in client.get("/v1/files").json()["files"]] == ids[:1]
    problem(client.get(f"/v1/files/{ids[1]}"), 404, "not-found")
    clock += GRACE
    uploaded(client, name="c")
    assert row_of(world, ids[1]) is None


def test_nobody_but_administrators_sees_the_files_of_another_owner(client, world, problem):
    theirs = uploaded(client)
    assert theirs["owner"] == ""
    ann = TestClient(client.app, headers={"X-API-Key": world.stores.keys.create("ann", ["read", "submit"])[1]})
    mine = uploaded(ann)
    assert (mine["owner"], mine["sha256"]) == ("ann", theirs["sha256"])
    problem(ann.get(f"/v1/files/{theirs['id']}"), 404, "not-found")
    problem(ann.delete(f"/v1/files/{theirs['id']}"), 404, "not-found")
    response = ann.post("/v1/jobs", json={"model": "sample", "calibration": {"file": theirs["id"]}})
    problem(response, 422, "invalid-request")
    assert ann.get("/v1/files").json()["files"] == [mine]
    listed = {file["id"]: file for file in client.get("/v1/files").json()["files"]}
    assert listed == {mine["id"]: mine, theirs["id"]: theirs}
    job = {"model": "sample", "calibration": {"file": mine["id"]}}
    assert client.post("/v1/jobs", json=job).status_code == 202
    assert client.delete(f"/v1/files/{mine['id']}").status_code == 204
    assert ann.get("/v1/files").json()["files"] == []


def test_an_audit_names_a_file(client):
    file = uploaded(client)
    audit = {"name": "nightly", "model": "sample", "limits": [], "calibration": {"file": file["id"]}}
    definition = client.post("/v1/audits", json=audit).json()["definition"]
    assert definition["calibration"] == {"name": "c.jsonl", "sha256": file["sha256"], "size": 8}
    changed = client.patch("/v1/audits/nightly", json={"labelled": {"file": file["id"]}}).json()["definition"]
    assert changed["labelled"] == definition["calibration"]
