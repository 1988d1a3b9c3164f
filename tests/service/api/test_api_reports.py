"""Reports over HTTP: every file as it was stored, entity tags, ranges, and nothing outside a report."""

import csv
import hashlib
import io
import json
import os
import re
import tempfile
from pathlib import Path

import pytest

STORED = Path(__file__).parents[2] / "workers" / "reporting" / "stored" / "schema_1_0"

FILES = {
    "": "report.json",
    "/report.html": "report.html",
    "/summary.md": "summary.md",
    "/figures/error_growth.svg": "figures/error_growth.svg",
    "/figures/error_growth.png": "figures/error_growth.png",
    "/tables/sites.parquet": "tables/sites.parquet",
    "/bundle.zip": "bundle.zip",
}


@pytest.fixture
def png(report_id):
    """Path of a figure of 256 bytes, each its own offset."""
    return f"/v1/reports/{report_id}/figures/error_growth.png"


@pytest.mark.parametrize(("path", "name"), FILES.items())
def test_a_file_comes_as_it_was_stored_under_its_own_sum(client, report_id, files, path, name):
    response = client.get(f"/v1/reports/{report_id}{path}")
    assert response.status_code == 200
    assert response.content == files[name]
    assert response.headers["etag"] == f'"{hashlib.sha256(files[name]).hexdigest()}"'


@pytest.mark.parametrize("path", [*FILES, "/tables/sites.csv"])
def test_a_client_that_has_the_file_gets_no_body(client, report_id, path):
    etag = client.get(f"/v1/reports/{report_id}{path}").headers["etag"]
    for tag in (etag, f'"other", W/{etag}', "*"):
        response = client.get(f"/v1/reports/{report_id}{path}", headers={"If-None-Match": tag})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    assert client.get(f"/v1/reports/{report_id}{path}", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("bytes=0-9", 0, 9), ("bytes=250-", 250, 255), ("bytes=-6", 250, 255), ("bytes=5-999", 5, 255)],
)
def test_a_range_is_sent_alone(client, png, wanted, first, last):
    response = client.get(png, headers={"Range": wanted})
    assert response.status_code == 206
    assert response.headers["content-range"] == f"bytes {first}-{last}/256"
    assert response.content == bytes(range(first, last + 1))


def test_several_ranges_come_as_parts(client, png):
    response = client.get(png, headers={"Range": "bytes=0-1,10-11"})
    assert response.status_code == 206
    boundary = re.fullmatch(r"multipart/byteranges; boundary=(.+)", response.headers["content-type"]).group(1)
    assert response.content.count(f"--{boundary}\r\n".encode()) == 2
    assert b"\r\n\r\n\x00\x01\r\n" in response.content
    assert b"\r\n\r\n\x0a\x0b\r\n" in response.content


def test_a_download_is_taken_up_only_if_it_is_still_the_same_file(client, png):
    etag = client.get(png).headers["etag"]
    assert client.get(png, headers={"Range": "bytes=9-", "If-Range": etag}).status_code == 206
    assert client.get(png, headers={"Range": "bytes=9-", "If-Range": '"old"'}).status_code == 200


@pytest.mark.parametrize(
    "wanted",
    [
        "bytes=256-",
        "bytes=9-3",
        "bytes=-0",
        "bytes=a-b",
        "bytes=",
        "lines=1-2",
        "bytes=1" + "0" * 5000 + "-",
        "bytes=-",
    ],
)
def test_a_range_outside_the_file_is_refused(client, png, problem, wanted):
    response = client.get(png, headers={"Range": wanted})
    document = problem(response, 416, "range-not-satisfiable")
    assert "256 bytes" in document["detail"]
    assert response.headers["content-range"] == "bytes */256"


def test_a_table_comes_as_csv_with_empty_fields_for_nulls(client, report_id):
    response = client.get(f"/v1/reports/{report_id}/tables/sites.csv")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.reader(io.StringIO(response.text)))
    assert rows[0] == ["layer", "abs_max"]
    assert [row[0] for row in rows[1:]] == ["0", "1", "2"]
    assert [row[1] and float(row[1]) for row in rows[1:]] == [1.5, "", 1e-7]


def test_csv_leaves_no_temporary_file_behind(client, report_id, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    there = set(os.listdir(tmp_path))
    path = f"/v1/reports/{report_id}/tables/sites.csv"
    assert client.get(path).status_code == 200
    assert client.get(path, headers={"Range": "bytes=0-3"}).content == b'"lay'
    problem(client.get(path, headers={"Range": "bytes=999-"}), 416, "range-not-satisfiable")
    assert set(os.listdir(tmp_path)) == there


@pytest.mark.parametrize("path", ["/report.html", "/figures/error_growth.svg"])
def test_what_a_browser_might_run_is_locked_in(client, report_id, path):
    headers = client.get(f"/v1/reports/{report_id}{path}").headers
    assert headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert headers["x-content-type-options"] == "nosniff"


def test_only_jobs_with_a_report_are_listed(client, world, report_id):
    world.submit()
    page = client.get("/v1/reports").json()
    assert [report["id"] for report in page["reports"]] == [report_id]
    assert page["reports"][0]["url"] == f"/v1/reports/{report_id}"
    assert client.get("/v1/reports", params={"model": "/another"}).json()["reports"] == []
    assert client.get(f"/v1/jobs/{report_id}").json()["report"] == f"/v1/reports/{report_id}"


def test_a_job_without_a_report_has_none_to_download(client, world, problem):
    problem(client.get(f"/v1/reports/{world.submit().id}"), 404, "not-found")


@pytest.mark.parametrize(
    "path",
    [
        "figures/none.svg",
        "figures/error_growth.exe",
        "figures/error_growth",
        "tables/sites.json",
        "tables/none.csv",
        "tables/none.parquet",
        "headroom.db",
        "../headroom.db",
        "%2e%2e/headroom.db",
    ],
)
def test_a_file_that_the_report_has_not_is_not_found(client, report_id, problem, path):
    problem(client.get(f"/v1/reports/{report_id}/{path}"), 404, "not-found")


@pytest.mark.parametrize("name", ["..", "..%2f..%2fapi-key", "%2e%2e%5cx", "a%00b", "x" * 300])
@pytest.mark.parametrize(("kind", "form"), [("figures", "svg"), ("tables", "parquet"), ("tables", "csv")])
def test_a_name_that_leads_elsewhere_is_refused(client, report_id, name, kind, form):
    response = client.get(f"/v1/reports/{report_id}/{kind}/{name}.{form}")
    assert response.status_code in (404, 422)
    assert response.headers["content-type"] == "application/problem+json"


def test_an_artifact_whose_file_is_gone_is_not_found(client, world, report_id, problem):
    row = world.store.artifact(report_id, "report.html")
    world.artifacts.path(row.sha256).unlink()
    problem(client.get(f"/v1/reports/{report_id}/report.html"), 404, "not-found")


def record(level):
    return {"level": level, "reasons": [f"It is {level}."], "not_ruled_out": []}


def test_lists_give_the_verdicts_of_the_reports(client, world):
    own = {"int8": record("negligible"), "nf4": record("severe") | {"not_ruled_out": ["noticeable"]}}
    waiting, done = world.submit(), world.submit()
    content = json.loads((STORED / "report.json").read_text()) | {"schema_version": "1.2"}
    content["schemes"] = {name: content["schemes"][name] | {"verdict": verdict} for name, verdict in own.items()}
    world.finish(done, {"report.json": json.dumps(content).encode()})
    assert client.get("/v1/reports").json()["reports"][0]["verdicts"] == own
    jobs = {job["id"]: job["verdicts"] for job in client.get("/v1/jobs").json()["jobs"]}
    assert jobs == {done.id: own, waiting.id: None}
    assert client.get(f"/v1/jobs/{done.id}").json()["verdicts"] == own


@pytest.mark.parametrize("with_table", [True, False])
def test_the_verdicts_of_an_older_report_are_worked_out(client, world, with_table):
    job = world.submit()
    names = ["report.json", *(["tables/tokens.parquet"] if with_table else [])]
    files = {name: (STORED / name).read_bytes() for name in names}
    content = json.loads(files["report.json"])
    content["model"]["vocabulary"] = 10**6  # so that the reference does not count as guessing
    world.finish(job, files | {"report.json": json.dumps(content).encode()})
    (found,) = client.get("/v1/reports").json()["reports"]
    assert list(found["verdicts"]) == ["int8", "nf4", "w8a8-tensor"]
    assert ("95% interval" in found["verdicts"]["nf4"]["reasons"][0]) is with_table


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"schemes": {"int8": 5}}', b'{"schemes": {"int8": {}}}',
                                     b'{"schemes": {"int8": {"verdict": {"level": "fine"}}}}'])  # fmt: skip
def test_a_report_that_cannot_be_read_is_listed_without_verdicts(client, world, content):
    job = world.submit()
    world.finish(job, {"report.json": content})
    (found,) = client.get("/v1/reports").json()["reports"]
    assert (found["id"], found["verdicts"]) == (job.id, None)


@pytest.mark.parametrize("path", [*FILES, "/tables/sites.csv"])
def test_head_answers_as_get_does_without_the_content(client, report_id, path):
    get, head = (client.request(method, f"/v1/reports/{report_id}{path}") for method in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (200, b"")
    names = ("etag", "content-length", "content-type", "content-security-policy", "accept-ranges")
    assert [head.headers[name] for name in names] == [get.headers[name] for name in names]
    assert client.head(f"/v1/reports/{'0' * 32}{path}").status_code == 404
