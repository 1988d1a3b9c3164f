"""Passes TCP connections on to a server: ending it looks to clients as if the server were restarted.

Arguments: PORT TARGET_HOST TARGET_PORT.
"""

import asyncio
import contextlib
import sys


async def main(port: int, host: str, target: int) -> None:
    """Listen on the loopback address for as long as the process lives."""

    async def passing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            other_reader, other_writer = await asyncio.open_connection(host, target)
            await asyncio.gather(_copy(reader, other_writer), _copy(other_reader, writer))

    async with await asyncio.start_server(passing, "127.0.0.1", port) as server:
        await server.serve_forever()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await source.read(1 << 16):
            sink.write(chunk)
            await sink.drain()
    sink.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
