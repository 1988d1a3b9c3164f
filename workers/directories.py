"""Manages the working directories of a machine's workers: HEADROOM_HOME/work/JOB/attempt-N, one for each attempt.

An attempt at a job takes over what the one before left by renaming that directory to its own name. A rename is one
step, so of all who want a directory - the next attempt, and those who clear up - only one gets it; and a process of
the old attempt that still runs finds nothing under the name that it knows, and fails without harm. What is to go is
renamed first too: nobody ever takes over a directory that is half removed.
"""

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from uuid import uuid4

log = logging.getLogger(__name__)

_ATTEMPT = "attempt-"
_REMOVED = ".removed-"


class WorkDirectories:
    """The directories under one root, which other workers may use at the same time."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def take(self, job_id: str, attempt: int) -> Path:
        """Return the directory of an attempt: the latest earlier one's, with all that is in it, else an empty one.

        Raises OSError when it cannot be made.
        """
        mine = self._of(job_id, attempt)
        earlier = [path for path in mine.parent.glob(f"{_ATTEMPT}*") if _number(path) < attempt]
        for path in sorted(earlier, key=_number, reverse=True):
            if mine.exists():
                self._remove(path)
            else:
                _rename(path, mine)
        for directory in (self._root, mine.parent, mine):  # mode 700: parents=True would make the first two 755
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return mine

    def keep_only(self, wanted: Callable[[Iterable[str]], Iterable[str]]) -> None:
        """Remove the directories of every job but those that `wanted` picks from the ids it is given."""
        # Listed before the jobs are asked for: an attempt that begins meanwhile is not in the list.
        jobs = [path for path in self._root.glob("*") if not path.name.startswith(_REMOVED)]
        attempts = {job.name: list(job.glob(f"{_ATTEMPT}*")) for job in jobs}
        for ended in attempts.keys() - set(wanted(attempts)):
            for path in attempts[ended]:
                self._remove(path)
            _remove_if_empty(self._root / ended)
        for half_removed in self._root.glob(f"{_REMOVED}*"):
            shutil.rmtree(half_removed, ignore_errors=True)

    def remove(self, job_id: str, attempt: int) -> None:
        """Remove the directory of an attempt, if it is still there."""
        self._remove(self._of(job_id, attempt))

    def _of(self, job_id: str, attempt: int) -> Path:
        return self._root / job_id / f"{_ATTEMPT}{attempt}"

    def _remove(self, path: Path) -> None:
        doomed = self._root / f"{_REMOVED}{uuid4().hex}"
        try:
            moved = _rename(path, doomed)
        except OSError as error:
            log.warning("%s is removed where it is: %s", path, error)
            moved, doomed = True, path
        if moved:
            shutil.rmtree(doomed, ignore_errors=True)


def _number(path: Path) -> int:
    return int(path.name.removeprefix(_ATTEMPT))


def _rename(path: Path, target: Path) -> bool:
    """Rename a directory; False when somebody else was faster."""
    try:
        path.rename(target)
    except FileNotFoundError:
        return False
    return True


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        log.debug("%s is kept: another attempt is at work there", directory)
