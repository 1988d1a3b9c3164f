"""Puts finished files in place, all or none: in place of older ones, or as a new directory.

Everything is built in a directory beside its destination, on the same file system, and then moved by renaming. If
a move fails, what was there before is put back; the building directory is gone either way.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from service.errors import HeadroomError


class OutTaken(HeadroomError):
    """Raised when the directory for the output is neither new nor empty."""

    code = "out-taken"
    status = 422


def check_out(out: Path) -> None:
    """Raise OutTaken unless `out` is new or an empty directory."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise OutTaken(f"{out}: OUT must be a new or empty directory")


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield an empty directory to build in; on leaving it without an error, make it `out`, which `check_out` passed.

    Raises:
        OSError: the directory could not be made or renamed; then there is no `out`.
    """
    above = out.absolute().parent
    above.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=above) as beside:
        stage = Path(beside, "out")
        stage.mkdir()
        yield stage
        os.rename(stage, out)


@contextmanager
def staged(directory: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield an empty directory to build in; on leaving it without an error, move `names` into `directory`, in order.

    Raises:
        OSError: a file could not be written or moved; `directory` is as it was.
    """
    stage = Path(tempfile.mkdtemp(prefix=".reporting-", dir=directory))
    try:
        yield stage
        replaced = Path(tempfile.mkdtemp(prefix="replaced-", dir=stage))
        with ExitStack() as undo:
            for name in names:
                _replace(stage / name, directory / name, replaced / name, undo)
            undo.pop_all()
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace(new: Path, target: Path, replaced: Path, undo: ExitStack) -> None:
    if target.is_dir():
        target.rename(replaced)
        undo.callback(replaced.rename, target)
    elif target.exists():
        shutil.copy2(target, replaced)  # a file is replaced in one step, and never missing
        undo.callback(replaced.replace, target)
    new.replace(target)
    undo.callback(target.rename, new)
