"""`headroom audits history` and `calibrate` against a running service: what they print, write and refuse."""

import csv
import hashlib
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from service.contracts.progress import Failed
from service.store.audit_tables import AuditRunRow
from service.store.statuses import RunState, Status

STORED = Path(__file__).parents[3] / "workers" / "reporting" / "stored" / "schema_1_0"
LIMIT = "int8.kl_divergence <= baseline * 1.2"
KL = "schemes.int8.kl_divergence.mean"
BEGIN = datetime(2026, 1, 1, 3, tzinfo=UTC)


@pytest.fixture
def watched(remote, headroom):
    """An audit with two measured runs, a step between them, a skipped one and an unchanged one."""
    assert headroom("audits", "create", "watch", "sample", "--limit", LIMIT, "--limit", "block.abs_max <= 5").code == 0
    step = ({"value": 1.0, "interval": (0.9, 1.1)}, None, {"value": 2.0, "interval": (1.9, 2.1)}, None)
    verdicts = ("pass", "skipped", "warn", "unchanged")
    for place, (facts, verdict) in enumerate(zip(step, verdicts, strict=True)):
        run = remote.audits.request_run("watch")
        judged = {"limit": LIMIT, "figure": KL, "baseline": 1.0, "bound": 1.2, "reason": "It is."}
        values = {
            "state": RunState.ended,
            "verdict": verdict,
            "findings": [judged | facts | {"verdict": verdict}] if facts else [],
            "report_id": f"{place:032x}",
            "scheduled_at": BEGIN + timedelta(days=place),
            "reasons": ["It is too late."] if verdict == "skipped" else [],
        }
        with remote.audits._write() as session:
            session.execute(update(AuditRunRow).where(AuditRunRow.id == run.id).values(values))
    return "watch"


def test_a_history_is_shown_run_by_run_with_its_steps(headroom, watched):
    ran = headroom("audits", "history", watched)
    assert ran.code == 0, ran.err
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert lines[0] == LIMIT
    assert lines[2:6] == [
        "2026-01-01 03:00 1.00 (0.90 to 1.10) 1.000 1.200 pass pass",
        "2026-01-02 03:00 It is too late. skipped",
        "2026-01-03 03:00 step to 2.00 (1.90 to 2.10) 1.000 1.200 warn warn",
        "2026-01-04 03:00 2.00 (1.90 to 2.10) 1.000 1.200 warn unchanged",
    ]
    assert lines[6].startswith("Step 2026-01-03 03:00: 1.000 (0.928 to 1.078) -> 2.00 (1.86 to 2.16); a report is gone")
    assert lines[8] == "block.abs_max <= 5"
    assert lines[-1] == "Steps: Nothing was measured yet."


def test_one_figure_is_chosen_by_any_of_its_names(headroom, watched):
    for name in ("int8.kl_divergence", "int8.kl_divergence.mean", KL):
        [figure] = headroom("audits", "history", watched, "--figure", name, "--json").document["figures"]
        assert figure["figure"] == KL
    assert len(headroom("audits", "history", watched, "--json", "--runs", "2").document["runs"]) == 2
    ran = headroom("audits", "history", watched, "--figure", "int8.kl")
    assert ran.code == 2
    assert "--figure: 'int8.kl' is not allowed; allowed: a figure with a limit: int8.kl_divergence.mean" in ran.err


def test_table_and_figures_are_written(headroom, watched, tmp_path):
    table, out = tmp_path / "history.csv", tmp_path / "drawn"
    ran = headroom("audits", "history", watched, "--csv", str(table), "--out", str(out), "--json")
    assert ran.code == 0, ran.err
    assert ran.document["directory"] == str(out)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["value"] for row in rows if row["figure"] == KL] == ["1.0", "", "2.0", "2.0"]
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        "history.json", "history.csv", "figures/audit_history.svg", "figures/audit_history.png",
    }  # fmt: skip
    assert (out / "history.csv").read_bytes() == table.read_bytes()
    shown = headroom("audits", "history", watched, "--csv", str(table)).out
    assert shown.splitlines()[-1] == f"Written: {table}"


def test_what_cannot_be_written_is_refused_before_anything_is_asked(headroom, watched, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    ran = headroom("audits", "history", watched, "--out", str(tmp_path / "full"))
    assert (ran.code, "--out: " in ran.err) == (2, True)
    for path in (tmp_path, tmp_path / "none" / "file.csv"):
        ran = headroom("audits", "history", watched, "--csv", str(path))
        assert (ran.code, "--csv: " in ran.err) == (2, True)
    assert headroom("audits", "history", "none").code == 2
    assert "--runs: '0' is not allowed" in headroom("audits", "history", watched, "--runs", "0").err


def test_audits_without_runs_or_limits_say_so(headroom, watched):
    headroom("audits", "edit", watched, "--set", "limits=null")
    assert headroom("audits", "history", watched).out == "watch: 4 runs, and no limit\n"
    headroom("audits", "create", "new", "sample", "--limit", LIMIT)
    assert headroom("audits", "history", "new").out == "new: no run has ended\n"


@pytest.fixture
def worker(remote):
    """Give every job the report of its seed, in a worker's place, or fail it."""
    stop, failing = threading.Event(), threading.Event()

    def work():
        while not stop.is_set():
            for job in remote.store.list(status=Status.queued).jobs:
                claim = remote.claim(job.id)
                if failing.is_set():
                    remote.store.fail(claim, Failed(code="bad-model", message="There is none.", bad_input=True))
                else:
                    remote.succeed(claim, _report(job.request.seed))
            time.sleep(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    yield failing
    stop.set()
    thread.join()


def _report(seed):
    files = {str(path.relative_to(STORED)): path.read_bytes() for path in STORED.rglob("*") if path.is_file()}
    report = json.loads(files["report.json"])
    report["calibration"] |= {"seed": seed, "fingerprint": f"sha256:{hashlib.sha256(bytes([seed])).hexdigest()}"}
    report["schemes"]["int8"]["kl_divergence"]["max"] = 0.01 * (5 + (seed * 7) % 5)
    return files | {"report.json": json.dumps(report).encode()}


@pytest.mark.usefixtures("worker")
def test_an_audit_is_made_and_its_limits_are_calibrated(headroom, remote):
    limits = ("--limit", "int8.kl_divergence.max <= baseline * 1.01", "--limit", "int8.model_bytes <= 1e12")
    ran = headroom("audits", "create", "watch", "sample", *limits, "--calibrate", "3", "--json")
    assert ran.code == 0, ran.err
    made = ran.document
    assert (made["name"], made["calibration"]["seeds"]) == ("watch", [0, 1, 2, 3])
    assert [noise["tight"] for noise in made["calibration"]["limits"]] == [True, False]
    assert [job.request.seed for job in remote.store.list().jobs] == [3, 2, 1, 0]
    shown = headroom("audits", "calibrate", "watch", "--seeds", "3").out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == "Noise of the limits over calibration seeds 0, 1, 2, 3"
    assert lines[2].startswith("int8.kl_divergence.max <= baseline * 1.01 0.06750 0.01708")
    assert lines[4].startswith("False alarms to expect of 365 runs a year on other text: ")
    assert lines[5].startswith("Too tight: int8.kl_divergence.max <= baseline * 1.01 lies inside the figure's noise; ")
    assert len(remote.store.list().jobs) == 4


def test_a_calibration_whose_jobs_fail_says_why(headroom, remote, worker):
    worker.set()
    ran = headroom("audits", "create", "watch", "sample", "--limit", LIMIT, "--calibrate", "2")
    assert ran.code == 1
    assert "on seed 0 failed: There is none." in ran.err
    assert remote.audits.get("watch").definition.limits == (LIMIT,)
    assert headroom("audits", "calibrate", "watch", "--seeds", "1").code == 2
