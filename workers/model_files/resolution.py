"""Resolves a model reference to the commit or directory that it names now, in a process that can be stopped.

    python -m workers.model_files.resolution MODEL DEVICE RESOLVED.json [--newest-in] [--root=DIRECTORY]...

A hub id is resolved to its commit, without a download. A directory is read whole, to know it again by its content.
With --newest-in MODEL is a directory of checkpoints, and the one made last is taken: that with the latest modification
time, among equals the last by name; hidden ones are not looked at. Directories outside all roots are refused. DEVICE is
what the measurement will compute on. RESOLVED.json gets a `Resolved`; standard output ends with a line `finished` or
`failed`.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from service.contracts.files import StoredFile
from service.contracts.progress import Failed, Finished
from service.contracts.record import Frozen
from service.contracts.report import DEFINITIONS_VERSION
from service.contracts.request import SAMPLE, Analysis, JobRequest
from workers.failures import JobFailed
from workers.model_files.roots import directory_within
from workers.samples import CALIBRATION, LABELLED, MODEL

LIBRARIES = ("headroom", "torch", "transformers", "tokenizers", "bitsandbytes")
"""Whose versions decide the figures."""


class Resolved(Frozen):
    """A model reference resolved."""

    model: str
    """`sample`, the absolute path of a directory, or the hub id as it was asked for."""
    revision: str | None = None
    """Commit on the hub; None for a local model."""
    fingerprint: str | None = None
    """Of the weights, as in report.json; None for a model on the hub."""
    content: str
    """The commit, or `sha256:...` over the names and contents of all files that are read."""
    hardware: str
    """What computes: the model of the GPU, or the CPU's kind and instruction set."""


def resolve(model: str, device: str, *, newest_in: bool, roots: Sequence[Path] = (Path("/"),)) -> Resolved:
    """Return what a model reference stands for, and what a device of that name computes with.

    Raises BadModel for a directory that is no checkpoint, JobFailed for one outside the roots, BadRequest for a device
    that is not there, OSError, and passes on what huggingface_hub raises.
    """
    from workers.measurement.runtime.device import choose_device, hardware

    computes = hardware(choose_device(device))
    if model != SAMPLE and not model.startswith("/"):
        from workers.model_files.hub import commit_of

        commit = commit_of(model)
        return Resolved(model=model, revision=commit, content=commit, hardware=computes)
    from workers.measurement.models.checkpoint import fingerprint, open_checkpoint
    from workers.model_files.hub import FILES

    path = MODEL if model == SAMPLE else _directory(Path(model), roots, newest_in=newest_in)
    weights = open_checkpoint(path).weight_files
    others = {file for pattern in FILES for file in path.glob(pattern) if file.is_file()} - set(weights)
    of_weights = fingerprint(weights)
    content = hashlib.sha256(f"{of_weights} {fingerprint(sorted(others))}".encode()).hexdigest()
    name = SAMPLE if model == SAMPLE else str(path)
    return Resolved(model=name, fingerprint=of_weights, content=f"sha256:{content}", hardware=computes)


def identity(content: str, hardware: str, request: JobRequest) -> str:
    """Return `sha256:...` over what decides a job's figures: model, texts, settings, definitions, software, hardware.

    Args:
        content: `Resolved.content`.
        hardware: `Resolved.hardware`.
        request: The job's request; where its files and settings are named matters no more than the model's name.
    """
    labelled = LABELLED if request.model == SAMPLE else None
    decides: Mapping[str, object] = {
        "model": content,
        "calibration": _sha256(request.calibration, CALIBRATION),
        "labelled": _sha256(request.labelled, labelled),
        "settings": request.model_dump(mode="json", include=set(Analysis.model_fields)),
        "definitions": DEFINITIONS_VERSION,
        "libraries": {name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "hardware": hardware,
    }
    return f"sha256:{hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()}"


def main(arguments: Sequence[str]) -> int:
    """Run the program; returns the exit status: 0 done, 2 bad input, 1 anything else."""
    model, device, target, *options = arguments
    roots = [Path(option.removeprefix("--root=")) for option in options if option.startswith("--root=")]
    try:
        resolved = resolve(model, device, newest_in="--newest-in" in options, roots=roots)
        Path(target).write_text(resolved.model_dump_json())
    except BaseException as error:  # the process that waits needs the reason, whatever it is
        failed = _failed(model, error)
        print(failed.model_dump_json(), flush=True)
        return 2 if failed.bad_input else 1
    print(Finished().model_dump_json(), flush=True)
    return 0


def _directory(path: Path, roots: Sequence[Path], *, newest_in: bool) -> Path:
    """Return the directory of the checkpoint, which lies within the roots."""
    if newest_in:
        directory_within(path, roots)
        path = _newest(path)
    directory_within(path, roots)
    return path


def _newest(parent: Path) -> Path:
    from workers.measurement.errors import BadModel

    if not parent.is_dir():
        raise BadModel(f"model: newest_in: {str(parent)!r} is not a directory; give a directory of checkpoints")
    children = [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not children:
        raise BadModel(f"model: newest_in: {str(parent)!r} holds no directory; give a directory of checkpoints")
    return max(children, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _sha256(stored: StoredFile | None, bundled: Path | None) -> str | None:
    if stored is not None:
        return stored.sha256
    return hashlib.sha256(bundled.read_bytes()).hexdigest() if bundled else None


def _failed(model: str, error: BaseException) -> Failed:
    from workers.measurement.errors import MeasurementError
    from workers.model_files.hub import failed_to_fetch

    if isinstance(error, JobFailed):
        return error.failed
    if isinstance(error, MeasurementError):
        return Failed(code=error.code, message=str(error), bad_input=error.bad_input)
    if model == SAMPLE or model.startswith("/"):
        return Failed(code="bad-model", message=f"model: {model!r} could not be read: {error}", bad_input=False)
    return failed_to_fetch(model, error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
