"""The receivers of an audit's alerts: parses and checks the entries of `notify`.

Where a webhook's name leads is checked again whenever a message is sent; here only addresses that are private as they
stand are refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from service.audits.networks import Network, is_allowed, is_local_name, literal
from service.errors import InvalidRequest

Channel = Literal["webhook", "email"]
LONGEST_ADDRESS = 2048
"""Characters of a webhook's URL."""
_LONGEST_MAILBOX = 254
_FORMS = '{"webhook": "https://HOST/PATH"} or {"email": "NAME@HOST"}'
_URL = "http:// or https:// URLs in ASCII, without user name and fragment, such as https://example.org/hook"
_PUBLIC = "addresses in public networks, and in those of the service's setting HEADROOM_WEBHOOK_NETWORKS"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_LARGEST_PORT = 65535
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_MAILBOX = re.compile(rf"(?=[^@]{{1,64}}@){_ATOM}(\.{_ATOM})*@{_LABEL}(\.{_LABEL})*")
"""RFC 5322: dot-atoms, unquoted; RFC 5321: up to 64 characters before the @."""


class Receiver(NamedTuple):
    """A webhook or a mailbox that gets the alerts."""

    channel: Channel
    address: str
    """URL of a webhook, or a mailbox."""


class Reach(NamedTuple):
    """The receivers that the service can send to."""

    networks: tuple[Network, ...] = ()
    """Networks besides the public ones that webhooks may be in."""
    mail: bool = False
    """Whether it can send e-mail."""


PUBLIC = Reach()
"""Webhooks in public networks alone."""


def receivers(notify: Iterable[Mapping[str, str]]) -> tuple[Receiver, ...]:
    """Return the receivers that entries of `notify` name, each once. Entries of another form are left out."""
    named = [Receiver(*entry) for item in notify for entry in item.items()]  # type: ignore[arg-type]
    return tuple(dict.fromkeys(one for one in named if one.channel in ("webhook", "email")))


def check(notify: Sequence[Mapping[str, str]], reach: Reach) -> tuple[Receiver, ...]:
    """Return the receivers that entries of `notify` name, such as {"webhook": "https://example.org/hook"}.

    Raises InvalidRequest for an entry of another form, an address that is none, one that is private as it stands, and
    one that is there twice.
    """
    checked: list[Receiver] = []
    for entry in notify:
        if len(entry) != 1 or next(iter(entry)) not in ("webhook", "email"):
            raise InvalidRequest("notify", dict(entry), _FORMS)
        receiver = receivers([entry])[0]
        if receiver.channel == "webhook":
            _check_webhook(receiver.address, reach.networks)
        else:
            _check_mailbox(receiver.address, mail=reach.mail)
        if receiver in checked:
            raise InvalidRequest("notify", receiver.address, "each receiver once", problem="is there twice")
        checked.append(receiver)
    return tuple(checked)


def is_mailbox(address: str) -> bool:
    """Return whether a text is a mailbox, which no mail header or command can be hidden in."""
    return len(address) <= _LONGEST_MAILBOX and _MAILBOX.fullmatch(address) is not None


def _check_mailbox(address: str, *, mail: bool) -> None:
    if not is_mailbox(address):
        raise InvalidRequest(
            "notify", address, "mailboxes such as team@example.org", problem="is not an e-mail address"
        )
    if not mail:
        raise InvalidRequest(
            "notify",
            address,
            "webhooks, as long as the service has no HEADROOM_SMTP_URL and HEADROOM_MAIL_FROM",
            problem="cannot be sent e-mail",
        )


def _check_webhook(address: str, networks: Iterable[Network]) -> None:
    host = webhook_host(address)
    if host is None:
        raise InvalidRequest("notify", address, _URL, problem="is not a webhook's address")
    at = literal(host)
    private = is_local_name(host) and not networks if at is None else not is_allowed(at, networks)
    if private:
        raise InvalidRequest("notify", address, _PUBLIC, problem="is in a private network")


def webhook_host(address: str) -> str | None:
    """Return the host of a webhook's URL, in ASCII; None for a text that is not such a URL."""
    import httpx

    if len(address) > LONGEST_ADDRESS or not address.isascii() or not address.isprintable() or " " in address:
        return None
    try:
        url = httpx.URL(address)
        port = url.port
    except (httpx.InvalidURL, ValueError):
        return None
    if (
        url.scheme not in ("http", "https")
        or url.userinfo
        or url.fragment
        or not (port is None or 1 <= port <= _LARGEST_PORT)
    ):
        return None
    return url.raw_host.decode("ascii") or None
