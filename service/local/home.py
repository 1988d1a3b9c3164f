"""`HEADROOM_HOME`: the directory of the embedded stack's files, which only its owner can read.

api-key      the key that the API asks for; made at the first start
headroom.db  the database, unless HEADROOM_DATABASE_URL names another
artifacts/   files of reports, by SHA-256
work/        what the jobs that have not ended have come to
logs/        one log per child, and the one before it
lock         held while a stack runs, so that there is one per home
users        held by every command that uses the stack that commands share
start        held while a command looks for that stack, and starts it
stack.json   address of the running stack, for other commands
"""

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from service.errors import HomeInUse, InvalidRequest
from service.settings import Settings

LOCK_SECONDS = 5.0
"""How long to wait for a stack that is about to end."""
SHARED_SECONDS = 60.0
"""How long a command waits while another one starts or stops the stack that they share."""
KEY_BYTES = 32
"""Random bytes in an API key."""

Purpose = Literal["serve", "shared", "command"]
"""`serve`: stays until stopped. `shared`: ends with the last command that uses it. `command`: has no workers, and ends
with the command that started it."""


@dataclass(frozen=True)
class Running:
    """The stack that runs on a home."""

    url: str
    pid: int
    purpose: Purpose


class Home:
    """The directory `HEADROOM_HOME`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.path = settings.home.expanduser().absolute()
        self.logs = self.path / "logs"
        self._key = self.path / "api-key"
        self._users: IO[Any] | None = None
        """The file of the users while this process lets nobody use the shared stack anymore."""
        self._record = self.path / "stack.json"

    def prepare(self) -> None:
        """Make the directory, mode 700. Raises InvalidRequest when it cannot be made or written to."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            allowed = f"a directory that you can write to ({error.strerror})"
            raise InvalidRequest("HEADROOM_HOME", str(self.path), allowed) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the home for one stack. Raises HomeInUse when another keeps holding it.

        The kernel frees the lock when its holder dies, however it dies.
        """
        with open_private(self.path / "lock", "a") as file:
            deadline = time.monotonic() + LOCK_SECONDS
            while not _locked(file.fileno()):
                if time.monotonic() > deadline:
                    raise HomeInUse(self._in_use_message())
                time.sleep(0.1)
            yield

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Be the one command that looks for the shared stack and starts it. Raises HomeInUse after a long wait."""
        with open_private(self.path / "start", "a") as file:
            self._wait_for(file.fileno(), fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def using(self) -> Iterator[Callable[[], bool]]:
        """Keep the shared stack running; the value says whether nobody else uses it, and lets nobody begin to.

        Raises HomeInUse after a long wait for a stack that ends.
        """
        with open_private(self.path / "users", "a") as file:
            self._wait_for(file.fileno(), fcntl.LOCK_SH)
            yield lambda: _locked(file.fileno())

    def is_unused(self) -> bool:
        """Whether no command uses the shared stack; if so, none begins to while this process lives."""
        file = open_private(self.path / "users", "a")
        if _locked(file.fileno()):
            self._users = file
            return True
        file.close()
        return False

    def is_locked(self) -> bool:
        """Whether a stack runs on this home, or begins or ends to."""
        try:
            with open_private(self.path / "lock", "a") as file:
                return not _locked(file.fileno())
        except OSError:
            return False

    def key(self) -> str | None:
        """Return the API key in use: HEADROOM_API_KEY, else the one that the first start made, else None."""
        if self.settings.api_key is not None:
            return self.settings.api_key.get_secret_value()
        try:
            return self._key.read_text(encoding="ascii").strip() or None
        except FileNotFoundError:
            return None

    def make_key(self) -> str:
        """Return the API key in use; make one, in a file of mode 600, when there is none."""
        present = self.key()
        if present is not None:
            return present
        made = secrets.token_urlsafe(KEY_BYTES)
        self._write(self._key, made + "\n")
        return made

    def running(self) -> Running | None:
        """Return the stack that runs on this home, or None."""
        if not self.is_locked():
            return None
        try:
            return Running(**json.loads(self._record.read_text(encoding="utf-8")))
        except OSError:
            return None

    @contextlib.contextmanager
    def announce(self, running: Running) -> Iterator[None]:
        """Let other commands find the stack for as long as the context lasts."""
        self._write(self._record, json.dumps(asdict(running)))
        try:
            yield
        finally:
            self._record.unlink(missing_ok=True)

    def _write(self, path: Path, text: str) -> None:
        """Write a file of mode 600, whole or not at all."""
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with open_private(partial, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def _wait_for(self, descriptor: int, kind: int) -> None:
        deadline = time.monotonic() + SHARED_SECONDS
        while not _locked(descriptor, kind):
            if time.monotonic() > deadline:
                raise HomeInUse(self._in_use_message())
            time.sleep(0.05)

    def _in_use_message(self) -> str:
        record = self.running()
        holder = f"process {record.pid} at {record.url}" if record else "another process"
        return (
            f"HEADROOM_HOME: {str(self.path)!r} is in use by {holder}; wait for it, share one stack by running "
            "`headroom serve` first, or set HEADROOM_HOME to another directory"
        )


def open_private(path: Path, mode: str) -> IO[Any]:
    """Open a file that has mode 600 if this makes it; text is UTF-8."""
    return open(
        path,
        mode,
        encoding=None if "b" in mode else "utf-8",
        opener=lambda name, flags: os.open(name, flags, 0o600),
    )


def _locked(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
