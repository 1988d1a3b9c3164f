"""The stack's programs: child processes with an environment and a log each."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from service.errors import StackStopped
from service.local.home import open_private
from service.processes import spawn, terminate

LOG_TAIL_LINES = 5


class Programs:
    """Child processes by name. They end with this process, however it ends."""

    def __init__(self, home: Path, logs: Path) -> None:
        self.environment: dict[str, str] = {"HEADROOM_HOME": str(home)}
        """What every program gets besides the environment of this process, which keeps its API key to itself."""
        self._home = home
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, name: str, arguments: Sequence[str], *, pass_fds: tuple[int, ...] = (), more: Mapping[str, str] = {}
    ) -> None:
        """Start Python with `arguments`, with the variables `more` in its environment."""
        environment = {key: value for key, value in os.environ.items() if key != "HEADROOM_API_KEY"}
        with self.log(name) as log:
            # -P and the home as working directory: no file of the user's working directory is imported.
            self._processes[name] = spawn(
                [sys.executable, "-P", *arguments],
                env={**environment, **self.environment, **more},
                cwd=self._home,
                umask=0o077,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
            )

    def add(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Take over a process that was started elsewhere."""
        self._processes[name] = process

    def exit_status(self, name: str) -> int | None:
        """Return the exit status of a program, -N where signal N ended it; None while it runs."""
        return self._processes[name].poll()

    def check(self, name: str) -> None:
        """Raise StackStopped when a program has ended."""
        if self.exit_status(name) is not None:
            raise StackStopped(f"{self.how_ended(name)}, so the stack stops; {self.log_tail(name)}")

    def how_ended(self, name: str) -> str:
        """Return in a few words how a program ended that has."""
        status = self._processes[name].returncode
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"the {name} ended ({how})"

    def stop(self, names: Sequence[str], grace_seconds: float) -> None:
        """End programs together; those that need longer than `grace_seconds` are killed."""
        ending = [process for name in names if (process := self._processes.pop(name, None)) is not None]
        if ending:
            with ThreadPoolExecutor(len(ending)) as pool:
                list(pool.map(lambda process: terminate(process, grace_seconds), ending))

    @contextlib.contextmanager
    def log(self, name: str) -> Iterator[IO[bytes]]:
        """Open a new log for a program; the one before it is kept beside it."""
        path = self._logs / f"{name}.log"
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_suffix(".log.1"))
        with open_private(path, "wb") as file:
            yield file

    def log_tail(self, name: str) -> str:
        """Return the end of a program's log, with the path of the log."""
        return log_tail(self._logs / f"{name}.log")


def log_tail(path: Path) -> str:
    """Return the end of a log, with its path."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n  ".join([f"the end of its log, {path}:", *lines]) if lines else f"its log, {path}, is empty"
