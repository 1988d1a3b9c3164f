"""Which service a command talks to.

`HEADROOM_URL` when it is set; else the stack that runs on `HEADROOM_HOME`; else a stack of the command's own, for as
long as the command runs.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from service.cli.client import Client
from service.errors import HeadroomError, InvalidRequest
from service.local.home import Home
from service.settings import Settings, settings


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


def load_settings() -> Settings:
    """Return the settings. Raises InvalidRequest for an environment variable that is not allowed."""
    try:
        return settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "HEADROOM_" + "_".join(str(part) for part in first["loc"]).upper()
        raise InvalidRequest(name, first["input"], first["msg"]) from error


@contextlib.contextmanager
def connect(*, workers: bool) -> Iterator[Service]:
    """Connect to the service in use. With `workers`, one that will run a job to its end."""
    chosen = load_settings()
    home = Home(chosen)
    if chosen.url:
        with _client(chosen.url, home.key()) as client:
            yield Service(client, check=_nothing, on_this_machine=False)
        return
    running = home.running()
    if running and (running.purpose == "serve" or not workers):
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
