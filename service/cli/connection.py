"""Which service a command talks to.

`HEADROOM_URL` when it is set; else the stack that runs on `HEADROOM_HOME`; else a stack of the command's own, for as
long as the command runs.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import ByteSize, TypeAdapter, ValidationError

from service.cli.client import Client
from service.contracts.request import MemorySize
from service.errors import HeadroomError, InvalidRequest
from service.local.home import Home
from service.settings import Settings, settings

_MEMORY: TypeAdapter[ByteSize] = TypeAdapter(MemorySize)


class WorkerMissing(HeadroomError):
    """The installation can submit jobs and read reports, but not run a job."""

    code = "worker-not-installed"
    status = 422


class NoKey(HeadroomError):
    """No API key is at hand."""

    code = "no-api-key"
    status = 401


@dataclass(frozen=True)
class Service:
    """The service that answers a command."""

    client: Client
    check: Callable[[], None]
    """Raises when the service belongs to this command and a part of it has died."""
    on_this_machine: bool
    """False for HEADROOM_URL: its workers see other files than this command does."""


@contextlib.contextmanager
def connect(*, workers: bool, memory: str | None = None) -> Iterator[Service]:
    """Connect to the service in use. With `workers`, one that will run a job to its end.

    `memory` is for the worker of a stack of the command's own. Raises InvalidRequest where the worker is another's.
    """
    chosen = with_memory(settings(), memory)
    home = Home(chosen)
    if chosen.url:
        _check_own_worker(memory, f"HEADROOM_URL is set, and the workers of {chosen.url} have their own")
        with _client(chosen.url, home.key()) as client:
            yield Service(client, check=_nothing, on_this_machine=False)
        return
    running = home.running()
    if running and (running.purpose == "serve" or not workers):
        _check_own_worker(memory, f"the stack at {running.url} has its own; give --memory to `headroom serve`")
        with _client(running.url, home.key()) as client:
            yield Service(client, check=_nothing, on_this_machine=True)
        return
    if workers:
        require_worker()
        print(f"starting the stack in {home.path}", file=sys.stderr)
    from service.local.stack import Stack

    with (
        Stack(chosen, purpose="command", workers=workers, host="127.0.0.1", port=0) as stack,
        _client(stack.url, stack.key) as client,
    ):
        yield Service(client, check=stack.check, on_this_machine=True)


def with_memory(present: Settings, memory: str | None) -> Settings:
    """Return the settings with what `--memory` says, where it was given. Raises InvalidRequest."""
    if memory is None:
        return present
    try:
        return present.model_copy(update={"memory": _MEMORY.validate_python(memory)})
    except ValidationError as error:
        raise InvalidRequest("--memory", memory, error.errors()[0]["msg"]) from error


def _check_own_worker(memory: str | None, problem: str) -> None:
    if memory is not None:
        raise InvalidRequest("--memory", memory, f"allowed: for a stack that this command starts; {problem}")


def require_worker() -> None:
    """Raise WorkerMissing unless the packages that a measurement needs are installed."""
    missing = [name for name in ("torch", "transformers", "bitsandbytes") if importlib.util.find_spec(name) is None]
    if missing:
        raise WorkerMissing(
            f"a job cannot run here without {', '.join(missing)}: pip install 'headroom[worker,local]', "
            "or set HEADROOM_URL to a running service"
        )


@contextlib.contextmanager
def _client(url: str, key: str | None) -> Iterator[Client]:
    if key is None:
        raise NoKey(f"HEADROOM_API_KEY: it is not set, and {url} asks for a key; set it to one that the service knows")
    client = Client(url, key)
    try:
        yield client
    finally:
        client.close()


def _nothing() -> None:
    """Do nothing: the service is not this command's to watch."""
