"""The supervisor, with small programs in place of the measurement and the drawing."""

import errno
import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from bench import DRAW, LEASE, MEASURE, NAMES, SLEEP, Bench, alive, waits, writes_pid
from sqlalchemy.exc import OperationalError

from service.contracts.files import StoredFile
from service.contracts.harm.earlier import EarlierReport
from service.contracts.progress import Failed, Progress
from service.contracts.request import JobRequest, MeasurementRequest
from service.errors import NotFound, StoreFailed
from service.store.artifacts import ArtifactStore
from service.store.jobs import JobStore
from service.store.statuses import Status
from workers.samples import CALIBRATION, LABELLED, MODEL
from workers.sandbox.programs import Commands
from workers.supervisor import Supervisor


def test_a_report_ends_in_the_store(bench: Bench) -> None:
    job = bench.run()
    assert (job.status, job.error, job.attempts) == (Status.succeeded, None, 1)
    rows = bench.store.artifacts(bench.job_id)
    assert [row.name for row in rows] == NAMES
    kept = {row.name: bench.artifacts.path(row.sha256).read_bytes() for row in rows}
    assert {row.name: row.size for row in rows} == {name: len(content) for name, content in kept.items()}
    with zipfile.ZipFile(io.BytesIO(kept.pop("bundle.zip"))) as bundle:
        assert bundle.testzip() is None
        assert {name: bundle.read(name) for name in bundle.namelist()} == kept
    assert {row.name: row.media_type for row in rows} == {
        "bundle.zip": "application/zip",
        "figures/profile.svg": "image/svg+xml",
        "report.html": "text/html; charset=utf-8",
        "report.json": "application/json",
        "summary.md": "text/markdown; charset=utf-8",
        "tables/sites.parquet": "application/vnd.apache.parquet",
    }
    assert bench.no_work_is_left()


def test_the_measurement_is_told_everything_in_its_request(bench: Bench) -> None:
    bench.run()
    row = bench.store.artifact(bench.job_id, "report.json")
    request = MeasurementRequest.model_validate_json(bench.artifacts.path(row.sha256).read_bytes())
    assert (request.job_id, request.device) == (bench.job_id, "cpu")
    assert (request.model.path, request.model.source) == (MODEL, "sample")
    assert (request.calibration.path, request.calibration.format) == (CALIBRATION, "text")
    assert request.labelled is not None  # the sample brings its own
    assert (request.labelled.path, request.labelled.source) == (LABELLED, "sample")


def test_the_measurement_is_told_the_worker_s_memory_and_checkpoints(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update={"memory": 2**20, "checkpoint_seconds": 7.5})
    bench.run()
    row = bench.store.artifact(bench.job_id, "report.json")
    request = MeasurementRequest.model_validate_json(bench.artifacts.path(row.sha256).read_bytes())
    assert (request.memory_bytes, request.checkpoint_seconds) == (2**20, 7.5)


@pytest.mark.parametrize("model", ["sample", "/models/a", "org/name@main"])
def test_the_measurement_for_an_earlier_report_is_told_the_weights_that_it_needs(tmp_path: Path, model: str) -> None:
    earlier = EarlierReport(job_id="0a", fingerprint="sha256:" + "5" * 64)
    bench = Bench(tmp_path, JobRequest(model=model, earlier=earlier))
    bench.run(hub='target.write_text(json.dumps({"path": "/cache/abc", "source": "a"})); say(kind="finished")\n')
    row = bench.store.artifact(bench.job_id, "report.json")
    request = MeasurementRequest.model_validate_json(bench.artifacts.path(row.sha256).read_bytes())
    assert request.model.fingerprint == earlier.fingerprint
    bench.engine.dispose()


KEEP_TEXTS = """
for name in ("calibration", "labelled"):
    if text := json.loads(request)[name]:
        (target / "tables" / f"{name}.parquet").write_bytes(pathlib.Path(text["path"]).read_bytes())
"""


def kept_text(bench: Bench, name: str) -> bytes:
    """What a measurement with KEEP_TEXTS has read."""
    row = bench.store.artifact(bench.job_id, f"tables/{name}.parquet")
    return bench.artifacts.path(row.sha256).read_bytes()


def test_a_local_model_and_an_uploaded_text_are_passed_on(tmp_path: Path) -> None:
    sha256, size = ArtifactStore(tmp_path / "home" / "artifacts").put(b"some text")
    upload = StoredFile(name="mine.txt", sha256=sha256, size=size)
    asked = JobRequest(model="/models/a", calibration=upload, seed=5, sequences=3, schemes=("nf4",))
    bench = Bench(tmp_path, asked)
    bench.run(MEASURE + KEEP_TEXTS)
    row = bench.store.artifact(bench.job_id, "report.json")
    request = MeasurementRequest.model_validate_json(bench.artifacts.path(row.sha256).read_bytes())
    assert (str(request.model.path), request.model.source) == ("/models/a", "/models/a")
    assert (kept_text(bench, "calibration"), request.calibration.source) == (b"some text", "mine.txt")
    assert (request.seed, request.sequences, request.scheme_names) == (5, 3, ("nf4",))
    assert request.labelled is None
    bench.engine.dispose()


def test_files_are_passed_on_with_their_names_and_formats(tmp_path: Path) -> None:
    artifacts = ArtifactStore(tmp_path / "home" / "artifacts")
    files = {"calibration": ("ids.parquet", b"PAR1"), "labelled": ("prompts.jsonl", b"{}")}
    stored = {
        field: StoredFile(name=name, sha256=(kept := artifacts.put(content))[0], size=kept[1])
        for field, (name, content) in files.items()
    }
    settings = {"bos": "never", "label_threshold": 0.5, "text_field": "body", "score": "second_half"}
    bench = Bench(tmp_path, JobRequest.model_validate({"model": "sample", **stored, **settings}))
    bench.run(MEASURE + KEEP_TEXTS)
    row = bench.store.artifact(bench.job_id, "report.json")
    request = MeasurementRequest.model_validate_json(bench.artifacts.path(row.sha256).read_bytes())
    assert request.labelled is not None
    assert (request.calibration.source, request.calibration.format) == ("ids.parquet", "parquet")
    assert kept_text(bench, "calibration") == b"PAR1"
    assert (request.labelled.source, kept_text(bench, "labelled")) == ("prompts.jsonl", b"{}")
    assert {name: getattr(request, name) for name in settings} == settings
    bench.engine.dispose()


def test_a_hub_model_is_fetched_by_a_process_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, JobRequest(model="org/name@main"))
    fetch = """
name = sys.argv[-2]
target.write_text(json.dumps({"path": "/cache/abc", "source": name, "revision": "abc"}))
say(kind="finished")
"""
    assert bench.run(hub=fetch).status is Status.succeeded
    row = bench.store.artifact(bench.job_id, "report.json")
    request = MeasurementRequest.model_validate_json(bench.artifacts.path(row.sha256).read_bytes())
    model = {"path": "/cache/abc", "source": "org/name@main", "revision": "abc", "fingerprint": None}
    assert request.model.model_dump(mode="json") == model
    bench.engine.dispose()


def test_a_hub_model_that_cannot_be_fetched_fails_the_job(tmp_path: Path) -> None:
    bench = Bench(tmp_path, JobRequest(model="org/name"))
    job = bench.run(hub="say(kind='failed', code='bad-model', message='no such model', bad_input=True); sys.exit(2)")
    assert job.error == Failed(code="bad-model", message="no such model", bad_input=True)
    assert bench.nothing_is_left()
    bench.engine.dispose()


def test_the_same_report_makes_the_same_bundle(tmp_path: Path) -> None:
    measure = MEASURE.replace("write_text(request)", "write_text('{}')")
    hashes = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name)
        bench.run(measure)
        hashes.add(bench.store.artifact(bench.job_id, "bundle.zip").sha256)
        bench.engine.dispose()
        time.sleep(2)  # a zip file's dates count in steps of two seconds
    assert len(hashes) == 1


def test_what_belongs_to_no_report_is_not_stored(bench: Bench) -> None:
    stray = """
(target / "notes.txt").write_text("x")
(target / "tables" / "core").write_text("x")
os.symlink("/etc/passwd", target / "tables" / "passwd.parquet")
"""
    bench.run(draw=DRAW + stray)
    assert [row.name for row in bench.store.artifacts(bench.job_id)] == NAMES


def test_progress_is_stored_sparingly_and_the_last_of_each_stage_always(bench: Bench) -> None:
    many = "for done in range(1, 500): progress('sweep', done, 500)\n" + "progress('divergence', 0, 4)\n" * 2
    job = bench.run(many + MEASURE.replace("load", "write"))
    said = [
        (event.data["stage"], event.data["done"]) for event in bench.store.events(job.id) if event.kind == "progress"
    ]
    sweep = [done for stage, done in said if stage == "sweep"]
    assert (sweep[0], sweep[-1]) == (1, 499)
    assert len(sweep) < 20
    assert [line for line in said if line[0] != "sweep"] == [
        ("divergence", 0),
        ("write", 1),
        ("report", 0),
        ("report", 1),
    ]
    assert job.progress is not None
    assert (job.progress.stage, job.progress.done) == ("report", 1)


def test_every_warning_is_stored(bench: Bench) -> None:
    warn = "for n in range(3): say(kind='warning', code='nonfinite', message=str(n), where='layer')\n"
    bench.run(warn + MEASURE)
    warnings = [event.data for event in bench.store.events(bench.job_id) if event.kind == "warning"]
    assert warnings == [{"code": "nonfinite", "message": str(n), "where": "layer", "advice": None} for n in range(3)]


def test_garbage_on_standard_output_is_ignored(bench: Bench) -> None:
    garbage = r"""
sys.stdout.buffer.write(b"\xff\x00 garbage\n{}\n[1]\n\n" + b"x" * 300000 + b"\n{\"kind\": \"unheard\"}\n")
sys.stdout.flush()
print("no newline at the end of this: ", end="", file=sys.stderr)
"""
    assert bench.run(garbage + MEASURE).status is Status.succeeded


def test_a_failure_is_stored_as_it_was_said(bench: Bench) -> None:
    job = bench.run("say(kind='failed', code='bad-calibration', message='too short', bad_input=True); sys.exit(2)")
    assert job.error == Failed(code="bad-calibration", message="too short", bad_input=True)
    assert job.status is Status.failed
    assert bench.nothing_is_left()


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ("sys.stderr.write('first\\nRuntimeError: broke\\n\\n'); sys.exit(1)", "ended with 1: RuntimeError: broke"),
        ("sys.exit(0)", "ended with 0: it printed no error message"),
        ("say(kind='finished'); sys.exit(3)", "ended with 3"),
        ("say(kind='finished')", "left no report.json"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
    ],
)
def test_an_end_without_explanation_is_internal(bench: Bench, measure: str, message: str) -> None:
    job = bench.run(measure)
    assert job.error is not None
    assert (job.error.code, job.error.bad_input) == ("internal", False)
    assert message in job.error.message
    assert bench.nothing_is_left()


def test_a_killed_measurement_is_told_from_others(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        job = bench.run(
            "print('about to allocate', file=sys.stderr, flush=True); time.sleep(0.3); os.kill(os.getpid(), 9)"
        )
    assert job.error is not None
    assert (job.error.code, job.error.bad_input, job.attempts) == ("killed", False, 1)
    assert "SIGKILL" in job.error.message
    assert "about to allocate" in caplog.text
    assert bench.nothing_is_left()


def counts(directory: Path) -> tuple[str, Callable[[], int]]:
    """Code that numbers a program's runs from 0 on, and what reads how many there were."""
    file = directory / "runs"
    file.write_text("0")
    code = f"""
file = pathlib.Path({str(file)!r})
number = int(file.read_text())
file.write_text(str(number + 1))
"""
    return code, lambda: int(file.read_text())


@pytest.mark.parametrize(
    ("layers", "runs", "status"),
    [([0, 0], 2, Status.failed), ([3, 3], 2, Status.failed), ([3, 2], 2, Status.failed), ([0], 2, Status.succeeded),
     ([1, 2, 4, 7], 5, Status.succeeded), ([1, 2, 2], 3, Status.failed)],
)  # fmt: skip
def test_a_killed_measurement_goes_on_while_each_time_gets_further(
    bench: Bench, tmp_path: Path, layers: list[int], runs: int, status: Status
) -> None:
    count, run = counts(tmp_path)
    killed = f"""
if number < len({layers}):
    progress("sweep", {layers}[number], 9)
    time.sleep(0.3)
    os.kill(os.getpid(), 9)
"""
    assert bench.run(count + killed + MEASURE).status is status
    assert run() == runs


def test_one_that_is_killed_after_it_was_begun_anew_goes_on_too(bench: Bench, tmp_path: Path) -> None:
    count, run = counts(tmp_path)
    code = """
if number == 0:
    (target.parent / f".{target.name}.unfinished").mkdir()
    os.kill(os.getpid(), 9)
if number == 1:
    say(kind="failed", code="bad-request", message="of another software", bad_input=True)
    sys.exit(2)
if number == 2:
    progress("sweep", 3, 9)
    time.sleep(0.3)
    os.kill(os.getpid(), 9)
"""
    job = bench.run(count + code + MEASURE)
    assert (job.status, job.error, run()) == (Status.succeeded, None, 4)


FULL = """
batches.append(json.loads(pathlib.Path(sys.argv[1]).read_text())["batch_sequences"])
batch = {batch}
if {when}:
    say(kind="failed", code="device-out-of-memory", message=f"cuda:1 is full at {{batch}}", bad_input=False,
        batch_sequences=batch)
    sys.exit(1)
"""


def fills_device(directory: Path, batch: str, when: str = "True") -> tuple[str, Callable[[], list[int | None]]]:
    """Code of a measurement that needs more memory than its device has, and what reads the batches it was asked for.

    `batch` is the one in use, by a Python expression of `batches`, those that were asked for so far.
    """
    file = directory / "batches"
    file.write_text("[]")
    code = f"""
file = pathlib.Path({str(file)!r})
batches = json.loads(file.read_text())
{FULL.format(batch=batch, when=when).replace("say(", "file.write_text(json.dumps(batches)); say(")}
file.write_text(json.dumps(batches))
"""
    return code, lambda: json.loads(file.read_text())


@pytest.mark.parametrize(("used", "half"), [(8, 4), (5, 2), (2, 1)])
def test_a_device_that_is_full_is_tried_again_with_half_the_batch(
    bench: Bench, tmp_path: Path, used: int, half: int
) -> None:
    code, batches = fills_device(tmp_path, str(used), "len(batches) == 1")
    job = bench.run(code + MEASURE)
    assert (job.status, job.attempts, batches()) == (Status.succeeded, 1, [None, half])
    row = bench.store.artifact(bench.job_id, "report.json")
    measured = MeasurementRequest.model_validate_json(bench.artifacts.path(row.sha256).read_bytes())
    assert (measured.batch_sequences, measured.sequences) == (half, bench.job.request.sequences)
    warnings = [event.data for event in bench.store.events(job.id) if event.kind == "warning"]
    batch = "1 sequence" if half == 1 else f"{half} sequences"
    message = f"cuda:1 is full at {used}. The measurement began again with {batch} in a batch."
    advice = f"Use --batch-sequences {half} next time to avoid the failed first attempt."
    assert warnings == [{"code": "smaller-batch", "message": message, "where": None, "advice": advice}]
    assert bench.no_work_is_left()


def test_a_device_that_is_full_again_fails_the_job(bench: Bench, tmp_path: Path) -> None:
    code, batches = fills_device(tmp_path, "batches[-1] or 8")
    job = bench.run(code + MEASURE)
    message = "with 8 sequences in a batch, and again with half of them: cuda:1 is full at 4"
    assert job.error == Failed(code="device-out-of-memory", message=message, bad_input=False, batch_sequences=4)
    assert (job.status, batches()) == (Status.failed, [None, 4])
    assert bench.nothing_is_left()


@pytest.mark.parametrize("batch", [1, None])
def test_a_batch_that_cannot_be_halved_is_not_tried_again(bench: Bench, tmp_path: Path, batch: int | None) -> None:
    code, batches = fills_device(tmp_path, str(batch))
    job = bench.run(code + MEASURE)
    assert job.error == Failed(
        code="device-out-of-memory", message=f"cuda:1 is full at {batch}", bad_input=False, batch_sequences=batch
    )
    assert batches() == [None]


def test_the_batch_that_a_job_asks_for_is_halved_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, JobRequest(model="sample", batch_sequences=6))
    code, batches = fills_device(tmp_path, "batches[-1]", "len(batches) == 1")
    assert bench.run(code + MEASURE).status is Status.succeeded
    assert batches() == [6, 3]
    bench.engine.dispose()


def test_nothing_is_gone_on_from_with_another_batch(bench: Bench, tmp_path: Path) -> None:
    leaves = "left = target.parent / f'.{target.name}.unfinished'\nassert not left.exists()\nleft.mkdir()\n"
    code, batches = fills_device(tmp_path, "8", "len(batches) == 1")
    assert bench.run(leaves + code + MEASURE).status is Status.succeeded
    assert batches() == [None, 4]


def test_a_smaller_batch_that_is_killed_goes_on(bench: Bench, tmp_path: Path) -> None:
    code, batches = fills_device(tmp_path, "8", "len(batches) == 1")
    killed = """
if len(batches) == 2:
    progress("sweep", 3, 9)
    time.sleep(0.3)
    os.kill(os.getpid(), 9)
"""
    assert bench.run(code + killed + MEASURE).status is Status.succeeded
    assert batches() == [None, 4, 4]


IN_A_LIBRARY = "Error out of memory at line 72 in file /src/csrc/ops.cu"


def ended_by_a_library(batch: str, when: str = "True") -> str:
    """Code of a measurement that bitsandbytes ends; to be put after the code of `fills_device`."""
    return f"""
batch = {batch}
if {when}:
    say(kind="progress", stage="sweep", done=0, total=9, elapsed_seconds=0, batch_sequences=batch)
    progress("sweep", 1, 9)
    print({IN_A_LIBRARY!r}, file=sys.stderr)
    print("what is said at exit", file=sys.stderr)
    sys.exit(1)
"""


def test_a_library_that_ends_the_process_on_a_full_device_is_tried_again_with_half_the_batch(
    bench: Bench, tmp_path: Path
) -> None:
    code, batches = fills_device(tmp_path, "None", "False")
    job = bench.run(code + ended_by_a_library("8", "len(batches) == 1") + MEASURE)
    assert (job.status, job.error, batches()) == (Status.succeeded, None, [None, 4])
    length = job.request.sequence_length
    start = (
        f"the measurement's device ran out of memory: {IN_A_LIBRARY}, at 8 sequences of {length} tokens in a batch; "
    )
    events = bench.store.events(job.id)
    (warning,) = [event.data for event in events if event.kind == "warning"]
    assert warning["code"] == "smaller-batch"
    assert warning["message"].startswith(f"{start}set batch_sequences to 4 or less, or a shorter sequence_length, or ")
    assert warning["message"].endswith(". The measurement began again with 4 sequences in a batch.")
    sweep = [event.data for event in events if event.kind == "progress" and event.data["stage"] == "sweep"]
    assert [line.get("batch_sequences", "left out") for line in sweep] == [8, "left out"]


def test_a_library_that_ends_the_process_again_fails_the_job(bench: Bench, tmp_path: Path) -> None:
    code, batches = fills_device(tmp_path, "None", "False")
    job = bench.run(code + ended_by_a_library("batches[-1] or 8"))
    message = (
        "with 8 sequences in a batch, and again with half of them: the measurement's device ran out of memory: "
        f"{IN_A_LIBRARY}, at 4 sequences of {job.request.sequence_length} tokens in a batch; set batch_sequences to 2 "
        "or less, or a shorter sequence_length, or use a device with more free memory"
    )
    assert job.error == Failed(code="device-out-of-memory", message=message, bad_input=False, batch_sequences=4)
    assert (job.status, batches()) == (Status.failed, [None, 4])
    assert bench.nothing_is_left()


def test_a_library_that_ends_the_process_before_the_sweep_fails_the_job_at_once(bench: Bench, tmp_path: Path) -> None:
    count, runs = counts(tmp_path)
    job = bench.run(count + f"progress('load', 0, 1); print({IN_A_LIBRARY!r}, file=sys.stderr); sys.exit(1)")
    message = f"the measurement's device ran out of memory: {IN_A_LIBRARY}; use a device with more free memory"
    assert job.error == Failed(code="device-out-of-memory", message=message, bad_input=False)
    assert runs() == 1


def test_a_drawing_that_fails_fails_the_job(bench: Bench) -> None:
    job = bench.run(draw="sys.exit('no table sites')")
    assert job.error is not None
    assert job.error.code == "internal"
    assert "no table sites" in job.error.message
    assert bench.nothing_is_left()


@pytest.mark.parametrize(("kills", "drawn", "status"), [(1, 2, Status.succeeded), (2, 3, Status.succeeded),
                                                        (3, 3, Status.failed)])  # fmt: skip
def test_a_drawing_that_is_killed_is_drawn_again_without_measuring_again(
    bench: Bench, tmp_path: Path, kills: int, drawn: int, status: Status
) -> None:
    (tmp_path / "measure").mkdir()
    measuring, measured = counts(tmp_path / "measure")
    drawing, runs = counts(tmp_path)
    job = bench.run(measuring + MEASURE, drawing + f"if number < {kills}: os.kill(os.getpid(), 9)\n" + DRAW)
    assert (job.status, job.attempts, runs(), measured()) == (status, 1, drawn, 1)
    assert job.error is None or job.error.code == "killed"


ALLOCATE = """
kept = []
while True:
    kept.append(bytearray(os.urandom(1 << 16) * 256))
    time.sleep(0.01)
"""


@pytest.mark.parametrize("step", ["measurement", "drawing"])
def test_a_job_that_reaches_the_memory_limit_fails_at_once(bench: Bench, tmp_path: Path, step: str) -> None:
    bench.settings = bench.settings.model_copy(update={"job_memory": 128 << 20})
    count, runs = counts(tmp_path)
    left = '(target.parent / f".{target.name}.unfinished").mkdir(exist_ok=True)\nprogress("sweep", 3, 9)\n'
    programs = {"measure": count + left + ALLOCATE} if step == "measurement" else {"draw": count + ALLOCATE}
    job = bench.run(**programs)
    assert job.error is not None
    assert (job.error.code, job.error.bad_input, runs()) == ("memory-limit", False, 1)
    assert "128.0MiB (HEADROOM_JOB_MEMORY)" in job.error.message
    assert bench.nothing_is_left()


@pytest.mark.parametrize("step", ["measure", "draw", "hub"])
def test_a_job_that_takes_too_long_fails(tmp_path: Path, step: str) -> None:
    bench = Bench(tmp_path, JobRequest(model="org/name") if step == "hub" else JobRequest(model="sample"))
    bench.settings = bench.settings.model_copy(update={"job_seconds": 1.0})
    job = bench.run(**{step: "time.sleep(600)"})
    message = "the job took longer than a job may, 1 s (HEADROOM_JOB_SECONDS)"
    assert job.error == Failed(code="deadline", message=message, bad_input=False)
    assert bench.nothing_is_left()
    bench.engine.dispose()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise MemoryError", "MemoryError"),
        ("print('memory allocation of 9 bytes failed', file=sys.stderr); os.abort()", "memory allocation of 9 bytes"),
    ],
)
def test_a_measurement_without_memory_says_what_a_job_may_have(bench: Bench, code: str, message: str) -> None:
    bench.settings = bench.settings.model_copy(update={"job_memory": 128 << 20})
    error = bench.run(code).error
    assert error is not None
    assert error.code == "out-of-memory"
    assert error.message.startswith(f"the measurement ran out of memory: {message}")
    assert "a job may have 128.0MiB (HEADROOM_JOB_MEMORY)" in error.message


def test_a_file_that_is_too_large_fails_the_job(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update={"job_file_bytes": 1 << 20})
    error = bench.run("target.mkdir(); (target / 'large').write_bytes(bytes((1 << 20) + 1))").error
    assert error is not None
    assert (error.code, "1.0MiB (HEADROOM_JOB_FILE_BYTES)" in error.message) == ("file-size-limit", True)
    assert bench.nothing_is_left()


def test_files_in_linked_directories_are_not_stored(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.json").write_text("{}")
    link = f"os.symlink({str(tmp_path / 'elsewhere')!r}, target / 'figures')\n"
    draw = link + "(target / 'report.html').write_text('')"
    bench.run(draw=draw)
    assert "figures/secret.json" not in [row.name for row in bench.store.artifacts(bench.job_id)]
    assert "report.html" in [row.name for row in bench.store.artifacts(bench.job_id)]


def test_a_program_that_cannot_be_started_fails_the_job(bench: Bench) -> None:
    commands = Commands(measurement=("/no/such/program",))
    supervisor = Supervisor(bench.store, bench.artifacts, bench.settings, worker="host:1", commands=commands)
    supervisor.run(bench.job_id, 1)
    error = bench.job.error
    assert error is not None
    assert (error.code, "/no/such/program" in error.message) == ("internal", True)
    assert bench.nothing_is_left()


def test_an_upload_that_is_gone_fails_the_job(tmp_path: Path) -> None:
    bench = Bench(tmp_path, JobRequest(model="sample", calibration=StoredFile(name="c", sha256="0" * 64, size=1)))
    error = bench.run().error
    assert error is not None
    assert (error.code, NotFound.__name__ in error.message) == ("internal", True)
    assert bench.nothing_is_left()
    bench.engine.dispose()


def test_a_message_only_wakes_the_worker(bench: Bench) -> None:
    """Whatever job it is of: the one whose turn it is begins, and begins once."""
    bench.supervisor().run("0" * 32, 1)
    assert bench.job.status is Status.succeeded
    bench.supervisor().run(bench.job_id, 1)
    bench.supervisor().run(bench.job_id, 2)
    assert bench.kinds().count("started") == 1


def test_a_large_model_is_left_to_another_worker_at_no_cost(bench: Bench) -> None:
    both = bench.settings
    bench.settings = both.model_copy(update={"queues": ("small",), "small_bytes": 1})
    job = bench.run("raise SystemExit('measured')")
    assert (job.status, job.size) == (Status.queued, "large")
    assert bench.store.events(job.id)[-1].data == {"reason": "large-model"}
    assert list((both.home / "work" / job.id).iterdir()) == []
    for _ in range(3):
        bench.run()
    assert bench.kinds() == ["queued", "started", "requeued"]
    bench.settings = both
    assert bench.run().status is Status.succeeded


def test_a_large_model_of_the_hub_is_left_to_another_worker_before_it_is_fetched(tmp_path: Path) -> None:
    bench = Bench(tmp_path, JobRequest(model="org/name"))
    bench.settings = bench.settings.model_copy(update={"queues": ("small",), "small_bytes": 7})
    says = "assert '--small=7' in sys.argv; say(kind='failed', code='large-model', message='large', bad_input=False)"
    job = bench.run(hub=f"{says}; sys.exit(1)")
    assert (job.status, job.size) == (Status.queued, "large")


def test_a_cancelled_job_takes_its_processes_with_it(bench: Bench) -> None:
    write_pid, pid = writes_pid(bench)
    grandchild = "import subprocess; subprocess.Popen(['sleep', '600'])\n"
    thread = bench.meanwhile(lambda: bench.store.cancel(bench.job_id))
    job = bench.run(write_pid + grandchild + SLEEP)
    thread.join()
    assert job.status is Status.cancelled
    assert bench.kinds()[-2:] == ["cancel_requested", "cancelled"]
    group = subprocess.run(
        ["ps", "-o", "stat=", "--no-headers", "-g", str(pid())], capture_output=True, text=True
    ).stdout
    assert [state for state in group.split() if not state.startswith("Z")] == []
    assert bench.nothing_is_left()


def test_a_process_that_ignores_sigterm_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.children.GRACE_SECONDS", 0.2)
    write_pid, pid = writes_pid(bench)
    thread = bench.meanwhile(lambda: bench.store.cancel(bench.job_id))
    job = bench.run("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + write_pid + SLEEP)
    thread.join()
    assert job.status is Status.cancelled
    assert not alive(pid())


def test_a_stopping_worker_gives_its_job_back(bench: Bench) -> None:
    write_pid, pid = writes_pid(bench)
    thread = bench.meanwhile(lambda: setattr(bench, "stopping", True))
    job = bench.run(write_pid + SLEEP)
    thread.join()
    assert (job.status, job.dispatch, job.worker) == (Status.queued, 2, None)
    assert bench.kinds()[-1] == "requeued"
    assert not alive(pid())
    assert bench.store.artifacts(bench.job_id) == []
    bench.stopping = False
    assert bench.run().status is Status.succeeded
    assert bench.no_work_is_left()


def test_a_worker_whose_lease_is_lost_stops_and_writes_nothing(bench: Bench) -> None:
    write_pid, pid = writes_pid(bench)
    later = JobStore(bench.engine, lambda: bench.store._clock().replace(year=2100))

    def take() -> None:
        assert later.requeue_expired(3) == [bench.job_id]
        assert bench.store.claim(bench.job_id, 2, "host:2", LEASE) is not None

    thread = bench.meanwhile(take)
    job = bench.run(write_pid + SLEEP)
    thread.join()
    assert (job.status, job.worker, job.fence) == (Status.running, "host:2", 2)
    assert bench.kinds()[-1] == "started"
    assert not alive(pid())
    assert bench.store.artifacts(bench.job_id) == []


def test_a_lease_lost_at_the_last_moment_leaves_the_job_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    succeed = bench.store.succeed

    def lose_then_succeed(*arguments: object) -> None:
        later = JobStore(bench.engine, lambda: bench.store._clock().replace(year=2100))
        assert later.requeue_expired(3) == [bench.job_id]
        succeed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.store, "succeed", lose_then_succeed)
    job = bench.run()
    assert job.status is Status.queued
    assert bench.store.artifacts(bench.job_id) == []
    monkeypatch.undo()
    assert bench.run().status is Status.succeeded
    assert bench.kinds().count("succeeded") == 1


def _away(*_: object) -> None:
    raise OperationalError("statement", {}, Exception("the database is away"))


def test_a_short_absence_of_the_database_costs_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.supervisor._RETRY_SECONDS", 0.05)
    renew, succeed, left = bench.store.renew, bench.store.succeed, {"renew": 2, "succeed": 2}
    wait, go_on = waits(bench)

    def failing(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            if left[name]:
                left[name] -= 1
                _away()
            if name == "renew":
                go_on()
            return real(*arguments)

        return call

    monkeypatch.setattr(bench.store, "renew", failing("renew", renew))
    monkeypatch.setattr(bench.store, "succeed", failing("succeed", succeed))
    monkeypatch.setattr(bench.store, "progress", _away)
    job = bench.run(wait + MEASURE)
    assert (job.status, left) == (Status.succeeded, {"renew": 0, "succeed": 0})


def test_a_long_absence_of_the_database_ends_the_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pid, pid = writes_pid(bench)
    clock = SimpleNamespace(monotonic=time.monotonic)
    monkeypatch.setattr("workers.lease.time", clock)

    def pass_away() -> None:
        bench.store.renew = _away  # type: ignore[method-assign]
        clock.monotonic = lambda: time.monotonic() + 2 * LEASE

    thread = bench.meanwhile(pass_away)
    job = bench.run(write_pid + SLEEP)
    thread.join()
    assert not alive(pid())
    assert (job.status, bench.kinds()[-1]) == (Status.running, "progress")
    assert bench.store.artifacts(bench.job_id) == []


def test_the_lease_is_renewed_while_the_measurement_is_silent(bench: Bench) -> None:
    wait, go_on = waits(bench)

    def look() -> None:
        first = bench.job.lease_expires_at
        while bench.job.lease_expires_at == first:
            time.sleep(0.02)
        go_on()

    thread = bench.meanwhile(look)
    assert bench.run("progress('load', 0, 1)\n" + wait + MEASURE).status is Status.succeeded
    thread.join()


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as place:
        if os.geteuid() != 0 or subprocess.run([*MOUNT, place], capture_output=True).returncode != 0:
            return False
        subprocess.run(["umount", place], check=True)
        return True


MOUNT = ("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs")
FULL_DISKS = ["artifacts", "work"] if _can_mount() else ["injected"]


@pytest.fixture(params=FULL_DISKS)
def small_disk(request: pytest.FixtureRequest, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """64 KiB for the artifacts, or for the working directories; where none may be mounted, a bundle that is refused."""
    if request.param == "injected":

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("workers.attempt.write_bundle", refuse)
        yield
        return
    place = bench.settings.home / request.param
    place.mkdir(parents=True)
    subprocess.run([*MOUNT, str(place)], check=True)
    yield
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_fails_the_job_and_leaves_nothing_half_written(bench: Bench) -> None:
    big = MEASURE.replace("bytes(1000)", "os.urandom(40000)")
    job = bench.run(big)
    assert job.error is not None
    assert (job.status, job.error.code, job.error.bad_input) == (Status.failed, "disk-full", False)
    assert os.strerror(errno.ENOSPC) in job.error.message
    assert bench.store.artifacts(bench.job_id) == []
    assert bench.no_work_is_left()
    kept = [path for path in bench.settings.artifacts.rglob("*") if path.is_file()]
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in kept)


@pytest.mark.parametrize("step", ["put", "bundle", "mkdir"])
def test_no_space_at_any_step_fails_the_job(bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    supervisor = bench.supervisor()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_space(*_: object, **__: object) -> None:
        if step == "put":
            raise StoreFailed("could not be stored") from full
        raise full

    target = {"put": (bench.artifacts, "put"), "bundle": ("workers.attempt", "write_bundle"), "mkdir": (Path, "mkdir")}
    place, name = target[step]
    if isinstance(place, str):
        monkeypatch.setattr(f"{place}.{name}", no_space)
    else:
        monkeypatch.setattr(place, name, no_space)
    supervisor.run(bench.job_id, 1)
    monkeypatch.undo()
    job = bench.job
    assert job.error is not None
    assert job.error.code == "disk-full"
    assert bench.store.artifacts(bench.job_id) == []


def test_another_trouble_of_the_artifact_store_is_not_called_a_full_disk(bench: Bench) -> None:
    bench.settings.home.mkdir()
    (bench.settings.home / "artifacts").touch()
    job = bench.run()
    assert job.error is not None
    assert (job.error.code, "could not be stored" in job.error.message) == ("store-failed", True)


def test_the_first_progress_of_a_job_is_seen_while_it_runs(bench: Bench) -> None:
    seen: list[Progress | None] = []

    def look() -> None:
        seen.append(bench.job.progress)
        bench.stopping = True

    thread = bench.meanwhile(look)
    bench.run(SLEEP)
    thread.join()
    assert seen == [Progress(stage="sweep", done=0, total=9, elapsed_seconds=0)]


def test_sigterm_is_what_a_measurement_hears_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.children.GRACE_SECONDS", 120.0)
    heard = bench.settings.home / "heard"
    listen = f"""
def hear(*_): pathlib.Path({str(heard)!r}).touch(); sys.exit(0)
signal.signal(signal.SIGTERM, hear)
"""
    thread = bench.meanwhile(lambda: setattr(bench, "stopping", True))
    bench.run(listen + SLEEP)
    thread.join()
    assert heard.exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
