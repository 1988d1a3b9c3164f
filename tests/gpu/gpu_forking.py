"""Starts the steps of a dry run as forks of a process that has imported the program once.

Importing torch, transformers and bitsandbytes takes longer than most steps do with small sizes.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import util
from multiprocessing.connection import wait
from pathlib import Path
from threading import Lock
from typing import Any, TextIO

PRELOADED = "workers.measurement.__main__"
_lock = Lock()
"""Around what reads the exit statuses of all children."""


def preload(environment: Mapping[str, str], module: str = PRELOADED) -> None:
    """Have the process that is forked import a module, once it is needed, in an environment."""
    util.get_temp_dir()  # not in the folder that the environment names, which goes before this process ends
    os.environ.update(environment)
    sys.path += [path for path in environment["PYTHONPATH"].split(os.pathsep) if path not in sys.path]
    multiprocessing.get_context("forkserver").set_forkserver_preload([module])


class Forked:
    """A Python program in a fork, a process group of its own; used as a `subprocess.Popen` is."""

    def __init__(self, command: Sequence[str], stderr: TextIO) -> None:
        """`command`: the file and its arguments. Standard error goes to a file, standard output can be read."""
        context = multiprocessing.get_context("forkserver")
        read_end, write_end = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(tuple(command), write_end, stderr.name))
        with _lock:
            self._process.start()
        write_end.close()
        self.stdout: Any = os.fdopen(os.dup(read_end.fileno()), encoding="utf-8")
        read_end.close()
        self.pid: int = self._process.pid or 0
        self.returncode: int | None = None
        while not wait([self._process.sentinel], 0) and os.getpgid(self.pid) != self.pid:
            time.sleep(0.01)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit status, -N when signal N ended it. Raises subprocess.TimeoutExpired."""
        if not wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired("step", timeout or 0.0)
        with _lock:
            self._process.join()
        self.returncode = self._process.exitcode
        return self.returncode or 0


def _run(command: tuple[str, ...], stdout: Any, log: str) -> None:
    """Run a program in this fork."""
    os.setsid()
    errors = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(stdout.fileno(), 1)
    os.dup2(errors, 2)
    stdout.close()
    sys.argv = list(command)
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
