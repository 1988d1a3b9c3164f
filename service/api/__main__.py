"""`python -m service.api`: serve the API, on an address or on a listening socket that the parent opened."""

import argparse
import gc
import socket
import sys

import uvicorn
from fastapi import FastAPI

from service import queue
from service.api.app import make_app
from service.settings import Settings, settings
from service.startup import keep_private, open_stores, reporting_failure

SHUTDOWN_SECONDS = 2
"""How long open connections, such as event streams, may continue after the signal to stop."""

SWITCH_SECONDS = 0.001
"""How long a thread keeps the others waiting, the event loop among them; Python's own is 5 ms, for each such thread."""


def main() -> None:
    """Serve until SIGINT or SIGTERM.

    Exits with 2 when a setting is not allowed or there is no API key, and with 3 when the database does not answer at
    the start.
    """
    parser = argparse.ArgumentParser(prog="python -m service.api", description="Serve the Headroom API.")
    parser.add_argument("--fd", type=int, help="inherited listening socket; default: HEADROOM_HOST and HEADROOM_PORT")
    descriptor: int | None = parser.parse_args().fd
    keep_private()
    sys.setswitchinterval(SWITCH_SECONDS)
    with reporting_failure("api"):
        chosen = settings()
        app = _app(chosen)
    # Full collections then look at the objects of requests alone: they are short, and come before many have piled up.
    gc.collect()
    gc.freeze()
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=chosen.host,
            port=chosen.port,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            server_header=False,
            access_log=False,
        )
    )
    server.run(sockets=None if descriptor is None else [socket.socket(fileno=descriptor)])


def _app(chosen: Settings) -> FastAPI:
    stores = open_stores(chosen)
    stores.keys.check()
    if chosen.presigned_downloads and not chosen.artifacts_place.startswith("s3://"):
        print(
            f"headroom api: HEADROOM_PRESIGNED_DOWNLOADS has no effect: {stores.artifacts.url} is a directory, which "
            "has no URLs of its own; the API sends the files itself",
            file=sys.stderr,
            flush=True,
        )
    broker = queue.make_app(chosen) if chosen.broker_url else None
    return make_app(chosen, stores, broker)


if __name__ == "__main__":
    main()
