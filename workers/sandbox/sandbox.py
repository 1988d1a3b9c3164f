"""Runs the programs of a job, which read what strangers wrote, so that they harm nothing else.

A program gets an allow-list of environment variables, a private home, no network, limits of memory, CPU time and file
size, and another user where one is set.
"""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from service.contracts.progress import Failed
from service.errors import InvalidRequest
from service.settings import Settings
from workers.children import Ended, run_child
from workers.failures import OUT_OF_MEMORY, JobFailed
from workers.sandbox.cgroup import Group
from workers.sandbox.environment import cache_directory, private_home
from workers.sandbox.family import Family
from workers.sandbox.limits import FILE_SIZE_LIMIT, Limits, limits_of, readable
from workers.sandbox.probe import Offer, check_user, launched, offer
from workers.sandbox.user import User, find_user, hand_over, hand_over_all

WATCH_SECONDS = 0.2
_PASSABLE = 0o711
_PROGRAMS = Path(__file__).parents[1]


class _Watch:
    """Keeps an eye on the memory of a program that is in no cgroup."""

    def __init__(self, family: Family, limits: Limits, what: str) -> None:
        self.peak = 0
        self._family = family
        self._limits = limits
        self._what = what
        self._looked_at = float("-inf")

    def check(self) -> None:
        """Look, if it is time. Raises JobFailed for a program that holds too much."""
        now = time.monotonic()
        if now - self._looked_at < WATCH_SECONDS:
            return
        self._looked_at = now
        resident = self._family.resident_bytes()
        self.peak = max(self.peak, resident)
        if resident > self._limits.memory_bytes:
            raise JobFailed(self._limits.memory_reached(self._what, resident, "the worker"))


@dataclass(frozen=True)
class Sandbox:
    """How a worker runs the programs of its jobs."""

    limits: Limits
    offer: Offer
    user: User | None
    caches: Path
    """Where programs keep what they compile."""

    def run(
        self,
        program: Sequence[str],
        what: str,
        directory: Path,
        check: Callable[[], None],
        on_line: Callable[[bytes], None],
        *,
        weights: int = 0,
    ) -> Ended:
        """Run a program to its end, as `children.run_child` does; nothing that it started outlives it.

        Args:
            program: What to run, with its arguments.
            what: Its name in messages, such as "the measurement".
            directory: Gets the private home, for the time of the run.
            check: Called several times a second; what it raises ends the program.
            on_line: Gets every line of standard output.
            weights: Size of the weight files that it maps, in bytes.

        Raises JobFailed for a program that reached a limit, and what `check` and `on_line` raise.
        """
        family = Family.begin()
        with private_home(directory, self.caches, self.user) as environment, self._group() as group:
            watch = _Watch(family, self.limits, what)
            command = launched(
                program,
                network=self.offer.network,
                cgroup=None if group is None else group.path,
                rlimits=self.limits.rlimits(in_cgroup=group is not None, weights=weights),
                user=self.user,
            )

            def checked() -> None:
                check()
                if group is None:
                    watch.check()

            ended = run_child(command, environment=environment, check=checked, on_line=on_line, clear_up=family.end)
            self._check_limits(what, ended, group)
            peak = watch.peak if group is None else group.peak()
            return replace(ended, peak_bytes=peak)

    def explained(self, failed: Failed, ended: Ended) -> Failed:
        """Return a program's own word on why it failed, with the limit that it met, if any."""
        if failed.code == OUT_OF_MEMORY:
            held = "" if not ended.peak_bytes else f", and this one held up to {readable(ended.peak_bytes)}"
            limit = f"a job may have {readable(self.limits.memory_bytes)} (HEADROOM_JOB_MEMORY){held}"
        elif failed.code == FILE_SIZE_LIMIT:
            limit = f"a job's files may have {readable(self.limits.file_bytes)} (HEADROOM_JOB_FILE_BYTES)"
        else:
            return failed
        return failed.model_copy(update={"message": f"{failed.message}; {limit}"})

    def open(self, directory: Path, home: Path) -> None:
        """Make a directory that programs write to, mode 700, or take over what an earlier attempt left.

        `home` (HEADROOM_HOME) and what lies between may be entered, though not listed, by the programs' user.
        """
        directory.mkdir(mode=0o700, exist_ok=True)
        if self.user is not None:
            hand_over_all(directory, self.user)
            for parent in directory.parents:
                if parent.is_relative_to(home):
                    parent.chmod(_PASSABLE)

    def share(self, file: Path, directory: Path) -> Path:
        """Return a file of this worker's in `directory`, for programs to read: a link, or a copy for another user.

        It stays as long as the directory does, also when the file's first name goes, as of a copy in a cache.
        """
        shared = directory / file.name
        if shared != file:
            shared.unlink(missing_ok=True)
            _link_or_copy(file, shared, may_link=self.user is None)
        hand_over(shared, self.user)
        return shared

    @property
    def fetching_umask(self) -> int:
        """Of what fetches models: another user of programs must be able to read them; -1: the worker's."""
        return -1 if self.user is None else 0o022

    def description(self) -> str:
        """Return in one line how jobs are confined, and why not better."""
        troubles = self.offer.troubles
        if self.offer.network is None:
            why = f"no namespace can be had ({troubles['namespace']}), nor a filter ({troubles['network']})"
            network = f"with the network of this machine, for {why}"
        elif self.offer.network == "seccomp":
            network = f"without network by a filter, for no namespace can be had ({troubles['namespace']})"
        else:
            network = "without network"
        if self.offer.cgroups is None:
            by = f"by RLIMIT_DATA and a watch, for no cgroup v2 is delegated ({troubles['cgroups']})"
        else:
            by = f"by cgroups in {self.offer.cgroups.root}"
        user = "" if self.user is None else f", as user {self.user.uid}"
        return f"jobs run {network}, with {readable(self.limits.memory_bytes)} of memory {by}{user}"

    @contextmanager
    def _group(self) -> Iterator[Group | None]:
        if self.offer.cgroups is None:
            yield None
            return
        with self.offer.cgroups.group(f"headroom-job-{os.getpid()}", self.limits.memory_bytes) as group:
            yield group

    def _check_limits(self, what: str, ended: Ended, group: Group | None) -> None:
        if group is not None and group.was_killed():
            raise JobFailed(self.limits.memory_reached(what, group.peak(), "the kernel"))
        if ended.status == -signal.SIGXCPU:
            raise JobFailed(self.limits.cpu_reached(what))
        if ended.status == -signal.SIGXFSZ or os.strerror(errno.EFBIG) in ended.last_error:
            raise JobFailed(self.limits.file_size_reached(what))


def _link_or_copy(file: Path, target: Path, *, may_link: bool) -> None:
    if may_link:
        with suppress(OSError):  # another file system, or one without links
            os.link(file, target)
            return
    shutil.copyfile(file, target)


def open_sandbox(settings: Settings) -> Sandbox:
    """Return the sandbox of a worker.

    Raises InvalidRequest for a HEADROOM_MEASUREMENT_USER or a HEADROOM_HOME that is not allowed.
    """
    home = settings.home.expanduser().absolute()
    user = find_user(settings.measurement_user)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        caches = cache_directory(home, user)
    except OSError as error:
        allowed = f"a directory that the worker can write to ({error.strerror})"
        raise InvalidRequest("HEADROOM_HOME", str(home), allowed) from error
    if user is not None:
        for parent in (home, caches.parent):
            parent.chmod(_PASSABLE)
        check_user(str(settings.measurement_user), user, (home, caches, _PROGRAMS))
    return Sandbox(limits_of(settings), offer(), user, caches)
