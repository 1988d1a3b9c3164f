"""Manages the directory beside the output in which a measurement works until its output is whole.

A measurement that fails removes it. One that is killed leaves it, with a checkpoint of its streams and the files of
the layers that are done, and the same request on the same model, text and software goes on from there.
"""

import fcntl
import hashlib
import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic.main import IncEx

from service.contracts.request import MeasurementRequest
from workers.measurement.errors import BadRequest

Identity = dict[str, Any]
"""What must be the same for a measurement to go on where another one was broken off."""

LIBRARIES = ("headroom", "torch", "transformers", "bitsandbytes")
IDENTITY = "identity.json"
"""File in which a measurement signs its directory."""
STREAMS = "checkpoint"
"""Directories `checkpoint.NNNNNN` hold the streams after that many layers."""
LAYERS = "layers"
"""Directory with one directory for each layer that is done."""
_ELSEWHERE: dict[str, IncEx | bool] = {
    **dict.fromkeys(("job_id", "memory_bytes", "checkpoint_seconds", "device", "any_model_type"), True),
    **{name: {"path"} for name in ("model", "calibration", "labelled")},
}
"""What of a request may differ between the machines that do one measurement. The device counts by its model."""


def identity_of(request: MeasurementRequest, model_fingerprint: str, card: str | None) -> Identity:
    """Return all that determines a measurement's tables: request, content of the files, hardware and software.

    `card` is the model of the GPU that computes; None for the CPU.
    """
    files = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in _files(request).items()
        if path.is_file()  # a missing one is refused when it is read
    }
    software = {name: version(name) for name in LIBRARIES}
    machine = {"machine": platform.machine(), "gpu": card, "cpu": None if card else _cpu_capability()}
    # Where the files lie, and where and how often the streams are kept, changes nothing in the tables; another
    # machine, with other directories, may go on.
    asked = request.model_dump(mode="json", exclude=_ELSEWHERE)
    return {"request": asked, "model": model_fingerprint, "files": files, "software": software | machine}


def unfinished(out: Path) -> Path:
    """Return the directory that a measurement works in until `out` is whole."""
    return out.absolute().with_name(f".{out.name}.unfinished")


def latest_checkpoint(unfinished: Path) -> Path | None:
    """Return the directory of the latest whole checkpoint of the streams."""
    whole = sorted(unfinished.glob(f"{STREAMS}.[0-9]*"))
    return whole[-1] if whole else None


def layers_done(checkpoint: Path | None) -> int:
    """Return how many layers the streams of a checkpoint are through, 0 without one."""
    return 0 if checkpoint is None else int(checkpoint.suffix.removeprefix("."))


def checkpoint_files(unfinished: Path, checkpoint: Path) -> dict[str, Path]:
    """Return the files to go on from a checkpoint, by their paths relative to `unfinished`."""
    layers = [unfinished / LAYERS / f"{layer:05d}" for layer in range(layers_done(checkpoint))]
    files = [unfinished / IDENTITY, *(file for directory in (checkpoint, *layers) for file in directory.iterdir())]
    return {file.relative_to(unfinished).as_posix(): file for file in sorted(files)}


@contextmanager
def workspace(out: Path, identity: Identity) -> Iterator[Path]:
    """Give the directory to work in; its `result`, which must exist at the end, becomes `out`.

    Raises:
        BadRequest: `out` holds something already; nothing can be written beside it; another measurement is at work
            there; or a broken-off one of another identity has left its directory.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadRequest(f"OUT: {str(out)!r} exists and is not an empty directory; give a new or an empty one")
    directory = unfinished(out)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise BadRequest(f"OUT: the directory of {str(out)!r} cannot be written: {error.strerror}") from error
    with lock:
        _take(lock.fileno(), directory)
        _recognize(directory, identity)
        try:
            yield directory
            (directory / "result").replace(out)
        except (KeyboardInterrupt, SystemExit):  # what is done stays for the next time
            raise
        except BaseException:  # a panic of a library is no Exception
            _remove(directory)
            raise
        _remove(directory)


def _cpu_capability() -> str:
    """Return the instruction set that torch computes with, which decides the last digits."""
    import torch  # here, for the worker that imports this module does without

    return str(torch.backends.cpu.get_cpu_capability())


def _take(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadRequest(f"OUT: another measurement is using {directory}; give another output directory") from error


def _recognize(directory: Path, identity: Identity) -> None:
    """Refuse what another measurement left, and sign what is new, emptied of what has lost its identity."""
    file = directory / IDENTITY
    stored = _signed(file)
    if stored is not None:
        differing = sorted(key for key in identity if stored.get(key) != identity[key])
        if differing:
            raise BadRequest(
                f"OUT: {directory} holds an unfinished measurement of something else (other {', '.join(differing)}); "
                "remove it, or give another output directory"
            )
        shutil.rmtree(directory / "result", ignore_errors=True)
    else:
        for entry in directory.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
        unsigned = file.with_suffix(".new")
        unsigned.write_text(json.dumps(identity), encoding="utf-8")
        unsigned.rename(file)


def _signed(file: Path) -> Identity | None:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or cut off by a crash of the machine
        return None
    return stored if isinstance(stored, dict) else None


def _remove(directory: Path) -> None:
    # The identity goes first: should this be broken off, nothing goes on from the rest.
    with suppress(OSError):
        (directory / IDENTITY).unlink()
    shutil.rmtree(directory, ignore_errors=True)


def _files(request: MeasurementRequest) -> dict[str, Path]:
    labelled = {"labelled": request.labelled.path} if request.labelled is not None else {}
    return {"calibration": request.calibration.path} | labelled
