"""A client that sends requests at a fixed rate, whether or not the answers keep up, and measures each answer's time.

The time of an answer runs from the moment at which its request was due, so a service that falls behind shows it.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

CONNECTIONS = 64


class Connection:
    """One HTTP/1.1 connection that is kept open."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        """Send a request; return the status and the body of the answer, which must have a Content-Length."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(content)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        fields = dict(line.lower().split(": ", 1) for line in answer.split("\r\n")[1:] if line)
        return int(answer.split()[1]), await reader.readexactly(int(fields["content-length"]))

    async def stream(self, path: str) -> "EventStream":
        """Open a stream of events."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(f"GET {path} HTTP/1.1\r\n{self._head}Accept: text/event-stream\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], head
        return EventStream(reader, writer)


@dataclass
class EventStream:
    """A stream of server-sent events, after its head."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def kinds(self, last: str) -> list[str]:
        """Return the kinds of the events until one of the kind `last`."""
        kinds: list[str] = []
        async for line in self.reader:
            if line.startswith(b"event: "):
                kinds.append(line.decode().split()[1])
                if kinds[-1] == last:
                    break
        return kinds


async def at_rate(
    port: int, key: str, rate: float, seconds: float, send: Callable[[Connection, int], Coroutine[Any, Any, int]]
) -> dict[str, Any]:
    """Call `send` `rate` times a second with a connection and a number; return the times of the answers."""
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(Connection(port, key))
    times: list[float] = []
    statuses: dict[int, int] = {}
    began = time.perf_counter() + 0.2

    async def one(number: int) -> None:
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        connection = await free.get()
        status = await send(connection, number)
        times.append(time.perf_counter() - due)
        free.put_nowait(connection)
        statuses[status] = statuses.get(status, 0) + 1

    await asyncio.gather(*(one(number) for number in range(int(rate * seconds))))
    ended = time.perf_counter()
    cuts = statistics.quantiles(times, n=1000)
    return {
        "answers by status": statuses,
        "answers a second": round(len(times) / (ended - began), 1),
        "p50, ms": round(cuts[499] * 1e3, 1),
        "p99, ms": round(cuts[989] * 1e3, 1),
        "slowest, ms": round(max(times) * 1e3, 1),
    }
