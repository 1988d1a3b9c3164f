"""Checkpoints in the artifact store: what another machine kept is gone on from, and not where it is damaged."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import MEASURE, Bench

from service.contracts.request import JobRequest
from service.store.files.checkpoints import CheckpointStore
from service.store.job_records import Claim
from service.store.statuses import Status
from workers.checkpoints import linked

SAYS = "say(kind='warning', code='begins', message=str(target.with_name('.out.unfinished').exists()))\n"


@pytest.fixture
def kept(bench: Bench, tmp_path: Path) -> Path:
    """The one file of a checkpoint that another machine has kept of the job."""
    place = tmp_path / "shared"
    bench.settings = bench.settings.model_copy(update={"artifacts_url": place.as_uri()})
    bench.artifacts = type(bench.artifacts)(place)
    layers = tmp_path / "layers"
    layers.write_bytes(b"layers")
    store = CheckpointStore(bench.artifacts.storage)
    store.save(Claim(bench.job_id, 0, JobRequest(model="sample"), 0), 3, "{}", {"layers": layers}, lambda: None)
    (file,) = place.glob("checkpoints/*/files/*")
    return file


def run(bench: Bench) -> dict[str, str]:
    """Run the job to its report; return what its warnings say."""
    job = bench.run(SAYS + MEASURE)
    assert job.status is Status.succeeded, job.error
    return {
        event.data["code"]: event.data["message"] for event in bench.store.events(job.id) if event.kind == "warning"
    }


def test_what_another_machine_kept_is_gone_on_from(bench: Bench, kept: Path) -> None:
    assert kept.read_bytes() == b"layers"
    assert run(bench) == {"begins": "True"}


def test_only_files_of_the_measurement_are_stored(tmp_path: Path) -> None:
    """A program in the sandbox may put anything in their place."""
    own, secret, pipe = (tmp_path / name for name in ("own", "secret", "pipe"))
    own.write_bytes(b"own")
    secret.write_bytes(b"secret")
    assert linked(own, tmp_path / "0", os.getuid()).read_bytes() == b"own"
    (tmp_path / "link").symlink_to(secret)
    os.mkfifo(pipe)
    for number, path in enumerate((tmp_path / "link", pipe), 1):
        with pytest.raises(OSError, match="is not a file of the measurement"):
            linked(path, tmp_path / f"{number}", os.getuid())
    with pytest.raises(OSError, match="is not a file of the measurement"):
        linked(secret, tmp_path / "3", os.getuid() + 1)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.write_bytes(b"LAYERS"), "is damaged: its SHA-256 is"),
        (lambda file: file.write_bytes(b"lay"), "is damaged: its SHA-256 is"),
        (lambda file: file.unlink(), "No such file"),
    ],
    ids=["other bytes", "cut off", "missing"],
)
def test_a_damaged_checkpoint_is_measured_again_and_the_job_says_so(
    bench: Bench, kept: Path, damage: Callable[[Path], object], reason: str
) -> None:
    damage(kept)
    said = run(bench)
    assert said["begins"] == "False"
    assert said["checkpoint-unusable"].startswith("The checkpoint of an earlier attempt cannot be used, so its layers ")
    assert reason in said["checkpoint-unusable"]


def test_a_checkpoint_whose_list_of_files_is_damaged_is_none(bench: Bench, kept: Path) -> None:
    (manifest,) = kept.parents[1].glob("*.json")
    manifest.write_text("{")
    assert run(bench) == {"begins": "False"}
