"""One attempt to deliver a message by e-mail, over SMTP."""

import smtplib
import ssl
from contextlib import suppress
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from service.audits.receivers import is_mailbox
from service.errors import InvalidRequest
from service.store.notifications.attempts import SECONDS, Attempted

SETTING = "HEADROOM_SMTP_URL"
_FORMS = "smtp://HOST:PORT, smtp://USER:PASSWORD@HOST:PORT?starttls=1 or smtps://USER:PASSWORD@HOST:PORT"
_PORTS = {"smtp": 25, "smtps": 465}
_SUBMISSION = 587
_STARTTLS = {"0": False, "1": True}
Security = Literal["none", "starttls", "tls"]


class MailServer(NamedTuple):
    """An SMTP server that takes messages for others."""

    host: str
    port: int
    security: Security
    user: str | None
    password: str | None


class Mail(NamedTuple):
    """A message."""

    id: str
    """The same for all attempts."""
    to: str
    """Mailbox."""
    subject: str
    text: str
    at: datetime
    """When it came to be."""


def mail_server(url: str) -> MailServer:
    """Return the server that HEADROOM_SMTP_URL names. Raises InvalidRequest, which shows nothing of the password."""
    shown = "..." if "@" in url else url
    try:
        parts = urlsplit(url)
        default_port, starttls = _PORTS[parts.scheme], _starttls(parts.query)
        port = parts.port or (_SUBMISSION if starttls else default_port)
    except (ValueError, KeyError) as error:
        raise InvalidRequest(SETTING, shown, _FORMS) from error
    if not parts.hostname or parts.path not in ("", "/") or parts.fragment:
        raise InvalidRequest(SETTING, shown, _FORMS)
    if parts.scheme == "smtps" and starttls:
        raise InvalidRequest(SETTING, shown, "starttls with smtp:// only; smtps:// uses TLS from the start")
    security: Security = "tls" if parts.scheme == "smtps" else "starttls" if starttls else "none"
    return MailServer(parts.hostname, port, security, _unquoted(parts.username), _unquoted(parts.password))


def _starttls(query: str) -> bool:
    """Return what the only option of a URL says. Raises ValueError or KeyError for any other query."""
    if not query:
        return False
    ((name, value),) = parse_qsl(query, strict_parsing=True)
    return {"starttls": _STARTTLS}[name][value]


def _unquoted(text: str | None) -> str | None:
    return None if text is None else unquote(text)


def send(server: MailServer, sender: str, mail: Mail, *, seconds: float = SECONDS) -> Attempted:
    """Hand a message to the server and return what became of it; a failure raises nothing.

    Args:
        server: Takes the message.
        sender: Mailbox that it is from.
        mail: The message.
        seconds: How long the server may take for each of its answers.
    """
    if not is_mailbox(mail.to):
        return Attempted("refused", f"{mail.to!r} is not an e-mail address.")
    try:
        connection = _connect(server, seconds)
        try:
            connection.send_message(_message(sender, mail), from_addr=sender, to_addrs=[mail.to])
        finally:
            _quit(connection)
    except smtplib.SMTPRecipientsRefused as error:
        code, said = error.recipients[mail.to]
        return _refused(code, said)
    except smtplib.SMTPDataError as error:
        return _refused(error.smtp_code, error.smtp_error)
    except smtplib.SMTPResponseException as error:
        return Attempted("failed", f"The mail server answered {error.smtp_code}: {_text(error.smtp_error)}",
                         error.smtp_code)  # fmt: skip
    except (OSError, smtplib.SMTPException) as error:
        return Attempted("failed", f"The mail server {server.host}:{server.port} failed: {error}.")
    return Attempted("delivered", "The mail server took it.", 250)


def _connect(server: MailServer, seconds: float) -> smtplib.SMTP:
    if server.security == "tls":
        context = ssl.create_default_context()
        connection: smtplib.SMTP = smtplib.SMTP_SSL(server.host, server.port, timeout=seconds, context=context)
    else:
        connection = smtplib.SMTP(server.host, server.port, timeout=seconds)
    try:
        if server.security == "starttls":
            connection.starttls(context=ssl.create_default_context())
        if server.user is not None:
            connection.login(server.user, server.password or "")
    except BaseException:
        connection.close()
        raise
    return connection


def _quit(connection: smtplib.SMTP) -> None:
    """End a session; whatever the server answers, what it has taken stays taken."""
    with suppress(smtplib.SMTPException):
        connection.quit()
    connection.close()


def _message(sender: str, mail: Mail) -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["From"] = Address("Headroom", addr_spec=sender)
    message["To"] = Address(addr_spec=mail.to)
    message["Subject"] = " ".join(mail.subject.split())
    message["Date"] = format_datetime(mail.at)
    message["Message-ID"] = f"<{mail.id}@{sender.partition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office notices in return
    message.set_content(mail.text.encode("utf-8", "replace").decode())
    return message


def _refused(code: int, said: bytes | str) -> Attempted:
    """Return the attempt that the server refused, for good if the code begins with 5."""
    detail = f"The mail server refused the message with {code}: {_text(said)}"
    return Attempted("refused" if code >= 500 else "failed", detail, code)


def _text(said: bytes | str) -> str:
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else said
