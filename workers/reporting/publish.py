"""Puts finished files in place of older ones, all or none.

Everything is built in a directory beside its destination, on the same file system, and then moved by renaming. If
a move fails, what was there before is put back; the building directory is gone either way.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path


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
