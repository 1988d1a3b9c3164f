"""A real SMTP server on this machine (aiosmtpd)."""

import email
import email.policy
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session


class Mailbox:
    """Keeps what the server gets; the answers are those to a whole message, to a recipient and to QUIT."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.data_answer = "250 OK"
        self.recipient_answer = "250 OK"
        self.quit_answer = "221 Bye"

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if self.recipient_answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.recipient_answer

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.data_answer.startswith("250"):
            self.envelopes.append(envelope)
        return self.data_answer

    async def handle_QUIT(self, _server: SMTP, _session: Session, _envelope: Envelope) -> str:  # noqa: N802
        return self.quit_answer

    def messages(self) -> list[EmailMessage]:
        """Return the messages, read as a mail program reads them."""
        read = [email.message_from_bytes(one.original_content, policy=email.policy.default) for one in self.envelopes]
        return [one for one in read if isinstance(one, EmailMessage)]

    def message(self) -> EmailMessage:
        """Return the one message."""
        (message,) = self.messages()
        return message


class _AnyPort(Controller):
    """A server on a port that the system chooses."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def running(mailbox: Mailbox, **options: object) -> Iterator[int]:
    """Run the server; yield its port."""
    controller = _AnyPort(mailbox, hostname="127.0.0.1", port=0, ready_timeout=30, **options)
    controller.start()
    try:
        yield controller.port
    finally:
        controller.stop()
