"""The history of an audit over HTTP, from runs and reports in the store; and the comparison of two runs."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from service.contracts.audits.history import AuditHistory
from service.contracts.comparison import Comparison
from service.store.audit_tables import AuditRunRow
from service.store.database import make_engine
from service.store.statuses import RunState

STORED = Path(__file__).parents[3] / "workers" / "reporting" / "stored" / "schema_1_0"
LIMIT = "int8.kl_divergence <= baseline * 1.2"
BEGIN = datetime(2026, 1, 1, 3, tzinfo=UTC)


@pytest.fixture
def audit(client):
    assert client.post("/v1/audits", json={"name": "shipping", "model": "org/name", "limits": [LIMIT]}).is_success
    return "/v1/audits/shipping"


@pytest.fixture
def keep(world):
    """Store the example's report with keys of report.json changed; return its id."""

    def store(**changed):
        files = {str(path.relative_to(STORED)): path.read_bytes() for path in STORED.rglob("*") if path.is_file()}
        report = json.loads(files["report.json"])
        for key, value in changed.items():
            report[key] = report[key] | value if isinstance(value, dict) else value
        job = world.submit()
        world.finish(job, files | {"report.json": json.dumps(report).encode()})
        return job.id

    return store


@pytest.fixture
def run(client, world, audit):
    """Ask for a run, and end it as said; return its id."""
    count = iter(range(1000))

    def end(value=None, report_id=None, verdict="pass", reasons=()):
        run_id = client.post(f"{audit}/runs").json()["id"]
        place = next(count)
        finding = {"limit": LIMIT, "figure": "schemes.int8.kl_divergence.mean", "value": value, "baseline": 1.0,
                   "bound": 1.2, "interval": value and [value - 0.1, value + 0.1], "verdict": "pass",
                   "reason": "A sentence."}  # fmt: skip
        changes = {"state": RunState.ended, "verdict": verdict, "report_id": report_id, "reasons": list(reasons),
                   "scheduled_at": BEGIN + timedelta(days=place), "finished_at": BEGIN + timedelta(days=place, hours=1),
                   "findings": [] if value is None else [finding]}  # fmt: skip
        engine = make_engine(world.settings.database)
        with Session(engine) as session, session.begin():
            session.execute(update(AuditRunRow).where(AuditRunRow.id == run_id).values(changes))
        engine.dispose()
        return run_id

    return end


def read(client, audit, **parameters):
    response = client.get(f"{audit}/history", params=parameters)
    assert response.status_code == 200, response.text
    return AuditHistory.model_validate_json(response.content)


def test_a_history_has_values_gaps_steps_and_what_changed(client, audit, run, keep):
    before, after = keep(), keep(model={"revision": "b" * 40}, environment={"transformers": "9.9.9"})
    run(1.0, before)
    skipped = run(verdict="skipped", reasons=["The run before has not ended."])
    stepped = run(2.0, after)
    run(verdict="unchanged")
    client.post(f"{audit}/runs")
    of = read(client, audit)
    assert (of.audit, len(of.runs)) == ("shipping", 4)
    [figure] = of.figures
    assert [point.status for point in figure.points] == ["measured", "gap", "measured", "unchanged"]
    assert (figure.points[1].run_id, figure.points[1].reason) == (skipped, "The run before has not ended.")
    [step] = figure.steps
    assert (step.run_id, step.before.value, step.after.value) == (stepped, 1.0, 2.0)
    assert {change.name: change.after for change in step.changes} == {"revision": "b" * 40, "transformers": "9.9.9"}
    rows = list(csv.DictReader(io.StringIO(client.get(f"{audit}/history.csv").text, newline="")))
    assert [row["value"] for row in rows] == ["1.0", "", "2.0", "2.0"]
    assert rows[2]["step_to"] == "2.0"


def test_the_table_is_a_named_csv_file(client, audit):
    response = client.get(f"{audit}/history.csv")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == 'inline; filename="shipping-history.csv"'
    assert response.text.startswith("time,run,")


def test_the_newest_runs_are_taken(client, audit, run):
    ids = [run(1.0) for _ in range(4)]
    assert [one.run_id for one in read(client, audit, runs=2).runs] == ids[2:]
    assert [one.run_id for one in read(client, audit).runs] == ids


def test_a_report_that_cannot_be_read_leaves_its_run_without_what_changed(client, audit, run, keep, world):
    job = world.submit()
    world.finish(job, {"report.json": b"[]"})
    run(1.0, keep())
    run(2.0, job.id)
    assert [one.changes for one in read(client, audit).runs] == [None, None]


def test_two_runs_are_compared_in_one_call(client, audit, run, keep):
    before, after = keep(), keep()
    first, second, unchanged = run(1.0, before), run(1.0, after), run(verdict="unchanged")
    for later in (second, unchanged):
        response = client.get(f"{audit}/comparison", params={"run": [first, later]})
        found = Comparison.model_validate_json(response.content)
        assert [report.name for report in found.reports] == [before, after]
    held = {"If-None-Match": response.headers["etag"]}
    assert client.get(f"{audit}/comparison", params={"run": [first, second]}, headers=held).status_code == 304


def test_runs_that_cannot_be_compared_are_refused(client, audit, run, keep, problem):
    first, skipped = run(1.0, keep()), run(verdict="skipped")
    other = run(1.0, keep(schema_version="2.0"))
    url = f"{audit}/comparison"
    document = problem(client.get(url, params={"run": [first]}), 422, "invalid-request")
    assert document["detail"].startswith("run: ")
    assert "are 1; allowed: the ids of 2 runs" in document["detail"]
    document = problem(client.get(url, params={"run": [first, skipped]}), 422, "invalid-request")
    assert "has no report: it ended as skipped; allowed: runs that have a report" in document["detail"]
    waiting = client.post(f"{audit}/runs").json()["id"]
    assert (
        "it has not ended"
        in problem(client.get(url, params={"run": [first, waiting]}), 422, "invalid-request")["detail"]
    )
    document = problem(client.get(url, params={"run": [first, other]}), 422, "invalid-request")
    assert document["errors"][0]["field"] == "run"
    problem(client.get(url, params={"run": [first, "0" * 32]}), 404, "not-found")
    problem(client.get(url, params={"run": [first, "x"]}), 422, "invalid-request")
    client.post("/v1/audits", json={"name": "other", "model": "org/name"})
    problem(client.get("/v1/audits/other/comparison", params={"run": [first, other]}), 404, "not-found")


def test_a_history_of_an_audit_that_is_not_there_is_not_found(client, problem):
    for path in ("history", "history.csv"):
        problem(client.get(f"/v1/audits/none/{path}"), 404, "not-found")


@pytest.mark.parametrize("runs", [0, 10_001, "x"])
def test_other_numbers_of_runs_are_refused(client, audit, problem, runs):
    assert "runs" in problem(client.get(f"{audit}/history", params={"runs": runs}), 422, "invalid-request")["detail"]
