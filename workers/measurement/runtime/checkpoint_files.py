"""Tells which files of an unfinished measurement another machine needs to go on with it."""

from pathlib import Path

from workers.measurement.runtime.workspace import IDENTITY

STREAMS = "checkpoint"
"""Directories `checkpoint.NNNNNN` hold the streams after that many layers."""
LAYERS = "layers"
"""Directory with one directory for each layer that is done."""


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
