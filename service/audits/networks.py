"""Decides which network addresses a webhook may be sent to: public ones, and networks that the operator allows.

An address is public if it is globally reachable unicast. An IPv6 address that carries an IPv4 address is judged by
that one, since a gateway would pass the request on to it.
"""

import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_UNICAST = IPv6Network("2000::/3")
"""Outside of it IPv6 has no global unicast addresses."""
_CARRIERS = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (IPv6Network("::ffff:0:0:0/96"), 0),  # IPv4-translated
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("::/96"), 0),  # IPv4-compatible
    (IPv6Network("2002::/16"), 80),  # 6to4
)
"""IPv6 networks whose addresses carry an IPv4 address, and how many bits follow it."""


def is_allowed(address: Address, networks: Iterable[Network]) -> bool:
    """Return whether a request may go to an address: it is public, or in one of the allowed networks."""
    carried = _carried(address)
    meant = carried or address
    if any(one in network for network in networks for one in (address, meant) if one.version == network.version):
        return True
    if isinstance(meant, IPv6Address) and meant not in _UNICAST:
        return False
    return meant.is_global and not meant.is_multicast


def literal(host: str) -> Address | None:
    """Return the address that a URL's host is, in any of the forms that resolvers read (`127.1`, `0x7f000001`).

    None for a name.
    """
    bare = host.removeprefix("[").removesuffix("]")
    with suppress(ValueError):
        return ip_address(bare)
    with suppress(OSError, UnicodeError):
        return IPv4Address(socket.inet_aton(bare))
    return None


def is_local_name(host: str) -> bool:
    """Return whether a host name always means this machine (RFC 6761)."""
    return host.lower().rstrip(".").rpartition(".")[2] == "localhost"


def _carried(address: Address) -> IPv4Address | None:
    if isinstance(address, IPv6Address):
        for network, below in _CARRIERS:
            if address in network:
                return IPv4Address(int(address) >> below & 0xFFFFFFFF)
    return None
