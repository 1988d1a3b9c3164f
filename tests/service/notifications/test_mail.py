"""E-mail through a real SMTP server on this machine (aiosmtpd)."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from mailing import Mailbox, running

from service.errors import InvalidRequest
from service.notifications.mail import Mail, MailServer, mail_server, send

AT = datetime(2026, 5, 4, 3, tzinfo=UTC)
SENDER = "headroom@example.org"


@pytest.fixture
def mailbox() -> Mailbox:
    """An empty mailbox."""
    return Mailbox()


def mail(to: str = "team@example.org", subject: str = "llama: 1 alert opened", text: str = "Opened:\n- é\n") -> Mail:
    return Mail("msg_1", to, subject, text, AT)


def plain(port: int) -> MailServer:
    return mail_server(f"smtp://127.0.0.1:{port}")


def test_a_message_arrives(mailbox: Mailbox) -> None:
    """With the headers that mail programs need, and its text as it was."""
    with running(mailbox) as port:
        attempted = send(plain(port), SENDER, mail())
    assert attempted.result == "delivered"
    (envelope,) = mailbox.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == (SENDER, ["team@example.org"])
    message = mailbox.message()
    assert message["From"] == "Headroom <headroom@example.org>"
    assert message["To"] == "team@example.org"
    assert message["Subject"] == "llama: 1 alert opened"
    assert message["Message-ID"] == "<msg_1@example.org>"
    assert message["Date"].datetime == AT
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content().splitlines() == ("Opened:\n- é\n").splitlines()


@pytest.mark.parametrize("to", ["a@example.org\r\nBcc: b@example.org", "a@example.org>\r\nDATA", "a@b, c@d", ""])
def test_a_recipient_cannot_hide_a_header(mailbox: Mailbox, to: str) -> None:
    """Such a mailbox is refused, and the server is not even asked."""
    with running(mailbox) as port:
        assert send(plain(port), SENDER, mail(to=to)).result == "refused"
    assert mailbox.envelopes == []


def test_neither_subject_nor_text_can(mailbox: Mailbox) -> None:
    """Lines of the subject become one; lines of the text stay text, also those that end an SMTP message."""
    text = "Bcc: b@example.org\n.\nRCPT TO:<b@example.org>\n\ud800"
    with running(mailbox) as port:
        attempted = send(plain(port), SENDER, mail(subject="one\r\nBcc: b@example.org", text=text))
    assert attempted.result == "delivered"
    message = mailbox.message()
    assert message["Subject"] == "one Bcc: b@example.org"
    assert message["Bcc"] is None
    assert mailbox.envelopes[0].rcpt_tos == ["team@example.org"]
    assert message.get_content().splitlines() == ("Bcc: b@example.org\n.\nRCPT TO:<b@example.org>\n?\n").splitlines()


@pytest.mark.parametrize(
    ("answer", "result"), [("550 no such user", "refused"), ("451 try later", "failed"), ("452 full", "failed")]
)
def test_a_recipient_that_the_server_refuses(mailbox: Mailbox, answer: str, result: str) -> None:
    """5xx is final, 4xx is tried again."""
    mailbox.recipient_answer = answer
    with running(mailbox) as port:
        attempted = send(plain(port), SENDER, mail())
    assert (attempted.result, attempted.status) == (result, int(answer[:3]))
    assert answer[4:] in attempted.detail


@pytest.mark.parametrize(("answer", "result"), [("554 spam", "refused"), ("451 greylisted", "failed")])
def test_a_message_that_the_server_refuses(mailbox: Mailbox, answer: str, result: str) -> None:
    """Likewise."""
    mailbox.data_answer = answer
    with running(mailbox) as port:
        assert send(plain(port), SENDER, mail()).result == result


@pytest.mark.parametrize("answer", ["421 closing", "500 unknown", "no code"])
def test_a_message_that_was_taken_is_delivered_whatever_the_server_answers_to_quit(
    mailbox: Mailbox, answer: str
) -> None:
    """It would arrive twice if it were tried again."""
    mailbox.quit_answer = answer
    with running(mailbox) as port:
        assert send(plain(port), SENDER, mail()).result == "delivered"
    assert len(mailbox.envelopes) == 1


def test_a_server_that_does_not_answer(byte_by_byte: int) -> None:
    """No server, and one that is no mail server."""
    assert send(plain(9), SENDER, mail()).result == "failed"
    assert send(plain(byte_by_byte), SENDER, mail(), seconds=0.2).result == "failed"


def _tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def _authenticate(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: object) -> AuthResult:
    assert isinstance(data, LoginPassword)
    return AuthResult(success=(data.login, data.password) == (b"user@host", b"p:w/d"), handled=False)


@pytest.mark.parametrize(("password", "result"), [("p%3Aw%2Fd", "delivered"), ("wrong", "failed")])
def test_starttls_and_login(
    mailbox: Mailbox, local_certificate: Path, monkeypatch: pytest.MonkeyPatch, password: str, result: str
) -> None:
    """The server takes nothing without them; user and password come from the URL, decoded."""
    monkeypatch.setenv("SSL_CERT_FILE", str(local_certificate))
    options = {
        "tls_context": _tls(local_certificate),
        "require_starttls": True,
        "authenticator": _authenticate,
        "auth_required": True,
    }
    with running(mailbox, **options) as port:
        server = mail_server(f"smtp://user%40host:{password}@127.0.0.1:{port}?starttls=1")
        attempted = send(server, SENDER, mail())
    assert attempted.result == result
    assert len(mailbox.envelopes) == (result == "delivered")


def test_starttls_checks_the_certificate(mailbox: Mailbox, local_certificate: Path) -> None:
    """Of a server that nobody has said to trust."""
    with running(mailbox, tls_context=_tls(local_certificate)) as port:
        attempted = send(mail_server(f"smtp://127.0.0.1:{port}?starttls=1"), SENDER, mail())
    assert attempted.result == "failed"
    assert "certificate" in attempted.detail
    assert mailbox.envelopes == []


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mail.example.org", MailServer("mail.example.org", 25, "none", None, None)),
        ("smtp://mail.example.org?starttls=1", MailServer("mail.example.org", 587, "starttls", None, None)),
        ("smtp://mail.example.org:2525/?starttls=0", MailServer("mail.example.org", 2525, "none", None, None)),
        ("smtps://me:a%40b@mail.example.org", MailServer("mail.example.org", 465, "tls", "me", "a@b")),
        ("smtp://[::1]:25", MailServer("::1", 25, "none", None, None)),
    ],
)
def test_the_address_of_a_mail_server(url: str, server: MailServer) -> None:
    """Ports are those of the protocol where none is given."""
    assert mail_server(url) == server


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mail.example.org",
        "http://mail.example.org",
        "smtp://",
        "smtp://host:port",
        "smtp://host:99999",
        "smtp://host/path",
        "smtp://host?starttls=yes",
        "smtp://host?tls=1",
        "smtp://host?starttls",
        "smtps://host?starttls=1",
    ],
)
def test_texts_that_are_no_mail_server(url: str) -> None:
    """The message names the setting and the forms."""
    with pytest.raises(InvalidRequest, match="HEADROOM_SMTP_URL"):
        mail_server(url)


def test_a_refusal_shows_no_password() -> None:
    """Wherever it stands."""
    with pytest.raises(InvalidRequest) as refused:
        mail_server("smtp://user:secret@host?x=1")
    assert "secret" not in str(refused.value)
