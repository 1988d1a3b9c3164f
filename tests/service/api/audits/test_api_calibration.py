"""The calibration of an audit's limits over HTTP: jobs on further seeds, and what their reports say."""

import hashlib
import json
from pathlib import Path
from statistics import stdev

import pytest
from sqlalchemy import update

from service.contracts.audits.resolution import Terms
from service.contracts.progress import Failed
from service.contracts.request import JobRequest
from service.store.audit_tables import AuditRunRow
from service.store.hosts.clock import utcnow
from service.store.statuses import RunState

STORED = Path(__file__).parents[3] / "workers" / "reporting" / "stored" / "schema_1_0"
FIGURE = "int8.delta_p.rms"
BODY = {"name": "shipping", "model": "org/name@main", "seed": 7, "limits": [f"{FIGURE} <= baseline * 1.001"]}
URL = "/v1/audits/shipping/calibration"


@pytest.fixture
def audit(client):
    assert client.post("/v1/audits", json=BODY).is_success


def measured(seed, value, weights="a"):
    """Return the files of a report on the text of a seed, with this change of probabilities under int8."""
    files = {str(path.relative_to(STORED)): path.read_bytes() for path in STORED.rglob("*") if path.is_file()}
    report = json.loads(files["report.json"])
    report["calibration"] |= {"seed": seed, "fingerprint": f"sha256:{hashlib.sha256(bytes([seed])).hexdigest()}"}
    report["model"] |= {"fingerprint": f"sha256:{weights * 64}"}
    report["schemes"]["int8"]["delta_p"]["rms"] = value
    return files | {"report.json": json.dumps(report).encode()}


def finish(world, view, values, **how):
    for job, value in zip(view["jobs"], values, strict=True):
        world.finish(world.store.get(job["job"]), measured(job["seed"], value, **how))


@pytest.mark.usefixtures("audit")
def test_the_baseline_s_model_is_measured_on_further_seeds_and_its_noise_shown(client, world):
    assert client.get(URL).json() == {"jobs": [], "result": None, "problem": None}
    response = client.post(URL, json={"seeds": 3})
    assert response.status_code == 202
    view = response.json()
    assert [(job["seed"], job["status"]) for job in view["jobs"]] == [(seed, "queued") for seed in (7, 8, 9, 10)]
    asked = world.store.get(view["jobs"][1]["job"]).request
    assert asked == JobRequest(model="org/name@main", seed=8)
    values = [0.010, 0.012, 0.011, 0.013]
    finish(world, view, values)
    found = client.get(URL).json()
    assert found["problem"] is None
    [noise] = found["result"]["limits"]
    assert (found["result"]["seeds"], found["result"]["runs_per_year"]) == ([7, 8, 9, 10], 365.0)
    assert noise["values"] == values
    assert noise["standard_deviation"] == pytest.approx(stdev(values))
    assert noise["tight"]
    assert noise["suggestion"].startswith(f"{FIGURE} <= baseline * ")
    assert noise["alarms_per_year"] == pytest.approx(365 * 0.05**2)  # of what noise is told apart from


@pytest.mark.usefixtures("audit")
def test_asking_again_measures_only_what_is_missing(client, world):
    first = client.post(URL, json={"seeds": 2}).json()
    failed = world.store.get(first["jobs"][0]["job"])
    world.store.fail(world.claim(failed), Failed(code="bad-model", message="No.", bad_input=True))
    world.store.cancel(first["jobs"][1]["job"])
    assert client.get(URL).json()["problem"] == f"The job {failed.id} on seed 7 failed: No."
    second = client.post(URL, json={"seeds": 4}).json()
    assert [job["job"] for job in second["jobs"][:3]] == [job["job"] for job in first["jobs"]]
    assert [job["status"] for job in second["jobs"]] == ["queued"] * 5
    assert second["problem"] is None
    assert len(client.get("/v1/jobs").json()["jobs"]) == 5


@pytest.mark.usefixtures("audit")
def test_an_edited_limit_is_weighed_on_the_reports_that_there_are(client, world):
    finish(world, client.post(URL, json={"seeds": 2}).json(), [0.010, 0.012, 0.011])
    client.patch("/v1/audits/shipping", json={"limits": [f"{FIGURE} <= 1"], "schedule": "0 3 * * MON"})
    found = client.get(URL).json()
    assert [noise["limit"] for noise in found["result"]["limits"]] == [f"{FIGURE} <= 1"]
    assert not found["result"]["limits"][0]["tight"]
    assert found["result"]["runs_per_year"] in (52.0, 53.0)
    client.patch("/v1/audits/shipping", json={"sequences": 32})
    assert client.get(URL).json()["jobs"] == []


def test_the_model_of_a_pinned_report_is_measured_and_its_report_taken(client, world):
    job = world.store.submit(JobRequest(model="sample"))
    world.finish(job, measured(0, 0.010))
    analysis = json.loads((STORED / "report.json").read_text())["analysis"]
    pinned = {**analysis, **BODY, "seed": 0, "baseline": f"report:{job.id}"}
    assert client.post("/v1/audits?force=true", json=pinned).is_success
    view = client.post(URL, json={"seeds": 2}).json()
    assert [one["seed"] for one in view["jobs"]] == [1, 2]
    assert (
        world.store.get(view["jobs"][0]["job"]).request.model
        == json.loads((STORED / "report.json").read_text())["model"]["source"]
    )
    finish(world, view, [0.012, 0.011])
    [noise] = client.get(URL).json()["result"]["limits"]
    assert noise["values"] == [0.010, 0.012, 0.011]


def passed(world, value, weights):
    """Add a run that passed with a report of its own, and return the report's id."""
    job = world.submit()
    world.finish(job, measured(7, value, weights=weights))
    audit = world.stores.audits.get("shipping")
    ended = {"state": RunState.ended, "verdict": "pass", "report_id": job.id, "finished_at": utcnow(),
             "definition": audit.definition.model_dump(mode="json"),
             "figures": {"schemes.int8.delta_p.rms": value}}  # fmt: skip
    run = world.stores.audits.request_run("shipping")
    with world.stores.audits._write() as session:
        session.execute(update(AuditRunRow).where(AuditRunRow.id == run.id).values(**ended))
    return job.id


@pytest.mark.parametrize(("rule", "weights", "value"), [("last-passing", "c", 0.014), ("median:3", "b", 0.011)])
def test_the_model_of_the_present_baseline_is_measured(client, world, rule, weights, value):
    """Not the branch that the audit names, which has moved on."""
    client.post("/v1/audits", json={**BODY, "baseline": rule})
    reports = {passed(world, of, weights): weights for of, weights in ((0.010, "a"), (0.011, "b"), (0.014, "c"))}
    shown = client.get("/v1/audits/shipping/baseline").json()
    assert shown == {"report_id": next(one for one in reports if reports[one] == weights), "outdated": None}
    view = client.post(URL, json={"seeds": 2}).json()
    assert [one["seed"] for one in view["jobs"]] == [8, 9]
    source = json.loads((STORED / "report.json").read_text())["model"]["source"]
    for job in view["jobs"]:
        claim = world.claim(world.store.get(job["job"]))
        assert (claim.request.model, claim.terms) == (source, Terms(fingerprint=f"sha256:{weights * 64}"))
        world.succeed(claim, measured(job["seed"], value + 0.001, weights=weights))
    [noise] = client.get(URL).json()["result"]["limits"]
    assert noise["values"] == [value, value + 0.001, value + 0.001]


@pytest.mark.usefixtures("audit")
def test_a_new_baseline_with_other_weights_is_measured_anew(client, world):
    passed(world, 0.010, "a")
    first = client.post(URL, json={"seeds": 2}).json()
    passed(world, 0.010, "a")
    assert client.get(URL).json() == first
    passed(world, 0.012, "b")
    assert client.get(URL).json() == {"jobs": [], "result": None, "problem": None}


@pytest.mark.usefixtures("audit")
def test_an_audit_without_a_baseline_says_why(client, world, problem):
    address = "/v1/audits/shipping/baseline"
    assert client.get(address).json() == {"report_id": None, "outdated": None}
    last = passed(world, 0.010, "a")
    assert client.patch("/v1/audits/shipping", json={"bos": "never", "schemes": ["int8", "fp4"]}).is_success
    assert client.get(address).json()["outdated"] == (
        f"No run has passed since the audit was changed: the last that did, report {last}, had other bos, schemes."
    )
    assert client.get(address, params={"figure": ["fp4.perplexity", "block.abs_max"]}).is_success
    refused = client.get(address, params={"figure": "fp4.perplexty"})
    assert "figure: 'fp4.perplexty' is no figure: " in problem(refused, 422, "invalid-request")["detail"]
    problem(client.get("/v1/audits/none/baseline"), 404, "not-found")


@pytest.mark.usefixtures("audit")
def test_reports_of_other_definitions_are_no_baseline(client, world, monkeypatch):
    passed(world, 0.010, "a")
    monkeypatch.setattr("service.api.audits.baseline.DEFINITIONS_VERSION", "7.0")
    shown = client.get("/v1/audits/shipping/baseline").json()
    assert shown == {"report_id": None, "outdated": "The last runs that passed have other definitions than 7.0."}


@pytest.mark.usefixtures("audit")
def test_reports_of_other_weights_are_a_problem(client, world):
    view = client.post(URL, json={"seeds": 2}).json()
    for place, job in enumerate(view["jobs"]):
        world.finish(world.store.get(job["job"]), measured(job["seed"], 0.01, weights=f"{place}"))
    found = client.get(URL).json()
    assert found["result"] is None
    assert "are reports of different weights" in found["problem"]


@pytest.mark.parametrize("seeds", [1, 65, True, "x"])
@pytest.mark.usefixtures("audit")
def test_other_numbers_of_seeds_are_refused(client, problem, seeds):
    assert "seeds" in problem(client.post(URL, json={"seeds": seeds}), 422, "invalid-request")["detail"]


def test_the_newest_checkpoint_of_a_directory_is_measured(client, world):
    client.post("/v1/audits", json={**BODY, "model": {"newest_in": "/models"}})
    view = client.post(URL, json={"seeds": 2}).json()
    claim = world.claim(world.store.get(view["jobs"][0]["job"]))
    assert (claim.request.model, claim.terms) == ("/models", Terms(newest_in=True))
    assert client.get(URL).json()["jobs"][1:] == view["jobs"][1:]


def test_what_cannot_be_calibrated_is_refused(client, problem):
    client.post("/v1/audits", json={**BODY, "limits": []})
    assert "one limit or more" in problem(client.post(URL), 422, "invalid-request")["detail"]
    problem(client.post("/v1/audits/none/calibration"), 404, "not-found")
