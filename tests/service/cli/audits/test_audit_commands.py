"""`headroom audits` against a running service: what it sends, prints and exits with."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
from sqlalchemy import update

from service.cli.running import BAD_INPUT, DONE, JOB_FAILED, LIMIT_BROKEN, UNREACHABLE
from service.contracts.audits.audit import AuditDefinition, Finding
from service.store.audit_tables import AuditRunRow
from service.store.audits import AuditStore
from service.store.statuses import RunState

FILE = """\
audits:
  - name: a
    model: sample
    calibration: c.txt
    limits: [block.abs_max <= 4]
  - name: b
    model: org/name@main
"""
FINDING = Finding(
    limit="block.abs_max <= 4", figure="block.abs_max", value=5.0, bound=4.0, verdict="broken", reason="5 is over 4."
)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "c.txt").write_text("Guten Tag.")
    path = tmp_path / "audits.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def end_next_run(remote):
    """End the next run that is asked for, in the scheduler's place."""
    threads = []

    def start(name, **values):
        def run():
            while not (runs := remote.audits.runs(name).runs):
                time.sleep(0.01)
            ended = {"state": RunState.ended, "finished_at": datetime.now(UTC), **values}
            with remote.audits._write() as session:
                session.execute(update(AuditRunRow).where(AuditRunRow.id == runs[0].id).values(**ended))

        threads.append(threading.Thread(target=run))
        threads[0].start()

    yield start
    for thread in threads:
        thread.join()


def test_create_sends_every_option_and_show_prints_the_audit(headroom, remote, tmp_path):
    (tmp_path / "c.txt").write_text("Guten Tag.")
    (tmp_path / "l.jsonl").write_text("{}")
    ran = headroom(
        "audits", "create", "shipping", "org/name@main", "--scheme", "int8", "--scheme", "b=nf4:block_size=32",
        "--calibration", str(tmp_path / "c.txt"), "--labelled", str(tmp_path / "l.jsonl"), "--sequences", "8",
        "--sequence-length", "128", "--seed", "7", "--schedule", "0 3 * * *", "--timezone", "Europe/Berlin",
        "--baseline", "median:3", "--limit", "int8.perplexity_ratio <= 1.01", "--limit", "block.abs_max <= baseline",
        "--reruns", "2", "--webhook", "https://example.org/hook", "--set", "overlap=queue",
        "--set", "llm_int8.magnitude=5", "--set", "llm_int8.layers_fraction=0.5", "--set", "skip_unchanged=false",
    )  # fmt: skip
    assert ran.code == DONE, ran.err
    definition = remote.audits.get("shipping").definition
    assert definition == AuditDefinition(
        name="shipping", model="org/name@main", schemes=("int8", "b=nf4:block_size=32"),
        calibration=definition.calibration, labelled=definition.labelled, sequences=8, sequence_length=128, seed=7,
        schedule="0 3 * * *", timezone="Europe/Berlin", baseline="median:3",
        limits=("int8.perplexity_ratio <= 1.01", "block.abs_max <= baseline"), reruns=2, overlap="queue",
        notify=({"webhook": "https://example.org/hook"},), llm_int8={"magnitude": 5, "layers_fraction": 0.5},
        skip_unchanged=False,
    )  # fmt: skip
    assert remote.artifacts.path(definition.calibration.sha256).read_bytes() == b"Guten Tag."
    lines = [line.split(maxsplit=1) for line in headroom("audits", "show", "shipping").out.splitlines()]
    assert ["schemes", "int8, b"] in lines
    assert ["schedule", "0 3 * * * (Europe/Berlin)"] in lines
    assert ["limit", "int8.perplexity_ratio <= 1.01"] in lines
    assert ["notify", "webhook https://example.org/hook"] in lines
    assert headroom("audits", "show", "shipping", "--json").document["id"] == remote.audits.get("shipping").id


def test_edit_changes_what_was_typed_alone(headroom, remote):
    headroom(
        "audits", "create", "a", "sample", "--seed", "7", "--schedule", "0 3 * * *", "--limit", "block.abs_max <= 4"
    )
    ran = headroom(
        "audits", "edit", "a", "--newest-in", "/models", "--limit", "block.abs_max <= 5", "--set", "schedule=null",
        "--name", "b",
    )  # fmt: skip
    assert ran.code == DONE, ran.err
    assert "newest in /models" in ran.out
    assert remote.audits.get("b").definition == AuditDefinition(
        name="b", model={"newest_in": "/models"}, seed=7, limits=("block.abs_max <= 5",)
    )
    assert headroom("audits", "edit", "b").code == BAD_INPUT


def test_audits_are_listed_paused_resumed_and_removed(headroom, remote):
    headroom("audits", "create", "a", "sample", "--schedule", "0 3 * * *")
    headroom("audits", "create", "b", "sample")
    assert headroom("audits", "pause", "a", "--reason", "new data").code == DONE
    [title, first, second] = headroom("audits", "list").out.splitlines()
    assert title.split() == ["name", "model", "schedule", "next", "run", "(UTC)", "last", "run"]
    assert "paused: new data" in first
    assert second.split() == ["b", "sample"]
    assert headroom("audits", "resume", "a", "--json").document["paused"] is False
    page = headroom("audits", "list", "--limit", "1", "--json").document
    assert [audit["name"] for audit in page["audits"]] == ["a"]
    assert headroom("audits", "list", "--page-token", page["next_page_token"]).out.splitlines()[1].startswith("b")
    assert headroom("audits", "delete", "a").out == "a is removed with its runs; its reports stay\n"
    assert headroom("audits", "delete", "b", "--json").document == {"name": "b", "deleted": True}
    assert remote.audits.list().audits == []


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        ("pass", DONE),
        ("warn", DONE),
        ("unchanged", DONE),
        ("unconfirmed", DONE),
        ("skipped", DONE),
        ("fail", LIMIT_BROKEN),
        ("error", JOB_FAILED),
    ],
)
def test_run_waits_for_the_verdict_and_exits_by_it(headroom, remote, end_next_run, verdict, code):
    remote.audits.create(AuditDefinition(name="a", model="sample", limits=("block.abs_max <= 4",)))
    findings = [FINDING.model_dump(mode="json")]
    end_next_run("a", verdict=verdict, findings=findings, reasons=["block.abs_max <= 4: 5 is over 4."], job_id=None)
    ran = headroom("audits", "run", "a", "--wait", "--json")
    assert ran.code == code
    run = ran.document["run"]
    assert (run["verdict"], run["job"], run["id"]) == (verdict, None, remote.audits.runs("a").runs[0].id)
    wanted = {"limit": "block.abs_max <= 4", "value": 5.0, "baseline": None, "interval": None, "verdict": "broken"}
    assert run["findings"][0].items() >= {**wanted, "reason": "5 is over 4."}.items()


def test_run_prints_the_limits_and_the_reasons(headroom, remote, end_next_run):
    remote.audits.create(AuditDefinition(name="a", model="sample", limits=("block.abs_max <= 4",)))
    reasons = ["block.abs_max <= 4: 5 is over 4. No rerun was asked for."]
    end_next_run("a", verdict="fail", findings=[FINDING.model_dump(mode="json")], reasons=reasons)
    ran = headroom("audits", "run", "a", "--wait")
    assert ran.code == LIMIT_BROKEN
    [titles, row, reason, verdict] = ran.out.splitlines()
    assert titles.split() == ["limit", "value", "(95%", "interval)", "baseline", "bound"]
    assert row.split() == ["failed", "block.abs_max", "<=", "4", "5.000", "-", "4"]
    assert (reason, verdict) == (reasons[0], "Verdict on a: fail")


def test_run_without_waiting_leaves_the_run_to_the_service(headroom, remote):
    remote.audits.create(AuditDefinition(name="a", model="sample"))
    ran = headroom("audits", "run", "a")
    [run] = remote.audits.runs("a").runs
    assert (ran.code, ran.out) == (DONE, f"Run {run.id} of a is queued; `headroom audits show a` shows its verdict\n")
    assert headroom("audits", "run", "a", "--json").document["run"]["verdict"] is None


def test_ctrl_c_stops_the_waiting_and_not_the_run(remote, monkeypatch):
    waiting, run_of = threading.Event(), AuditStore.run

    def run(*arguments):
        waiting.set()  # the command knows the run, and asks for its verdict
        return run_of(*arguments)

    monkeypatch.setattr(AuditStore, "run", run)
    remote.audits.create(AuditDefinition(name="a", model="sample"))
    code = "import sys; from service.cli.main import main; sys.argv = ['headroom', *sys.argv[1:]]; main()"
    command = [sys.executable, "-c", code, "audits", "run", "a", "--wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert waiting.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    runs = remote.audits.runs("a").runs
    assert (process.returncode, out) == (JOB_FAILED, "")
    assert err == f"run {runs[0].id} was not stopped; it goes on as soon as the service runs\nheadroom: stopped\n"
    assert remote.audits.run(runs[0].id).verdict is None


def test_a_service_that_is_not_there_exits_with_3(headroom, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("HEADROOM_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HEADROOM_API_KEY", "k")
    assert headroom("audits", "run", "a", "--wait").code == UNREACHABLE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "none"), "audit: 'none' is not the name or id of an audit; `headroom audits list` lists them"),
        (("show", "No"), "NAME: 'No' is not allowed; allowed: the name or id of an audit: 1 to 63 of a-z, 0-9 and -, "),
        (("create", "a"), "model: it is required"),
        (("create", "a", "sample", "--newest-in", "/x"), "--newest-in: '/x' is not allowed; allowed: either MODEL or "),
        (("create", "a", "sample", "--set", "limts=[]"), "limts: no field has this name. Did you mean 'limits'?"),
        (("create", "a", "sample", "--set", "overlap"), "--set: 'overlap' is not allowed; allowed: KEY=VALUE, such as"),
        (("create", "a", "sample", "--seed", "1", "--set", "seed=2"), "--set: 'seed=2' sets a key that is set already"),
        (("create", "a", "sample", "--set", "seed.x=2", "--seed", "1"), "--set: 'seed.x=2' sets a key that is set "),
        (("create", "a", "sample", "--set", "a=1", "--set", "a.b.c=2"), "--set: 'a.b.c=2' sets a key that is set "),
        (("create", "a", "sample", "--schedule", "0 25 * * *"), "schedule: '0 25 * * *' has no valid hour; allowed: f"),
        (
            ("create", "a", "sample", "--timezone", "Mars/Base"),
            "timezone: 'Mars/Base' is not allowed; allowed: an IANA time zone, such as \"UTC\" or ",
        ),
        (
            ("create", "a", "sample", "--limit", "int8.kl <= 2"),
            "limits: 'int8.kl <= 2' is not a limit: no report has a figure 'int8.kl'; allowed: figures of a report; ",
        ),
        (
            ("create", "a", "sample", "--scheme", "int8", "--limit", "nf4.perplexity <= 2"),
            "limits: 'nf4.perplexity <= 2' is not a limit: 'nf4' is no scheme of the job; allowed: int8",
        ),
        (
            ("create", "a", "sample", "--baseline", f"report:{'f' * 32}"),
            f"baseline: 'report:{'f' * 32}' does not fit: There is no such report; allowed: a report of these settings",
        ),
    ],
)
def test_bad_input_exits_with_2_and_says_what_is_allowed(headroom, remote, arguments, message):
    ran = headroom("audits", *arguments)
    assert ran.code == BAD_INPUT
    assert ran.err.startswith(f"headroom: {message}")
    assert remote.audits.list().audits == []


@pytest.mark.usefixtures("remote")
def test_a_baseline_that_does_not_fit_is_marked_if_forced(headroom):
    pinned = f"report:{'f' * 32}"
    ran = headroom("audits", "create", "a", "sample", "--baseline", pinned, "--force")
    assert ran.code == DONE
    assert "caution: There is no such report." in ran.out


def test_apply_shows_what_it_changes_and_changes_it(headroom, remote, file):
    remote.audits.create(AuditDefinition(name="b", model="org/name", seed=5))
    remote.audits.create(AuditDefinition(name="z", model="sample"))
    shown = """\
+ a will be created
    model: sample
    limits:
      + block.abs_max <= 4
    calibration: c.txt (c3051964462e)
~ b will be changed
    seed: 5 -> 0
    model: org/name -> org/name@main
! z is not in the file; --prune removes it
"""
    before = remote.audits.list()
    dry = headroom("audits", "apply", str(file), "--dry-run")
    end = "Nothing was changed (--dry-run). Would be done: 1 created, 1 changed, 0 removed.\n"
    assert (dry.code, dry.out) == (DONE, shown + end)
    assert remote.audits.list() == before
    ran = headroom("audits", "apply", str(file))
    assert (ran.code, ran.out) == (DONE, f"{shown}1 created, 1 changed, 0 removed.\n")
    definition = remote.audits.get("a").definition
    assert remote.artifacts.path(definition.calibration.sha256).read_bytes() == b"Guten Tag."
    assert remote.audits.get("b").definition == AuditDefinition(name="b", model="org/name@main")

    after = remote.audits.list()
    again = headroom("audits", "apply", str(file), "--json")
    assert [(one["name"], one["action"]) for one in again.document["audits"]] == [
        ("a", "keep"), ("b", "keep"), ("z", "leave")
    ]  # fmt: skip
    assert again.err.splitlines()[-1] == "! z is not in the file; --prune removes it"
    assert remote.audits.list() == after
    pruned = headroom("audits", "apply", str(file), "--prune")
    assert pruned.out == "= a is unchanged\n= b is unchanged\n- z will be removed\n0 created, 0 changed, 1 removed.\n"
    assert [audit.definition.name for audit in remote.audits.list().audits] == ["a", "b"]


def test_apply_changes_nothing_where_the_service_refuses_one_audit(headroom, remote, file):
    file.write_text(FILE.replace("org/name@main", "a b") + "    seed: 1\n")
    ran = headroom("audits", "apply", str(file), "--prune", "--json")
    assert ran.code == BAD_INPUT
    assert ran.err.startswith(f"headroom: {file}:7: model: 'a b' is not allowed; allowed: 'sample', the absolute path ")
    file.write_text(FILE + f"    baseline: report:{'f' * 32}\n")
    ran = headroom("audits", "apply", str(file))
    assert (ran.code, ran.out) == (BAD_INPUT, "")
    assert ran.err.startswith(f"headroom: {file}:8: baseline: 'report:{'f' * 32}' does not fit: There is no such rep")
    assert remote.audits.list().audits == []
    assert headroom("audits", "apply", str(file), "--force").code == DONE
    assert remote.audits.get("b").baseline_cautions == ("There is no such report.",)


def test_apply_sees_more_audits_than_a_page_has(headroom, remote, file):
    for number in range(201):
        remote.audits.create(AuditDefinition(name=f"x{number}", model="sample"))
    shown = headroom("audits", "apply", str(file), "--dry-run", "--json").document
    assert sum(one["action"] == "leave" for one in shown["audits"]) == 201


def test_apply_reads_the_file_before_it_looks_for_a_service(headroom, file, monkeypatch):
    monkeypatch.setenv("HEADROOM_URL", "http://127.0.0.1:1")
    file.write_text(FILE + "    seeds: 1\n")
    ran = headroom("audits", "apply", str(file), "--json")
    assert ran.code == BAD_INPUT
    assert json.loads(ran.out)["error"]["message"] == f"{file}:8: seeds: no field has this name. Did you mean 'seed'?"
