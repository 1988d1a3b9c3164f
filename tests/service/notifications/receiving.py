"""A real webhook receiver on this machine."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Received(NamedTuple):
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[BaseHTTPRequestHandler], None]


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    """Return an answer of a receiver; `_` in the names of headers stands for `-`."""

    def give(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return give


@dataclass
class Receiver:
    """An HTTP server that keeps what it gets; it gives one answer after another, the last one to all that follow."""

    port: int
    answers: list[Answer] = field(default_factory=lambda: [answer(204)])
    received: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        """A webhook's address."""
        return f"http://127.0.0.1:{self.port}/hook"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Keep one request and answer it."""
        body = handler.rfile.read(int(handler.headers["content-length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.received.append(Received(handler.path, headers, body))
        give = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        with suppress(OSError):  # the sender may have hung up
            give(handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Say nothing of senders that hang up."""


def serve(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Yield a running receiver; with a context, over TLS."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            receiver.answer(self)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = _Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield receiver
    server.shutdown()
    thread.join()
    server.server_close()


def endless(status: int) -> Answer:
    """Return an answer whose body never ends."""

    def give(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 65536)
            time.sleep(0.001)

    return give
