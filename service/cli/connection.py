"""Connects a command to a service.

The service is the one at `HEADROOM_URL`; if that is not set, the stack that runs on `HEADROOM_HOME`; if none runs, a
stack that the command starts. The last command that uses that one stops it.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from service.cli.client import Client
from service.contracts import refusals
from service.contracts.request import Device, MemorySize
from service.errors import HeadroomError, InvalidRequest
from service.local import sharing
from service.local.home import Home, Running
from service.local.workers import worker_environment
from service.settings import Settings, settings

_FORMS: dict[str, TypeAdapter[Any]] = {"memory": TypeAdapter(MemorySize), "device": TypeAdapter(Device)}
"""Parsers of `WorkerOptions`, by name."""


class WorkerMissing(HeadroomError):
    """The installation lacks the libraries that a worker needs."""

    code = "worker-not-installed"
    status = 422


class NoKey(HeadroomError):
    """No API key is set."""

    code = "no-api-key"
    status = 401


@dataclass(frozen=True)
class WorkerOptions:
    """What a command may choose for the worker that it starts, as it was typed; None leaves it to the settings."""

    memory: str | None = None
    device: str | None = None

    @property
    def typed(self) -> dict[str, str]:
        """Those that were typed, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Service:
    """The service that answers a command."""

    client: Client
    check: Callable[[], None]
    """Raises when the service belongs to commands, such as this one, and has stopped."""
    on_this_machine: bool
    """False for HEADROOM_URL: its workers see other files than this command does."""


@contextlib.contextmanager
def connect(*, workers: bool, options: WorkerOptions = WorkerOptions()) -> Iterator[Service]:
    """Connect to the service in use. With `workers`, one that will run a job to its end.

    `options` are for the worker of a stack of the command's own. Raises InvalidRequest where the worker is another's.
    """
    chosen = with_options(settings(), options)
    home = Home(chosen)
    if chosen.url:
        _check_own_worker(options, f"HEADROOM_URL is set, so the workers of {chosen.url} use their own setting")
        with _client(chosen.url, home.key()) as client:
            yield Service(client, check=_nothing, on_this_machine=False)
        return
    with (
        _with_workers(home, options, chosen) if workers else _without_workers(home, chosen) as (url, check),
        _client(url, home.key()) as client,
    ):
        yield Service(client, check=check, on_this_machine=True)


@contextlib.contextmanager
def _with_workers(home: Home, options: WorkerOptions, chosen: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the address of a stack with workers, and what raises when that has stopped."""

    def join(running: Running) -> None:
        hint = f"; give {' and '.join(f'--{name}' for name in options.typed)} to `headroom serve`"
        serving = running.purpose == "serve"
        _check_own_worker(options, f"The stack at {running.url} is already running{hint if serving else ''}")

    def start() -> None:
        require_worker()
        print(f"starting the stack in {home.path}", file=sys.stderr)

    environment = worker_environment(str(int(chosen.memory)), chosen.device)
    with sharing.shared_stack(home, environment, on_join=join, on_start=start) as running:
        yield running.url, partial(sharing.check, home) if running.purpose == "shared" else _nothing


@contextlib.contextmanager
def _without_workers(home: Home, chosen: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the address of a stack, with workers or not, and what raises when that has stopped."""
    running = home.running()
    if running is not None and running.purpose == "shared":
        with home.using():
            running = home.running()
            if running is not None:
                yield running.url, partial(sharing.check, home)
                return
    if running is not None:
        yield running.url, _nothing
        return
    from service.local.stack import Stack

    with Stack(chosen, purpose="command", devices=(), host="127.0.0.1", port=0) as stack:
        yield stack.url, stack.check


def with_options(present: Settings, options: WorkerOptions) -> Settings:
    """Return the settings with the options that were given in place of theirs. Raises InvalidRequest."""
    chosen = {}
    for name, value in options.typed.items():
        try:
            chosen[name] = _FORMS[name].validate_python(value)
        except ValidationError as error:
            raise InvalidRequest(f"--{name}", value, refusals.allowed(error.errors()[0])) from error
    return present.model_copy(update=chosen)


def _check_own_worker(options: WorkerOptions, problem: str) -> None:
    for name, value in options.typed.items():
        raise InvalidRequest(f"--{name}", value, f"only if this command starts the stack. {problem}")


def require_worker() -> None:
    """Raise WorkerMissing unless the packages that a measurement needs are installed."""
    missing = [name for name in ("torch", "transformers", "bitsandbytes") if importlib.util.find_spec(name) is None]
    if missing:
        raise WorkerMissing(
            f"a job needs {', '.join(missing)}, which are not installed; run pip install 'headroom[worker,local]', "
            "or set HEADROOM_URL to a running service"
        )


@contextlib.contextmanager
def _client(url: str, key: str | None) -> Iterator[Client]:
    if key is None:
        raise NoKey(f"HEADROOM_API_KEY is not set; set it to an API key of {url}")
    client = Client(url, key)
    try:
        yield client
    finally:
        client.close()


def _nothing() -> None:
    """Do nothing: the service is not this command's to watch."""
