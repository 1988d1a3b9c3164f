"""`headroom gate` against a running service, with the test in the worker's place."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from xml.etree import ElementTree

import made_reports
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from service.cli.client import Client
from service.cli.running import BAD_INPUT, DONE, JOB_FAILED, LIMIT_BROKEN, Refused
from service.contracts.audits.audit import AuditDefinition
from service.contracts.progress import Failed
from service.contracts.request import JobRequest
from service.store.audit_tables import AuditRunRow
from service.store.hosts.clock import utcnow
from service.store.statuses import RunState, Status

KL = "nf4.kl_divergence.mean <= baseline * 1.2"
SETTINGS = {"schemes": ("int8", "nf4"), "sequences": 4, "sequence_length": 64}
CANDIDATE, BASELINE = "/models/candidate", "/models/baseline"


def files_of(side, text, name):
    """Return the files of a report, as a worker leaves them."""
    tables = {
        "tokens": made_reports.rows(text),
        "sites": {"component": ["block"], "port": ["output"], "abs_max": [10.0]},
    }
    listed = [{"name": table, "title": table, "caption": table, "files": []} for table in tables]
    report = side.report.model_dump(mode="json") | {"job_id": name, "tables": listed}
    content = {"report.json": json.dumps(report).encode()}
    for table, columns in tables.items():
        written = io.BytesIO()
        parquet.write_table(pyarrow.table(columns), written)
        content[f"tables/{table}.parquet"] = written.getvalue()
    bundle = io.BytesIO()
    with zipfile.ZipFile(bundle, "w") as archive:
        for file, data in content.items():
            archive.writestr(file, data)
    return {**content, "bundle.zip": bundle.getvalue()}


def measured(job_id, request, *, worse=1.0, source="sample"):
    """Return the files of the report on a model: every seed has a text of its own, and so has every model its weights.

    Args:
        job_id: The job.
        request: Its request.
        worse: Factor of nf4's KL divergence.
        source: Name of the calibration text.
    """
    text = made_reports.made_up(request.seed)
    text = made_reports.changed(text, "nf4", kl=lambda one: np.asarray(one.kl) * worse)
    of = made_reports.template().model.model_copy(update={"source": request.model})
    weights = "a" if request.model == BASELINE else "b"
    side = made_reports.report(text, weights=weights)
    report = side.report.model_copy(
        update={
            "analysis": request,
            "model": of.model_copy(update={"fingerprint": f"sha256:{weights * 64}"}),
            "calibration": side.report.calibration.model_copy(update={"seed": request.seed, "source": source}),
        }
    )
    return files_of(side._replace(report=report), text, job_id)


@pytest.fixture
def worker(remote):
    """Answer every job by a function from its request: keywords of `measured`, or a failure."""
    ended = threading.Event()
    threads = []

    def start(answer):
        def work():
            while not ended.wait(0.01):
                for job in remote.store.list(status=Status.queued).jobs:
                    claim = remote.claim(job.id)
                    outcome = answer(job.request)
                    if isinstance(outcome, Failed):
                        remote.store.fail(claim, outcome)
                    else:
                        remote.succeed(claim, measured(job.id, job.request, **outcome))

        threads.append(threading.Thread(target=work))
        threads[0].start()

    yield start
    ended.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def baseline(remote):
    """The id of the baseline's report in the service."""
    job = remote.store.submit(JobRequest(model=BASELINE, **SETTINGS))
    remote.succeed(remote.claim(job.id), measured(job.id, job.request))
    return job.id


@pytest.fixture
def limits(tmp_path):
    """A file with one limit."""
    path = tmp_path / "limits.txt"
    path.write_text(f"# what ships\n\n{KL}\n")
    return str(path)


def asked(remote):
    """Return model and seed of the jobs that were asked for, in their order, but for the first."""
    jobs = reversed(remote.store.list().jobs)
    return [(job.request.model, job.request.seed) for job in jobs][1:]


def test_a_model_as_good_as_the_baseline_passes(headroom, remote, worker, baseline, limits):
    worker(lambda _: {})
    ran = headroom("gate", CANDIDATE, "--baseline", baseline, "--limits", limits)
    assert ran.code == DONE, ran.err
    assert ran.out.splitlines()[-1] == f"Verdict on {CANDIDATE}: pass"
    assert asked(remote) == [(CANDIDATE, 0)]
    request = remote.store.list().jobs[0].request
    assert request == JobRequest(model=CANDIDATE, **SETTINGS)


def test_a_breach_that_is_there_again_on_another_seed_fails(headroom, remote, worker, baseline, limits, tmp_path):
    worker(lambda request: {"worse": 2.0 if request.model == CANDIDATE else 1.0})
    files = {name: tmp_path / f"out.{name}" for name in ("markdown", "junit", "sarif")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    ran = headroom("gate", CANDIDATE, "--baseline", baseline, "--limits", limits, "--json", *options)
    assert ran.code == LIMIT_BROKEN, ran.err
    assert asked(remote) == [(CANDIDATE, 0), (CANDIDATE, 1), (BASELINE, 1)]
    document = ran.document
    run = document["run"]
    assert (run["verdict"], run["trigger"], run["baseline_report_id"]) == ("fail", "gate", baseline)
    assert run["job"] == run["report_id"] == remote.store.list().jobs[2].id
    [finding] = run["findings"]
    assert finding["value"] == pytest.approx(2 * finding["baseline"])
    assert (finding["limit"], finding["verdict"]) == (KL, "broken")
    assert run["reruns"][0]["status"] == "completed"
    assert document["baseline"] == f"report {baseline}"
    assert files["markdown"].read_text().startswith("## Headroom: fail")
    assert len(list(ElementTree.parse(files["junit"]).iter("failure"))) == 1
    [result] = json.loads(files["sarif"].read_text())["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 3
    assert sorted(os.listdir(tmp_path)) == ["limits.txt", "out.junit", "out.markdown", "out.sarif", "remote"]


@pytest.mark.parametrize(("worse", "verdict", "status"), [(2.0, "fail", LIMIT_BROKEN), (1.0, "pass", JOB_FAILED)])
def test_the_outcome_is_printed_though_a_file_cannot_be_written(
    headroom, worker, baseline, limits, tmp_path, worse, verdict, status
):
    """The file's directory is gone by then; the other file is written all the same."""
    directory = tmp_path / "outcomes"
    directory.mkdir()

    def answer(request):
        if directory.exists():
            directory.rmdir()
        return {"worse": worse if request.model == CANDIDATE else 1.0}

    worker(answer)
    files = ("--markdown", str(directory / "m.md"), "--junit", str(tmp_path / "j.xml"))
    ran = headroom("gate", CANDIDATE, "--baseline", baseline, "--limits", limits, "--json", *files)
    assert (ran.code, ran.document["run"]["verdict"]) == (status, verdict)
    assert f"headroom: --markdown: '{directory / 'm.md'}' could not be written: No such file or directory" in ran.err
    assert (tmp_path / "j.xml").exists()


def test_a_breach_on_one_seed_alone_is_not_confirmed(headroom, worker, baseline, limits):
    worker(lambda request: {"worse": 2.0 if (request.model, request.seed) == (CANDIDATE, 0) else 1.0})
    ran = headroom("gate", CANDIDATE, "--baseline", baseline, "--limits", limits, "--json")
    assert (ran.code, ran.document["run"]["verdict"]) == (DONE, "unconfirmed")


def test_without_reruns_the_first_measurement_decides(headroom, remote, worker, baseline, limits):
    worker(lambda _: {"worse": 2.0})
    ran = headroom("gate", CANDIDATE, "--baseline", baseline, "--limits", limits, "--reruns", "0")
    assert ran.code == LIMIT_BROKEN
    assert asked(remote) == [(CANDIDATE, 0)]


@pytest.mark.parametrize(
    ("gone", "status", "verdict", "exit_status"),
    [
        (Failed(code="bad-model", message="no such directory", bad_input=True), "baseline_gone", "unconfirmed", DONE),
        (Failed(code="bad-model", message="the hub timed out", bad_input=False), "failed", "fail", LIMIT_BROKEN),
        (Failed(code="killed", message="signal 9", bad_input=False), "failed", "fail", LIMIT_BROKEN),
    ],
)
def test_a_rerun_without_the_baselines_model(headroom, worker, baseline, limits, gone, status, verdict, exit_status):
    worker(lambda request: gone if request.model == BASELINE else {"worse": 2.0})
    ran = headroom("gate", CANDIDATE, "--baseline", baseline, "--limits", limits, "--json")
    run = ran.document["run"]
    assert (ran.code, run["verdict"], run["reruns"][0]["status"]) == (exit_status, verdict, status)


def test_a_model_that_cannot_be_measured_is_an_error(headroom, worker, baseline, limits, tmp_path):
    worker(lambda _: Failed(code="bad-model", message="config.json is missing", bad_input=True))
    ran = headroom("gate", CANDIDATE, "--baseline", baseline, "--limits", limits, "--junit", str(tmp_path / "j.xml"))
    assert ran.code == JOB_FAILED
    assert "config.json is missing" in ran.out
    [error] = ElementTree.parse(tmp_path / "j.xml").iter("error")
    assert "config.json is missing" in error.get("message")


def test_the_text_of_the_baseline_is_used(headroom, remote, worker, limits):
    sha256, size = remote.artifacts.put(b"Guten Tag.")
    text = {"name": "a/c.txt", "sha256": sha256, "size": size}
    job = remote.store.submit(JobRequest(model=BASELINE, calibration=text, labelled=text, **SETTINGS))
    remote.succeed(remote.claim(job.id), measured(job.id, job.request))
    worker(lambda _: {})
    assert headroom("gate", CANDIDATE, "--baseline", job.id, "--limits", limits).code == DONE
    request = remote.store.list().jobs[0].request
    assert request.calibration.model_dump() == request.labelled.model_dump() == text


def test_another_text_is_refused_unless_forced_and_then_marked(headroom, remote, worker, baseline, limits, tmp_path):
    worker(lambda _: {})
    text = tmp_path / "c.txt"
    text.write_text("Guten Tag.")
    gate = ("gate", CANDIDATE, "--baseline", baseline, "--limits", limits, "--calibration", str(text))
    caution = "Its calibration text is 'sample', and --calibration is another."
    ran = headroom(*gate)
    assert ran.code == BAD_INPUT
    fitting = "allowed: one that fits, or any with --force"
    assert ran.err.endswith(f"headroom: --baseline: {baseline!r} does not fit: {caution.rstrip('.')}; {fitting}\n")
    assert asked(remote) == []
    ran = headroom(*gate, "--force", "--markdown", str(tmp_path / "m.md"))
    assert ran.code == DONE
    assert ran.out.startswith(f"Caution: {caution}\n")
    assert "is another" in (tmp_path / "m.md").read_text()
    assert remote.store.list().jobs[0].request.calibration.name == "c.txt"


def put_into(directory, files):
    """Write a report's files below a directory."""
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return str(directory)


def test_a_report_on_this_machine_is_a_baseline(headroom, remote, worker, limits, tmp_path):
    worker(lambda request: {"worse": 2.0 if request.model == CANDIDATE else 1.0})
    request = JobRequest(model=BASELINE, seed=5, label_threshold=0.5, **SETTINGS)
    directory = put_into(tmp_path / "report", measured("j0", request))
    ran = headroom("gate", CANDIDATE, "--baseline", directory, "--limits", limits, "--json")
    assert ran.code == LIMIT_BROKEN, ran.err
    assert (ran.document["baseline"], ran.document["run"]["baseline_report_id"]) == (f"the report in {directory}", "j0")
    jobs = [job.request for job in reversed(remote.store.list().jobs)]
    assert [(job.model, job.seed) for job in jobs] == [(CANDIDATE, 5), (CANDIDATE, 6), (BASELINE, 6)]
    assert jobs[0] == JobRequest(model=CANDIDATE, seed=5, **SETTINGS)


def test_a_report_on_this_machine_needs_its_text(headroom, remote, worker, limits, tmp_path):
    worker(lambda _: {})
    request = JobRequest(model=BASELINE, **SETTINGS)
    directory = put_into(tmp_path / "report", measured("j0", request, source="c.txt"))
    ran = headroom("gate", CANDIDATE, "--baseline", directory, "--limits", limits)
    assert ran.code == BAD_INPUT
    required = (
        "--calibration: it is required, since the report in {} was measured on the text 'c.txt'; allowed: that file"
    )
    assert required.format(directory) in ran.err
    (tmp_path / "c.txt").write_text("Guten Tag.")
    text = ("--calibration", str(tmp_path / "c.txt"))
    assert headroom("gate", CANDIDATE, "--baseline", directory, "--limits", limits, *text).code == DONE
    assert remote.store.list().jobs[0].request.calibration.name == "c.txt"


def test_a_report_on_other_tokens_is_an_error_unless_forced(headroom, worker, limits, tmp_path):
    worker(lambda _: {})
    other = measured("j0", JobRequest(model=BASELINE, seed=9, **SETTINGS))
    report = json.loads(other["report.json"])
    report["analysis"]["seed"] = 0
    directory = put_into(tmp_path / "report", {**other, "report.json": json.dumps(report).encode()})
    gate = ("gate", CANDIDATE, "--baseline", directory, "--limits", limits, "--json")
    ran = headroom(*gate)
    assert (ran.code, ran.document["run"]["verdict"]) == (JOB_FAILED, "error")
    assert ran.document["run"]["reasons"] == [
        "The calibration texts differ, and texts that differ are never compared; --force judges all the same."
    ]
    ran = headroom(*gate, "--force")
    assert ran.code == DONE
    assert [one["verdict"] for one in ran.document["run"]["findings"]] == ["not_judged"]


@pytest.fixture
def audit(remote):
    """An audit of the baseline's model with a text of its own."""
    sha256, size = remote.artifacts.put(b"Guten Tag.")
    text = {"name": "c.txt", "sha256": sha256, "size": size}
    limits = ("nf4.kl_divergence.mean <= baseline * 1.5",)
    remote.audits.create(
        AuditDefinition(name="nightly", model=BASELINE, calibration=text, limits=limits, reruns=0, **SETTINGS)
    )
    return "nightly"


def passed(remote, audit, verdict="pass"):
    """Add a run of an audit with a report of its own, and return the report's id."""
    definition = remote.audits.get(audit).definition
    job = remote.store.submit(JobRequest(model=BASELINE, calibration=definition.calibration, **SETTINGS))
    remote.succeed(remote.claim(job.id), measured(job.id, job.request))
    run = remote.audits.request_run(audit)
    asked = definition.model_dump(mode="json")
    ended = {"state": RunState.ended, "verdict": verdict, "report_id": job.id, "finished_at": utcnow(),
             "definition": asked}  # fmt: skip
    with remote.audits._write() as session:
        row = session.get(AuditRunRow, run.id)
        for name, value in ended.items():
            setattr(row, name, value)
    return job.id


def test_the_baseline_of_an_audit_is_its_last_passing_run(headroom, remote, worker, audit, limits):
    passed(remote, audit)
    last = passed(remote, audit)
    passed(remote, audit, "warn")
    worker(lambda request: {"worse": 2.0 if request.model == CANDIDATE else 1.0})
    ran = headroom("gate", CANDIDATE, "--baseline", audit, "--limits", limits, "--json")
    run = ran.document["run"]
    assert (ran.code, run["baseline_report_id"], run["reruns"]) == (LIMIT_BROKEN, last, [])
    assert run["audit_id"] == remote.audits.get(audit).id
    assert ran.document["baseline"] == f"audit nightly (report {last})"
    request = remote.store.list().jobs[0].request
    assert (request.model, request.calibration.name, request.sequences) == (CANDIDATE, "c.txt", 4)
    assert headroom("gate", CANDIDATE, "--baseline", audit, "--limits", limits, "--reruns", "1").code == LIMIT_BROKEN


def test_an_audit_without_a_baseline_judges_absolute_limits(headroom, worker, audit, tmp_path):
    worker(lambda _: {})
    limits = tmp_path / "limits.yaml"
    limits.write_text(f"limits:\n  - {KL}\n  - block.abs_max <= 9\n")
    ran = headroom("gate", CANDIDATE, "--baseline", audit, "--limits", str(limits), "--json")
    assert ran.code == LIMIT_BROKEN
    assert [one["verdict"] for one in ran.document["run"]["findings"]] == ["not_judged", "broken"]
    assert ran.document["baseline"] == "audit nightly (which has no baseline yet)"


def edit(remote, audit, **changes):
    definition = remote.audits.get(audit).definition
    remote.audits.update(audit, definition.model_copy(update=changes))


def test_an_audit_that_was_changed_since_its_baseline_is_refused_unless_forced(headroom, remote, worker, audit, limits):
    last = passed(remote, audit)
    edit(remote, audit, sequences=8, seed=3)
    gate = ("gate", CANDIDATE, "--baseline", audit, "--limits", limits)
    ran = headroom(*gate)
    assert ran.code == BAD_INPUT
    reason = (
        f"No run has passed since the audit was changed: the last that did, report {last}, had other seed, sequences"
    )
    assert f"--baseline: 'nightly' does not fit: {reason}; allowed: one that fits, or any with --force" in ran.err
    assert asked(remote) == []
    worker(lambda _: {})
    ran = headroom(*gate, "--force")
    assert ran.code == DONE
    assert ran.out.startswith(f"Caution: {reason}.\nCompared with audit nightly (which has no comparable baseline)\n")


def test_the_baseline_of_an_audit_is_the_newest_report_with_its_settings(headroom, remote, worker, audit, limits):
    comparable = passed(remote, audit)
    edit(remote, audit, sequences=8)
    passed(remote, audit)
    edit(remote, audit, sequences=4)
    worker(lambda _: {})
    ran = headroom("gate", CANDIDATE, "--baseline", audit, "--limits", limits, "--json")
    assert (ran.code, ran.document["run"]["baseline_report_id"]) == (DONE, comparable)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": --limits: '{}' is empty; allowed: "),
        ("# nothing\n", ": --limits: '{}' has no limit; allowed: one limit in a line, or YAML with a list of limits"),
        ("\nint8.kl <= 2 # why\n", ": {}:2: limits: 'int8.kl <= 2' is not a limit: no report has a figure 'int8.kl'; "),
        (
            "fp4.perplexity <= 2\n",
            ": {}:1: limits: 'fp4.perplexity <= 2' is not a limit: 'fp4' is no scheme of the job; ",
        ),
        (f"{KL}\n{KL}\n", ": {}:2: limits: '" + KL + "' says the same as '" + KL + "'; allowed: each limit once"),
        ("limits: 5\n", ": {}:1: limits: 5 is not allowed; allowed: one limit in a line, or YAML with a list of lim"),
        ("limits: []\nother: 5\n", ": {}:2: other: 5 is not a key of the file; allowed: limits"),
        ("- 5\n", ": {}:1: 5 is not allowed; allowed: a limit, such as int8.perplexity_ratio <= 1.01"),
    ],
)
def test_a_wrong_limit_is_named_with_its_line(headroom, remote, baseline, tmp_path, text, message):
    path = tmp_path / "limits.txt"
    path.write_text(text)
    ran = headroom("gate", CANDIDATE, "--baseline", baseline, "--limits", str(path))
    assert ran.code == BAD_INPUT
    assert f"headroom{message.format(path)}" in ran.err
    assert asked(remote) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--baseline", "nope"),
            "--baseline: 'nope' is neither a report nor an audit; allowed: the id or ",
        ),
        (("--baseline", "../x"), "--baseline: '../x' has no report.json; allowed: the directory of a report"),
        (("--baseline", "a b"), "--baseline: 'a b' is neither a report nor an audit"),
        (("--junit", "/nowhere/j.xml"), "--junit: '/nowhere/j.xml' cannot be written; allowed: a file in a directory"),
        (("--sarif", "/tmp"), "--sarif: '/tmp' is a directory; allowed: a file in a directory that you can write to"),
        (("--reruns", "17"), "--reruns: '17' is not allowed; allowed: a whole number from 0 to 16"),
        (("--limits", "/nowhere/limits.txt"), "--limits: '/nowhere/limits.txt' cannot be read (No such file"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(headroom, remote, baseline, limits, options, message):
    ran = headroom("gate", CANDIDATE, "--baseline", baseline, "--limits", limits, *options)
    assert ran.code == BAD_INPUT
    assert f"headroom: {message}" in ran.err
    assert asked(remote) == []


def test_a_job_without_a_report_is_no_baseline(headroom, remote, limits):
    job = remote.store.submit(JobRequest(model="sample"))
    ran = headroom("gate", CANDIDATE, "--baseline", job.id, "--limits", limits)
    assert ran.code == BAD_INPUT
    assert f"--baseline: {job.id!r} is a job without a report (queued); allowed: the id or the directory" in ran.err


def test_ctrl_c_cancels_the_job_and_writes_nothing(remote, baseline, limits, tmp_path):
    code = "import sys; from service.cli.main import main; sys.argv = ['headroom', *sys.argv[1:]]; main()"
    gate = ["gate", CANDIDATE, "--baseline", baseline, "--limits", limits, "--junit", str(tmp_path / "j.xml")]
    with subprocess.Popen([sys.executable, "-c", code, *gate], stderr=subprocess.PIPE, text=True) as process:
        while not (queued := remote.store.list(status=Status.queued).jobs):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == JOB_FAILED
    assert "was canceled and has no report" in err
    assert remote.store.get(queued[0].id).status is Status.cancelled
    assert not (tmp_path / "j.xml").exists()


def test_the_files_of_jobs_and_audits_can_be_had(remote, audit, tmp_path):
    client = Client(remote.url, os.environ["HEADROOM_API_KEY"])
    client.download(f"/v1/audits/{audit}/files/calibration", tmp_path / "c.txt")
    assert (tmp_path / "c.txt").read_bytes() == b"Guten Tag."
    with pytest.raises(Refused, match="labelled: the request has no such file"):
        client.download(f"/v1/audits/{audit}/files/labelled", tmp_path / "l")
    with pytest.raises(Refused, match="'calibration' or 'labelled'"):
        client.download(f"/v1/audits/{audit}/files/other", tmp_path / "l")
    client.close()
