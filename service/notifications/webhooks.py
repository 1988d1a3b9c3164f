"""One attempt to deliver a message to a webhook, by the convention of Standard Webhooks.

The same message has the same `webhook-id` at every attempt, so that a receiver can tell a repetition. The header
`webhook-timestamp` is the time of the attempt, and the signature covers id, time and body. While a secret is being
replaced, there is one signature with each. Only a status of 200 to 299 is a success; redirects are not followed; of
another answer, the first kilobyte is kept, and of a success nothing is read. An error's `Retry-After` is honored.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpcore
import httpx
from standardwebhooks import Webhook

from service.audits.networks import Network
from service.audits.receivers import webhook_host
from service.notifications.connection import (
    CheckedBackend,
    NameUnknown,
    NotAllowed,
    Resolve,
    checked_addresses,
    resolve,
)
from service.store.notifications.attempts import SECONDS, Attempted

_SHOWN = 1024
"""Bytes of an answer that are kept."""
_PORTS = {"http": 80, "https": 443}
_FOREVER = 10**9
"""Seconds."""
GONE = 410


class Sender:
    """Sends messages to webhooks. Safe to use from several threads."""

    def __init__(
        self, networks: Iterable[Network] = (), *, seconds: float = SECONDS, resolve: Resolve = resolve
    ) -> None:
        self._networks = tuple(networks)
        self._seconds = seconds
        self._resolve = resolve
        self._tls = httpx.create_ssl_context()

    def send(self, url: str, message_id: str, body: str, secrets: Sequence[str], at: datetime) -> Attempted:
        """Post a message and return what became of it; a failure of the receiver raises nothing.

        Args:
            url: Of the webhook.
            message_id: The same for all attempts at one message.
            body: JSON.
            secrets: The present one and, while it is being replaced, the former one.
            at: The time of the attempt.
        """
        if webhook_host(url) is None:
            return Attempted("refused", f"{url} is not a webhook's address.")
        headers: dict[bytes | str, bytes | str] = {
            "Host": httpx.URL(url).netloc.decode("ascii"),
            "Content-Type": "application/json",
            "User-Agent": "Headroom",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(Webhook(secret).sign(message_id, at, body) for secret in secrets),
        }
        try:
            return self._post(httpx.URL(url), headers, body.encode(), at)
        except httpcore.TimeoutException:
            return Attempted("failed", f"There was no whole answer within {self._seconds:g} s.")
        except (NotAllowed, NameUnknown) as error:
            return Attempted("failed", str(error))
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            return Attempted("failed", f"The connection failed: {str(error) or type(error).__name__}.")

    def _post(self, url: httpx.URL, headers: dict[bytes | str, bytes | str], body: bytes, at: datetime) -> Attempted:
        backend = CheckedBackend(self._networks, self._seconds, self._resolve)
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        with (
            httpcore.ConnectionPool(ssl_context=self._tls, network_backend=backend) as pool,
            pool.stream("POST", target, headers=headers, content=body) as response,
        ):
            status = response.status
            if 200 <= status < 300:
                return Attempted("delivered", f"The receiver answered {status}.", status)
            if status == GONE:
                return Attempted("gone", "The receiver answered 410: it wants no more messages.", status)
            if 300 <= status < 400:
                return Attempted("failed", f"The receiver answered {status}, {self._redirect(url, response)}.", status)
            said, wait = _beginning(response), _wait(_header(response, b"retry-after"), at)
        detail = f"The receiver answered {status}{f': {said}' if said else '.'}"
        return Attempted("failed", detail, status, wait)

    def _redirect(self, url: httpx.URL, response: httpcore.Response) -> str:
        """Say where a redirect leads."""
        try:
            to = url.join(_header(response, b"location")[:_SHOWN])
            port = to.port or _PORTS.get(to.scheme, 0)
            checked_addresses(to.raw_host.decode("ascii"), port, self._networks, self._resolve)
        except NotAllowed as error:
            return f"a redirect into a private network: {str(error).removesuffix('.')}"
        except (httpx.InvalidURL, ValueError, NameUnknown):
            return "a redirect, which is not followed"
        return f"a redirect to {_printable(str(to))}, which is not followed; give the webhook's own address"


def _header(response: httpcore.Response, wanted: bytes) -> str:
    """Return an answer's header, by its name in lower case; empty where it has none."""
    return next((value for name, value in response.headers if name.lower() == wanted), b"").decode("latin-1")


def _wait(retry_after: str, at: datetime) -> timedelta:
    """Return how long a `Retry-After` (RFC 9110, 10.2.3) asks to wait from `at` on: seconds, or until a date.

    0 where it is empty, malformed or past.
    """
    if re.fullmatch(r"[0-9]{1,18}", retry_after, re.ASCII):
        return timedelta(seconds=min(int(retry_after), _FOREVER))
    try:
        until = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return timedelta()
    return max(timedelta(), until.replace(tzinfo=until.tzinfo or UTC) - at)


def _beginning(response: httpcore.Response) -> str:
    """Return the first kilobyte of an answer on one line."""
    content = b""
    for chunk in response.iter_stream():
        content += chunk
        if len(content) >= _SHOWN:
            break
    return _printable(" ".join(content[:_SHOWN].decode("utf-8", "replace").split()))


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
