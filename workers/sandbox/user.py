"""The user that runs a job's programs, where HEADROOM_MEASUREMENT_USER names one."""

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from service.errors import InvalidRequest

VARIABLE = "HEADROOM_MEASUREMENT_USER"


@dataclass(frozen=True)
class User:
    """A user of this machine."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """Every group of the user, such as those that may use a GPU."""


def find_user(name: str | None) -> User | None:
    """Return the user of that name; None for None. Raises InvalidRequest for one that is not there, and for root."""
    if name is None:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        entry = None
    if entry is None or entry.pw_uid == 0:
        raise InvalidRequest(VARIABLE, name, "the name of a user of this machine other than root")
    return User(entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(name, entry.pw_gid)))


def hand_over(path: Path, user: User | None) -> None:
    """Make a file or directory the user's. Nothing happens for None. Raises OSError."""
    if user is not None:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def hand_over_all(directory: Path, user: User | None) -> None:
    """Make a directory and all files in it the user's; no program of the user may run meanwhile.

    A file with a second name is left alone: the user may have linked a file of somebody else's.
    """
    if user is None:
        return
    hand_over(directory, user)
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(parent, name)
            present = path.lstat()
            if present.st_uid != user.uid and (stat.S_ISDIR(present.st_mode) or present.st_nlink == 1):
                hand_over(path, user)
