"""The commands against a running service: what they print, and their exit codes."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from service.cli.inputs import thresholds
from service.cli.running import BAD_INPUT, DONE, JOB_FAILED, LIMIT_BROKEN, UNREACHABLE
from service.cli.uploads import INLINE_BYTES
from service.contracts.harm.recommendation import RecommendSettings
from service.contracts.progress import Failed, Progress
from service.contracts.request import JobRequest, schemes_for
from service.local.home import Home, Running
from service.settings import Settings
from service.store.statuses import Status


def bundle_of(report):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("report.json", json.dumps(report))
        archive.writestr("report.html", "<!doctype html>")
    return content.getvalue()


@pytest.fixture
def work(remote):
    """Do something with the next job that comes, in the worker's place; it is claimed already."""
    threads = []

    def start(end):
        def run():
            while not (queued := remote.store.list(status=Status.queued).jobs):
                time.sleep(0.01)
            end(remote.claim(queued[0].id))

        threads.append(threading.Thread(target=run))
        threads[0].start()

    yield start
    for thread in threads:
        thread.join()


def test_analyze_downloads_the_report_and_sums_it_up(headroom, remote, work, report, tmp_path):
    def end(claim):
        remote.store.progress(claim, Progress(stage="sweep", done=1, total=2, elapsed_seconds=1))
        remote.succeed(claim, {"bundle.zip": bundle_of(report)})

    work(end)
    out = tmp_path / "out"
    ran = headroom("analyze", "sample", "--out", str(out), "--scheme", "int8", "--sequences", "3", "--seed", "5")
    assert ran.code == 0, ran.err
    assert "Perplexity without quantization: 20.00 (95% interval 19.20 to 20.80)" in ran.out
    assert ran.out.splitlines()[-1] == f"Report: {out / 'report.html'}"
    assert "sweep over the layers: 1/2 layers" in ran.err
    assert json.loads((out / "report.json").read_text()) == report
    [job] = remote.store.list().jobs
    assert job.request == JobRequest(model="sample", schemes=("int8",), sequences=3, seed=5)


def test_analyze_sends_files_and_settings(headroom, remote, work, report, tmp_path):
    work(lambda claim: remote.succeed(claim, {"bundle.zip": bundle_of(report)}))
    large = b"PAR1\xff" + bytes(INLINE_BYTES)
    (tmp_path / "c.parquet").write_bytes(large)
    (tmp_path / "p.jsonl").write_text("{}")
    files = ("--calibration", str(tmp_path / "c.parquet"), "--labelled", str(tmp_path / "p.jsonl"))
    chosen = ("--bos", "never", "--score", "second_half", "--text-field", "body", "--int8-threshold", "0")
    labels = ("--label-threshold", "-0.5", "--label-depth", "3", "--label-dimensions", "2", "--retention-days", "30")
    variants = ("nf4:keep=attn.v,keep=layers.3.mlp.down,block_size=32", "lossless=int8:threshold=4", "int8")
    schemes = [word for text in ("b=" + variants[0], *variants[1:]) for word in ("--scheme", text)]
    ran = headroom("analyze", "sample", "--out", str(tmp_path / "out"), *files, *chosen, *labels, *schemes)
    assert ran.code == 0, ran.err
    [job] = remote.store.list().jobs
    asked = job.request
    assert (asked.bos, asked.score, asked.text_field) == ("never", "second_half", "body")
    assert asked.int8_threshold == 0
    assert asked.scheme_names == ("b", "lossless", "int8")
    assert asked.schemes[0].keep == ("attn.v", "layers.3.mlp.down")
    assert [scheme.settings.get("threshold") for scheme in schemes_for(asked)] == [None, 4.0, 0.0]
    assert (asked.label_threshold, asked.label_depth, asked.label_dimensions) == (-0.5, 3, 2)
    assert asked.retention_days == 30
    assert (asked.calibration.name, asked.labelled.name) == ("c.parquet", "p.jsonl")
    assert remote.artifacts.path(asked.calibration.sha256).read_bytes() == large
    assert remote.artifacts.path(asked.labelled.sha256).read_bytes() == b"{}"


def test_recommend_asks_for_a_mix_with_the_options_of_analyze(headroom, remote, work, report, tmp_path):
    work(lambda claim: remote.succeed(claim, {"bundle.zip": bundle_of(report)}))
    options = ("--scheme", "nf4", "--keep", "attn.v", "--sequences", "3", "--max-bytes", "120MB", "--split-groups")
    ran = headroom("recommend", "sample", "--out", str(tmp_path / "out"), *options)
    assert ran.code == 0, ran.err
    asked = remote.store.list().jobs[0].request
    assert (asked.scheme_names, asked.keep, asked.sequences) == (("nf4",), ("attn.v",), 3)
    assert asked.recommend == RecommendSettings(enabled=True, max_bytes=120_000_000, whole_groups=False)
    assert (asked.harm.estimate, asked.harm.exact) == (True, "modules")


def test_a_report_s_model_and_settings_are_asked_for(headroom, remote, work, report, tmp_path):
    first = remote.store.submit(JobRequest(model="sample", schemes=("nf4",), sequences=3))
    remote.succeed(remote.claim(first.id), {"report.json": json.dumps(report).encode()})
    work(lambda claim: remote.succeed(claim, {"bundle.zip": bundle_of(report)}))
    options = ("--max-bytes", "120MB", "--harm", "dimensions", "--set", "harm.draws=8")
    ran = headroom("recommend", "--report", first.id, "--out", str(tmp_path / "out"), *options)
    assert ran.code == 0, ran.err
    asked = remote.store.list().jobs[0].request
    assert (asked.schemes, asked.sequences) == (first.request.schemes, 3)
    assert (asked.recommend.enabled, asked.recommend.max_bytes) == (True, 120_000_000)
    assert (asked.harm.dimensions, asked.harm.draws, asked.harm.exact) == (True, 8, "modules")
    assert asked.earlier.job_id == first.id


def test_a_target_can_be_set_and_layers_be_measured(headroom, remote, work, report, tmp_path):
    work(lambda claim: remote.succeed(claim, {"bundle.zip": bundle_of(report)}))
    options = ("--set", "recommend.max_bytes=120MB", "--harm", "layers")
    ran = headroom("recommend", "sample", "--out", str(tmp_path / "out"), *options)
    assert ran.code == 0, ran.err
    asked = remote.store.list().jobs[0].request
    assert (asked.recommend.enabled, asked.recommend.max_bytes) == (True, 120_000_000)
    assert (asked.harm.estimate, asked.harm.exact) == (True, "layers")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-kl", "0"), "--max-kl: 0.0 is not allowed; allowed: a number above 0"),
        (("--max-kl", "nan"), "--max-kl: nan is not allowed; allowed: a finite number over 0"),
        (
            ("--max-bytes", "much"),
            "--max-bytes: 'much' is not allowed; allowed: 1 or more bytes, or a number with a unit",
        ),
        (("--max-bytes", "1MB", "--max-kl", "0.1"), "exclude each other"),
    ],
)
def test_recommend_refuses_targets_that_cannot_be(headroom, tmp_path, options, said):
    ran = headroom("recommend", "sample", "--out", str(tmp_path / "out"), *options)
    assert ran.code == 2
    assert said in ran.err


def test_analyze_with_json_prints_one_document(headroom, remote, work, report, tmp_path):
    work(lambda claim: remote.succeed(claim, {"bundle.zip": bundle_of(report)}))
    out = tmp_path / "out"
    ran = headroom("analyze", "sample", "--out", str(out), "--json")
    document = ran.document
    assert (ran.code, document["status"]) == (0, "succeeded")
    assert document["job_id"] == remote.store.list().jobs[0].id
    assert Path(document["report"]) == out / "report.json"
    assert Path(document["page"]).is_file()
    assert document["schemes"]["int8"]["worst_site"]["component"] == "mlp.up"
    assert "succeeded" in ran.err


@pytest.mark.parametrize(("kl", "level", "code"), [(0.02, "noticeable", LIMIT_BROKEN), (0.02, "severe", DONE)])
def test_analyze_exits_with_4_where_a_scheme_reaches_the_level(
    headroom, remote, work, report, tmp_path, kl, level, code
):
    report["schemes"]["int8"]["kl_divergence"] |= {"mean": kl, "interval": [kl - 0.001, kl + 0.001]}
    report["schemes"]["int8"]["verdict"] = None
    work(lambda claim: remote.succeed(claim, {"bundle.zip": bundle_of(report)}))
    ran = headroom("analyze", "sample", "--out", str(tmp_path / "out"), "--fail-on", level)
    assert ran.code == code, ran.err
    assert (tmp_path / "out" / "report.json").is_file()
    assert ("--fail-on noticeable: reached by int8" in ran.err) == (code == LIMIT_BROKEN)


def test_analyze_refuses_another_level_before_it_submits(headroom, remote, tmp_path):
    ran = headroom("analyze", "sample", "--out", str(tmp_path / "out"), "--fail-on", "sever")
    assert ran.code == BAD_INPUT
    assert "--fail-on: 'sever' is not allowed; allowed: noticeable or severe. Did you mean 'severe'?" in ran.err
    assert remote.store.list().jobs == []


def test_a_report_that_cannot_be_put_into_its_place_can_be_had_later(headroom, remote, work, report, tmp_path):
    out = tmp_path / "out"

    def end(claim):
        out.touch()  # somebody else was faster
        remote.succeed(claim, {"bundle.zip": bundle_of(report)})

    work(end)
    ran = headroom("analyze", "sample", "--out", str(out))
    assert ran.code == 1
    [job] = remote.store.list().jobs
    assert f"headroom: --out: '{out}' could not be written: " in ran.err
    assert f"headroom reports download {job.id} --out DIR" in ran.err
    assert headroom("reports", "download", job.id, "--out", str(tmp_path / "other")).code == 0


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"a":' * 10**6], ids=["cut", "list", "empty", "nested"])
def test_what_arrives_and_is_no_report_is_said_to_be_none(headroom, remote, work, tmp_path, content):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("report.json", content)
    work(lambda claim: remote.succeed(claim, {"bundle.zip": packed.getvalue()}))
    ran = headroom("analyze", "sample", "--out", str(tmp_path / "out"), "--json")
    assert ran.code == 1
    assert ran.document["error"]["code"] == "download-broken"
    assert "report.json was downloaded, but it cannot be read as a report: " in ran.err


@pytest.mark.parametrize(("bad_input", "code"), [(True, 2), (False, 1)])
def test_a_failed_job_says_why_and_whose_fault_it_is(headroom, remote, work, tmp_path, bad_input, code):
    work(lambda claim: remote.store.fail(claim, Failed(code="bad-model", message="no config", bad_input=bad_input)))
    ran = headroom("analyze", "sample", "--out", str(tmp_path / "out"), "--json")
    assert ran.code == code
    error = ran.document["error"]
    assert (error["code"], error["job_id"]) == ("bad-model", remote.store.list().jobs[0].id)
    assert "no config" in error["message"]
    assert "no config" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_job_that_somebody_cancels_leaves_no_report(headroom, remote, work, tmp_path):
    work(remote.store.cancelled)
    ran = headroom("analyze", "sample", "--out", str(tmp_path / "out"))
    assert ran.code == 1
    assert "was canceled" in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_analyze_cancels_its_job(remote, tmp_path, number):
    command = [sys.executable, "-m", "service.cli.main", "analyze", "sample", "--out", str(tmp_path / "out")]
    code = "import sys; from service.cli.main import main; sys.argv = ['headroom', *sys.argv[1:]]; main()"
    command = [sys.executable, "-c", code, *command[3:]]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "queued\n"
        claim = remote.claim(remote.store.list().jobs[0].id)
        process.send_signal(number)
        while not remote.store.get(claim.job_id).cancel_requested:
            time.sleep(0.01)
        remote.store.cancelled(claim)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"canceling job {claim.job_id}" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_bad_input_is_refused_before_a_job_is_made(headroom, remote, tmp_path):
    (tmp_path / "empty").touch()
    out = str(tmp_path / "out")
    for arguments, named in (
        (["analyze", "sample", "--out", str(tmp_path)], "--out"),
        (["analyze", "sample", "--out", out, "--calibration", str(tmp_path / "empty")], "--calibration"),
        (["analyze", "sample", "--out", out, "--scheme", "int3"], "Unknown scheme 'int3'. Available: int8, nf4"),
        (["analyze", "sample", "--out", out, "--scheme", "nf4:compute_dtyp=float32"], "Did you mean 'compute_dtype'?"),
        (["analyze", "sample", "--out", out, "--scheme", "nf4:block_size=65"], "nf4: block_size='65' is not allowed"),
        (["analyze", "sample", "--out", out, "--scheme", "nf4", "--scheme", "nf4"], "have the same name 'nf4'"),
        (["analyze", "sample", "--out", out, "--scheme", "reference=nf4"], "'reference' cannot be the label of nf4"),
        (["analyze", "sample", "--out", out, "--labelled", str(tmp_path / "empty")], "--labelled"),
        (["analyze", "", "--out", out], "MODEL: ''"),
        (["analyze", "/models/\udcff", "--out", out], "/models/\\udcff\"}' is not allowed; allowed: text"),
        (["analyze", "sample", "--out", out, "--int8-threshold", "nan"], "--int8-threshold: nan"),
        (["analyze", "sample", "--out", out, "--label-threshold", "inf"], "--label-threshold: inf"),
        (["analyze", "sample", "--out", out, "--bos", "maybe"], "'auto', 'always' or 'never'"),
        (["analyze", "sample", "--out", out, "--score", "half"], "'all' or 'second_half'"),
        (["analyze", "sample", "--out", out, "--label-threshold", "1"], "--label-threshold: 1.0"),
        (["analyze", "sample", "--out", out, "--label-depth", "-1"], "--label-depth: -1"),
        (["analyze", "sample", "--out", out, "--sequences", "0"], "--sequences: 0"),
        (["analyze", "sample", "--out", out, "--sequence-length", "1"], "--sequence-length: 1"),
        (["analyze", "no such model", "--out", out], "MODEL: 'no such model'"),
        (["analyze", "sample", "--out", out, "--sequences", "many"], "--sequences"),
        (["analyze", "sample", "--out", out, "--set", "heads.relative_peak=0"], "--set heads.relative_peak: '0'"),
        (
            ["analyze", "sample", "--out", out, "--memory", "1GiB"],
            "--memory: '1GiB' is not allowed; allowed: only if",
        ),
        (["analyze", "sample", "--out", out, "--memory", "4 apples"], "--memory: '4 apples'"),
        (["serve", "--memory", "-1GiB"], "--memory: '-1GiB' is not allowed; allowed: 0 or more bytes"),
        (["worker", "--memory", "lots"], "--memory: 'lots'"),
        (
            ["analyze", "sample", "--out", out, "--device", "cpu"],
            "--device: 'cpu' is not allowed; allowed: only if",
        ),
        (["analyze", "sample", "--out", out, "--device", "gpu"], "--device: 'gpu' is not allowed; allowed: auto, cpu"),
        (["serve", "--device", "cuda:100"], "--device: 'cuda:100' is not allowed; allowed: auto, cpu, cuda, or cuda:N"),
        (["worker", "--device", "cuda:01"], "--device: 'cuda:01'"),
        (["analyze", "sample", "--out", out, "--batch-sequences", "0"], "--batch-sequences: 0"),
        (["analyze", "sample", "--out", out, "--retention-days", "0"], "--retention-days: 0"),
        (["analyze", "sample"], "--out"),
        (["analyze"], "MODEL"),
        (["analize"], "analize"),
        (["jobs", "list", "--limit", "0"], "--limit"),
        (["jobs", "list", "--status", "resting"], "queued"),
        (["jobs", "show", "none"], "none"),
        (["reports", "download", "none", "--out", out], "none"),
        (["reports", "download", "..", "--out", out], ".."),
    ):
        ran = headroom(*arguments, "--json")
        assert ran.code == 2, arguments
        assert named in ran.document["error"]["message"], arguments
        assert named in ran.err, arguments
        assert "Traceback" not in ran.err
        assert not Path(out).exists()
    assert sum(remote.store.counts().values()) == 0


def test_jobs_are_listed_shown_cancelled_and_retried(headroom, remote):
    job = remote.store.submit(JobRequest(model="/models/[a]"))
    listed = headroom("jobs", "list")
    assert (listed.code, listed.err) == (0, "")
    assert job.id in listed.out
    assert "/models/[a]" in listed.out
    shown = headroom("jobs", "show", job.id)
    assert "/models/[a]" in shown.out
    assert headroom("jobs", "cancel", job.id, "--json").document["status"] == "cancelled"
    again = headroom("jobs", "cancel", job.id)
    assert again.code == 2
    assert "cancelled" in again.err
    assert headroom("jobs", "retry", job.id, "--json").document["status"] == "queued"
    assert [item["id"] for item in headroom("jobs", "list", "--json").document["jobs"]] == [job.id]
    assert headroom("jobs", "list", "--json", "--model", "other").document["jobs"] == []


def test_a_long_list_goes_on_with_its_token(headroom, remote):
    ids = {remote.store.submit(JobRequest(model="sample")).id for _ in range(3)}
    first = headroom("jobs", "list", "--limit", "2", "--json").document
    rest = headroom("jobs", "list", "--limit", "2", "--json", "--page-token", first["next_page_token"]).document
    assert {job["id"] for job in first["jobs"] + rest["jobs"]} == ids
    assert f"--page-token {first['next_page_token']}" in headroom("jobs", "list", "--limit", "2").out


def test_reports_are_listed_and_downloaded(headroom, remote, report, tmp_path):
    job = remote.store.submit(JobRequest(model="sample"))
    remote.succeed(remote.claim(job.id), {"bundle.zip": bundle_of(report)})
    assert job.id in headroom("reports", "list").out
    assert [item["id"] for item in headroom("reports", "list", "--json").document["reports"]] == [job.id]
    out = tmp_path / "deep" / "out"
    ran = headroom("reports", "download", job.id, "--out", str(out), "--json")
    assert Path(ran.document["page"]) == out / "report.html"
    assert json.loads((out / "report.json").read_text()) == report
    assert headroom("reports", "download", job.id, "--out", str(out)).code == 2


def test_lists_tell_the_effect_of_each_scheme(headroom, remote, report):
    report["schemes"]["nf4"] = dict(report["schemes"]["int8"])
    for name, level in (("int8", "negligible"), ("nf4", "severe")):
        report["schemes"][name]["verdict"] = {"level": level, "reasons": [], "not_ruled_out": []}
    job = remote.store.submit(JobRequest(model="sample"))
    content = json.dumps(report).encode()
    remote.succeed(remote.claim(job.id), {"report.json": content, "bundle.zip": bundle_of(report)})
    for resource in ("jobs", "reports"):
        assert "int8 negligible, nf4 severe" in headroom(resource, "list").out
        (listed,) = headroom(resource, "list", "--json").document[resource]
        assert {name: verdict["level"] for name, verdict in listed["verdicts"].items()} == {
            "int8": "negligible",
            "nf4": "severe",
        }
    assert "int8 negligible, nf4 severe" in headroom("jobs", "show", job.id).out


def test_a_download_that_is_not_what_was_stored_is_thrown_away(headroom, remote, report, tmp_path):
    job = remote.store.submit(JobRequest(model="sample"))
    remote.succeed(remote.claim(job.id), {"bundle.zip": bundle_of(report)})
    stored = remote.artifacts.path(remote.store.artifact(job.id, "bundle.zip").sha256)
    stored.chmod(0o600)
    stored.write_bytes(bundle_of({**report, "job_id": "another"}))
    ran = headroom("reports", "download", job.id, "--out", str(tmp_path / "out"))
    assert ran.code == 1
    assert "not what was sent" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_service_that_is_not_there_is_exit_code_3(headroom, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("HEADROOM_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HEADROOM_API_KEY", "any")
    ran = headroom("jobs", "list", "--json")
    assert ran.code == 3
    assert ran.document["error"]["code"] == "service-unreachable"
    assert f"127.0.0.1:{port}" in ran.err


@pytest.mark.usefixtures("remote")
def test_a_wrong_and_a_missing_key_are_bad_input(headroom, monkeypatch):
    monkeypatch.setenv("HEADROOM_API_KEY", "wrong")
    assert headroom("jobs", "list", "--json").document["error"]["code"] == "unauthorized"
    monkeypatch.delenv("HEADROOM_API_KEY")
    ran = headroom("jobs", "list")
    assert ran.code == 2
    assert "HEADROOM_API_KEY" in ran.err


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "not a url", "http://", "http://127.0.0.1:port"])
def test_an_address_that_is_none_is_refused(headroom, monkeypatch, url):
    monkeypatch.setenv("HEADROOM_URL", url)
    monkeypatch.setenv("HEADROOM_API_KEY", "any")
    ran = headroom("jobs", "list")
    assert ran.code == 2
    assert f"HEADROOM_URL: '{url}'" in ran.err


@pytest.mark.usefixtures("remote")
def test_a_proxy_is_not_asked_for_what_runs_on_this_machine(headroom, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert headroom("jobs", "list").code == 0


def test_a_bad_setting_is_named(headroom, monkeypatch):
    monkeypatch.setenv("HEADROOM_PORT", "eighty")
    ran = headroom("jobs", "list")
    assert ran.code == 2
    assert "HEADROOM_PORT: 'eighty'" in ran.err


def test_without_a_service_the_command_starts_its_own_api(headroom, tmp_path):
    ran = headroom("jobs", "list", "--json")
    assert ran.document == {"jobs": [], "next_page_token": None}
    assert (tmp_path / "home" / "headroom.db").is_file()
    assert headroom("jobs", "show", "none").code == 2


def test_a_worker_without_a_queue_is_refused(headroom):
    ran = headroom("worker")
    assert ran.code == 2
    assert "HEADROOM_BROKER_URL" in ran.err


def test_a_worker_is_given_its_memory(headroom, monkeypatch):
    became = []
    monkeypatch.setenv("HEADROOM_BROKER_URL", "redis://localhost:1")
    monkeypatch.setattr(os, "execve", lambda *given: became.append(given))
    headroom("worker", "--memory", "512MiB", "--loglevel=DEBUG")
    monkeypatch.setenv("HEADROOM_MEMORY", "3GiB")
    headroom("worker")
    assert [Settings(memory=given[2]["HEADROOM_MEMORY"]).memory for given in became] == [2**29, 3 * 2**30]
    assert became[0][1][-1] == "--loglevel=DEBUG"


def test_a_worker_is_given_its_device(headroom, monkeypatch):
    became = []
    monkeypatch.setenv("HEADROOM_BROKER_URL", "redis://localhost:1")
    monkeypatch.setattr(os, "execve", lambda *given: became.append(given))
    headroom("worker", "--device", "cuda:1", "-n", "mine@here")
    monkeypatch.setenv("HEADROOM_DEVICE", "cuda")
    headroom("worker")
    headroom("worker", "--device=cpu")
    assert [given[2]["HEADROOM_DEVICE"] for given in became] == ["cuda:1", "cuda", "cpu"]
    assert became[0][1][-2:] == ["-n", "mine@here"]


def test_a_stack_that_runs_already_has_its_own_memory(headroom, tmp_path):
    home = Home(Settings(home=tmp_path / "home"))
    home.prepare()
    home.make_key()
    with home.lock(), home.announce(Running("http://127.0.0.1:9", 1, "serve")):
        ran = headroom("analyze", "sample", "--out", str(tmp_path / "out"), "--memory", "1GiB")
    assert ran.code == 2
    assert "--memory: '1GiB' is not allowed" in ran.err
    assert "http://127.0.0.1:9 is already running; give --memory to `headroom serve`" in ran.err


def test_a_stack_that_runs_already_has_its_own_device(headroom, tmp_path):
    home = Home(Settings(home=tmp_path / "home"))
    home.prepare()
    home.make_key()
    with home.lock(), home.announce(Running("http://127.0.0.1:9", 1, "serve")):
        options = ("--device", "cpu", "--memory", "1GiB")
        ran = headroom("analyze", "sample", "--out", str(tmp_path / "out"), *options)
    assert ran.code == 2
    assert "http://127.0.0.1:9 is already running; give --memory and --device to `headroom serve`" in ran.err


@pytest.mark.parametrize(
    "name", ["MEMORY", "CHECKPOINT_SECONDS", "DEVICE", "PORT", "LEASE_SECONDS", "MAX_ATTEMPTS", "MAX_UPLOAD_BYTES"]
)
@pytest.mark.parametrize("command", [["jobs", "list"], ["serve"], ["worker"]])
def test_a_setting_that_is_not_allowed_is_named(headroom, monkeypatch, name, command):
    monkeypatch.setenv(f"HEADROOM_{name}", "-2 apples")
    ran = headroom(*command)
    assert ran.code == 2
    assert f"HEADROOM_{name}: '-2 apples' is not allowed; " in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("module", ["service.api", "service.scheduler", "workers.app"])
def test_every_program_names_a_database_that_is_away(module, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"HOME": str(tmp_path), "DATABASE_URL": f"postgresql://me:hush@127.0.0.1:{port}/db"}
    settings["BROKER_URL"] = f"redis://:hush@127.0.0.1:{port}/0"
    environment = os.environ | {f"HEADROOM_{name}": value for name, value in settings.items()}
    done = subprocess.run([sys.executable, "-m", module], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert f"HEADROOM_DATABASE_URL: the database at postgresql+psycopg://me:***@127.0.0.1:{port}/db" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hush" not in done.stderr


def test_a_stack_of_its_own_is_not_begun_on_a_broker_or_a_database_that_is_away(headroom, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("HEADROOM_BROKER_URL", f"redis://127.0.0.1:{port}/0")
    ran = headroom("analyze", "sample", "--out", str(tmp_path / "out"))
    assert ran.code == 3
    assert f"headroom: HEADROOM_BROKER_URL: the broker at redis://127.0.0.1:{port}/0 cannot be reached: " in ran.err
    monkeypatch.setenv("HEADROOM_DATABASE_URL", f"postgresql://me:hush@127.0.0.1:{port}/db")
    ran = headroom("jobs", "list")
    assert ran.code == 3
    assert (
        f"headroom api: HEADROOM_DATABASE_URL: the database at postgresql+psycopg://me:***@127.0.0.1:{port}" in ran.err
    )
    assert "Traceback" not in ran.err
    assert "hush" not in ran.err


@pytest.mark.parametrize("module", ["service.api", "service.scheduler", "workers.app"])
def test_every_program_names_a_setting_that_is_not_allowed(module, tmp_path):
    environment = {**os.environ, "HEADROOM_HOME": str(tmp_path), "HEADROOM_MEMORY": "inf"}
    done = subprocess.run([sys.executable, "-m", module], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "HEADROOM_MEMORY: 'inf' is not allowed; allowed: 0 or more bytes" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [[], ["analyze"], ["serve"], ["worker"], ["jobs"], ["jobs", "list"], ["reports", "download"]]
)
def test_every_command_explains_itself(headroom, command):
    ran = headroom(*command, "--help")
    assert ran.code == 0
    assert "Usage: headroom" in ran.out
    assert "--help" in ran.out


def test_the_help_names_every_exit_code(headroom):
    text = " ".join(headroom("--help").out.split())
    told = text[text.index("Exit codes:") :]
    assert [int(code) for code in re.findall(r"\b\d\b", told)] == [
        DONE,
        JOB_FAILED,
        BAD_INPUT,
        UNREACHABLE,
        LIMIT_BROKEN,
    ]
    for meaning in ("0 done", "1 the job failed", "2 bad usage", "3 the service"):
        assert meaning in told


def test_the_help_of_analyze_names_a_threshold_and_a_limit_that_can_be_set(headroom):
    text = " ".join(headroom("analyze", "--help").out.replace("│", " ").split())
    for given in re.findall(r"such as (\w+\.\w+=\S+?)[,;]", text):
        assert thresholds([given])
    assert "llm_int8.magnitude=" in text
    assert "verdict.kl_severe=" in text


def test_a_closed_pipe_is_no_traceback(remote):
    for _ in range(50):
        remote.store.submit(JobRequest(model="/" + "x" * 900))
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from service.cli.main import main; sys.argv = ['headroom', 'jobs', 'list', '--json']; main()"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert "Traceback" not in done.stderr


def test_a_file_that_cannot_be_read_is_named_without_a_traceback(headroom, tmp_path):
    key = tmp_path / "home" / "api-key"
    key.mkdir(parents=True)
    ran = headroom("jobs", "list", "--json")
    assert ran.code == 1
    assert ran.document["error"]["code"] == "system"
    assert str(key) in ran.err
    assert "Traceback" not in ran.err


def test_jobs_are_deleted_up_to_the_first_that_runs(headroom, remote):
    ids = [remote.store.submit(JobRequest(model="sample")).id for _ in range(4)]
    assert headroom("jobs", "delete", ids[0], "--json").document == {"deleted": [ids[0]]}
    remote.claim(ids[2])
    ran = headroom("jobs", "delete", *ids[1:])
    assert (ran.code, ran.out) == (BAD_INPUT, f"deleted {ids[1]}\n")
    assert "is running and cannot be deleted; cancel it first" in ran.err
    assert [job.id for job in remote.store.list().jobs] == [ids[3], ids[2]]
    gone = headroom("jobs", "show", ids[0])
    assert (gone.code, "was deleted" in gone.err) == (BAD_INPUT, True)
