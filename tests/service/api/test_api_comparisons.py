"""GET /v1/comparisons: numbers from stored reports, without anything that draws."""

import json
from pathlib import Path

import pytest

from service.contracts.comparison import Comparison

STORED = Path(__file__).parents[2] / "workers" / "reporting" / "stored" / "schema_1_0"


def stored_files():
    return {str(path.relative_to(STORED)): path.read_bytes() for path in STORED.rglob("*") if path.is_file()}


@pytest.fixture
def keep(world):
    """Store a report: the example with some files changed; return its id."""

    def store(**changed):
        job = world.submit()
        world.finish(job, stored_files() | {name.replace("__", "."): content for name, content in changed.items()})
        return job.id

    return store


def restated(change):
    """Return the example's report.json with keys changed."""
    return json.dumps(json.loads((STORED / "report.json").read_text()) | change).encode()


def test_two_reports_side_by_side(client, keep):
    ids = [keep(), keep()]
    response = client.get("/v1/comparisons", params={"report": ids})
    assert response.status_code == 200
    found = Comparison.model_validate_json(response.content)
    assert [report.name for report in found.reports] == ids
    [difference] = found.differences
    assert difference.range.sites == 60
    assert difference.schemes["nf4"].kl_divergence.paired
    assert found.figures == ()


def test_a_client_that_has_the_comparison_gets_no_body(client, keep):
    wanted = {"report": [keep(), keep()]}
    etag = client.get("/v1/comparisons", params=wanted).headers["etag"]
    response = client.get("/v1/comparisons", params=wanted, headers={"If-None-Match": etag})
    assert (response.status_code, response.content) == (304, b"")


def test_a_report_that_is_not_there_is_not_found(client, keep, problem):
    problem(client.get("/v1/comparisons", params={"report": [keep(), "0" * 32]}), 404, "not-found")


@pytest.mark.parametrize("count", [0, 1, 9])
def test_other_numbers_of_reports_are_refused(client, keep, problem, count):
    response = client.get("/v1/comparisons", params={"report": [keep()] * count})
    document = problem(response, 422, "invalid-request")
    assert document["errors"][0]["field"] == "report"
    if count:
        assert f"compare needs 2 to 8 reports; got {count}" in document["detail"]


def test_an_id_that_is_none_is_refused(client, keep, problem):
    problem(client.get("/v1/comparisons", params={"report": [keep(), "../x"]}), 422, "invalid-request")


def test_another_major_version_is_refused_by_name(client, keep, problem):
    newer = keep(report__json=restated({"schema_version": "2.0", "entirely": "other"}))
    document = problem(client.get("/v1/comparisons", params={"report": [keep(), newer]}), 422, "invalid-request")
    refusal = "report.json: schema_version: '2.0' is not allowed; this program reads 1.x"
    assert f"report {newer}: {refusal}" in document["detail"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"schema_version": "1.0"}', b'{"a":' * 10**6],
    ids=["empty", "list", "object", "version", "nested"],
)
def test_a_damaged_report_is_named(client, keep, problem, content):
    damaged = keep(report__json=content)
    document = problem(client.get("/v1/comparisons", params={"report": [keep(), damaged]}), 500, "report-damaged")
    assert f"report {damaged}: report.json" in document["detail"]


def test_a_damaged_table_is_named(client, keep, world, problem):
    job = world.submit()
    world.finish(job, stored_files() | {"tables/tokens.parquet": b"PAR1"})
    document = problem(client.get("/v1/comparisons", params={"report": [keep(), job.id]}), 500, "report-damaged")
    assert f"report {job.id}: tables/tokens.parquet cannot be read" in document["detail"]


def test_a_key_is_needed(stranger):
    assert stranger.get("/v1/comparisons", params={"report": ["a", "b"]}).status_code == 401
