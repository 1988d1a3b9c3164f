"""Connections to the addresses that were checked, with one deadline for everything that is done on them.

A name is resolved once. If any of its addresses is not allowed, nothing is connected; otherwise the connection goes to
one of those very addresses, so that a name server cannot answer the check and the connection differently. The name is
still what the request's Host and the certificate's check use. Every read and write gets the time that is left until
the deadline, so that a receiver that sends a byte now and then cannot hold a connection for longer.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Any

import httpcore

from service.audits.networks import Address, Network, is_allowed

Resolve = Callable[[str, int], Sequence[Address]]
_WRITTEN = 1 << 14
"""Bytes that are given to the socket at once."""


class NotAllowed(Exception):
    """Raised instead of a connection to an address outside of the networks that may be reached."""


class NameUnknown(Exception):
    """Raised when a host name cannot be resolved."""


def resolve(host: str, port: int) -> list[Address]:
    """Return the addresses of a host name, in the system's order. Raises NameUnknown."""
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NameUnknown(
            f"The name {host} cannot be resolved: {getattr(error, 'strerror', None) or error}."
        ) from error
    return list(dict.fromkeys(ip_address(answer[4][0]) for answer in answers))


def checked_addresses(host: str, port: int, networks: Iterable[Network], resolve: Resolve) -> Sequence[Address]:
    """Return the addresses of a host, all of them allowed. Raises NotAllowed and NameUnknown."""
    addresses = resolve(host, port)
    for address in addresses:
        if not is_allowed(address, networks):
            where = host if host == str(address) else f"{host} ({address})"
            raise NotAllowed(f"{where} is in a private network, which HEADROOM_WEBHOOK_NETWORKS does not allow.")
    if not addresses:
        raise NameUnknown(f"The name {host} has no address.")
    return addresses


class CheckedBackend(httpcore.NetworkBackend):
    """Connects to allowed addresses alone, within `seconds` from now for all that is done on the connections."""

    def __init__(self, networks: Iterable[Network], seconds: float, resolve: Resolve) -> None:
        self._networks = tuple(networks)
        self._deadline = time.monotonic() + seconds
        self._resolve = resolve
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline is in its place
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of `host` that answers. Raises NotAllowed, NameUnknown, httpcore's errors."""
        addresses = checked_addresses(host, port, self._networks, self._resolve)
        for position, address in enumerate(addresses):
            share = time_left(self._deadline) / (len(addresses) - position)
            try:
                stream = self._plain.connect_tcp(str(address), port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if position == len(addresses) - 1:
                    raise
            else:
                return _TimedStream(stream, self._deadline)
        raise AssertionError("a host without addresses was connected to")


class _TimedStream(httpcore.NetworkStream):
    """A connection on which everything ends by a deadline."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """Return up to `max_bytes` bytes. Raises httpcore.ReadTimeout after the deadline."""
        return self._stream.read(max_bytes, time_left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Send bytes. Raises httpcore.WriteTimeout after the deadline."""
        for start in range(0, len(buffer), _WRITTEN):
            self._stream.write(buffer[start : start + _WRITTEN], time_left(self._deadline))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        """Return the connection with TLS on it, the certificate checked against `server_hostname`."""
        return _TimedStream(
            self._stream.start_tls(ssl_context, server_hostname, time_left(self._deadline)), self._deadline
        )

    def get_extra_info(self, info: str) -> Any:
        """Return what the underlying connection knows."""
        return self._stream.get_extra_info(info)


def time_left(deadline: float) -> float:
    """Return the seconds until a moment of the monotonic clock. Raises httpcore.ReadTimeout where it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left
