"""Checks that a model's directory is below HEADROOM_MODEL_ROOTS, with symbolic links resolved.

All directories outside get the same message, which does not reveal whether they exist.
"""

from collections.abc import Sequence
from pathlib import Path

from service.contracts.progress import Failed
from workers.failures import JobFailed

NOT_ALLOWED = "model-not-allowed"


def directory_within(path: Path, roots: Sequence[Path]) -> Path:
    """Return the resolved path of a model's directory.

    Raises JobFailed where it, or a file in it, lies outside the roots, whether or not it exists.
    """
    try:
        allowed = [root.resolve() for root in roots]
        resolved = path.resolve()
        if _within(resolved, allowed) and all(_within(file.resolve(), allowed) for file in _files(resolved)):
            return resolved
    except (OSError, RuntimeError):  # a loop of links, a directory that may not be read
        raise _refused(path) from None
    raise _refused(path)


def _within(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _files(directory: Path) -> Sequence[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _refused(path: Path) -> JobFailed:
    message = (
        f"model: {str(path)!r} is not in a directory from which this worker takes models; allowed: 'sample', a hub id, "
        "or a path below a directory in HEADROOM_MODEL_ROOTS of the worker"
    )
    return JobFailed(Failed(code=NOT_ALLOWED, message=message, bad_input=True))
