"""Webhooks against a real receiver; the one stand-in is the function that resolves names."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from receiving import Receiver, answer, endless
from standardwebhooks import Webhook, WebhookVerificationError

from service.audits.networks import Address
from service.notifications.connection import resolve
from service.notifications.webhooks import Sender

LOCAL = (ip_network("127.0.0.0/8"),)
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(32, 64))).decode()
ID = "msg_0123456789abcdef"
BODY = json.dumps({"type": "audit.alerts.changed", "data": {"title": "é"}})
PUBLIC, LOOPBACK = ip_address("93.184.215.14"), ip_address("127.0.0.1")


class Names:
    """Stands in for the resolver: one answer after another, the last for all that follow."""

    def __init__(self, *answers: list[Address]) -> None:
        self.answers: Iterator[list[Address]] = iter(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, _port: int) -> list[Address]:
        self.asked.append(host)
        return next(self.answers)


def now() -> datetime:
    return datetime.now(UTC)


def test_a_receiver_can_verify_the_message(receiver: Receiver) -> None:
    """With the convention's library, and by the formula of the convention itself."""
    attempted = Sender(LOCAL).send(receiver.url, ID, BODY, [SECRET], now())
    assert (attempted.result, attempted.status) == ("delivered", 204)
    (got,) = receiver.received
    assert got.path == "/hook"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert Webhook(SECRET).verify(got.body, got.headers) == json.loads(BODY)
    signed = b".".join([ID.encode(), got.headers["webhook-timestamp"].encode(), got.body])
    expected = base64.b64encode(hmac.digest(bytes(range(32)), signed, hashlib.sha256)).decode()
    assert got.headers["webhook-signature"] == f"v1,{expected}"
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(got.body, got.headers)


def test_while_a_secret_is_replaced_both_verify(receiver: Receiver) -> None:
    """One signature with each."""
    Sender(LOCAL).send(receiver.url, ID, BODY, [OTHER, SECRET], now())
    (got,) = receiver.received
    for secret in (SECRET, OTHER):
        assert Webhook(secret).verify(got.body, got.headers)


def test_a_repetition_has_the_same_id_and_a_new_time(receiver: Receiver) -> None:
    """Receivers refuse old times."""
    for late in (timedelta(), timedelta(hours=5)):
        Sender(LOCAL).send(receiver.url, ID, BODY, [SECRET], now() + late)
    first, second = (got.headers for got in receiver.received)
    assert first["webhook-id"] == second["webhook-id"] == ID
    assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) >= 5 * 3600


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_success_is_2xx(receiver: Receiver, status: int) -> None:
    """Whatever the body is."""
    receiver.answers = [answer(status)]
    assert Sender(LOCAL).send(receiver.url, ID, BODY, [SECRET], now()).result == "delivered"


@pytest.mark.parametrize("status", [304, 400, 401, 404, 429, 500, 503])
def test_other_answers_are_failures(receiver: Receiver, status: int) -> None:
    """They are tried again."""
    receiver.answers = [answer(status)]
    attempted = Sender(LOCAL).send(receiver.url, ID, BODY, [SECRET], now())
    assert (attempted.result, attempted.status) == ("failed", status)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("Mon, 04 May 2026 03:10:00 GMT", 600),
        ("Monday, 04-May-26 03:10:00 GMT", 600),
        ("Mon, 04 May 2026 02:00:00 GMT", 0),
        ("-5", 0),
        ("1.5", 0),
        ("soon", 0),
        ("9" * 18, 10**9),
        ("9" * 5000, 0),
        ("Mon, 04 May 99999999999999999999 03:10:00 GMT", 0),
    ],
)
def test_a_receiver_says_how_long_to_wait(receiver: Receiver, status: int, retry_after: str, seconds: int) -> None:
    """As seconds or as a date (RFC 9110); what is neither says nothing."""
    receiver.answers = [answer(status, Retry_After=retry_after)]
    at = datetime(2026, 5, 4, 3, tzinfo=UTC)
    attempted = Sender(LOCAL).send(receiver.url, ID, BODY, [SECRET], at)
    assert (attempted.result, attempted.wait) == ("failed", timedelta(seconds=seconds))


def test_what_a_receiver_says_is_kept_on_one_line(receiver: Receiver) -> None:
    """Without characters that a terminal or a database could stumble over."""
    receiver.answers = [answer(400, b"no such\r\nchannel \x00\x1b[31m" + b"\xff")]
    attempted = Sender(LOCAL).send(receiver.url, ID, BODY, [SECRET], now())
    assert attempted.detail == "The receiver answered 400: no such channel \ufffd\ufffd[31m\ufffd"


def test_410_asks_for_no_more(receiver: Receiver) -> None:
    """It is told apart from a failure."""
    receiver.answers = [answer(410)]
    assert Sender(LOCAL).send(receiver.url, ID, BODY, [SECRET], now()).result == "gone"


def test_an_address_that_refuses_the_connection(receiver: Receiver) -> None:
    """Port 9 of this machine has no server."""
    attempted = Sender(LOCAL).send("http://127.0.0.1:9/", ID, BODY, [SECRET], now())
    assert attempted.result == "failed"
    assert "refused" in attempted.detail
    assert receiver.received == []


def test_a_private_address_is_not_connected_to(receiver: Receiver) -> None:
    """By its name and by itself."""
    for host in ("127.0.0.1", "localhost", "127.1"):
        attempted = Sender().send(f"http://{host}:{receiver.port}/hook", ID, BODY, [SECRET], now())
        assert attempted.result == "failed"
        assert "private network" in attempted.detail
    assert receiver.received == []


@pytest.mark.parametrize("answers", [[PUBLIC, LOOPBACK], [LOOPBACK, PUBLIC]])
def test_a_name_with_a_public_and_a_private_address(receiver: Receiver, answers: list[Address]) -> None:
    """The private one is enough to refuse it, whatever their order."""
    names = Names(answers)
    url = f"http://hook.example.test:{receiver.port}/"
    attempted = Sender(resolve=names).send(url, ID, BODY, [SECRET], now())
    assert attempted.detail == (
        "hook.example.test (127.0.0.1) is in a private network, which HEADROOM_WEBHOOK_NETWORKS does not allow."
    )
    assert receiver.received == []


def test_a_name_that_changes_between_check_and_connection(receiver: Receiver) -> None:
    """The name server answers once with the receiver's address, then with another: only the first is connected to."""
    names = Names([LOOPBACK], [ip_address("127.0.0.2")])
    url = f"http://rebinding.example.test:{receiver.port}/hook"
    assert Sender(LOCAL, resolve=names).send(url, ID, BODY, [SECRET], now()).result == "delivered"
    assert names.asked == ["rebinding.example.test"]
    assert receiver.received[0].headers["host"] == f"rebinding.example.test:{receiver.port}"


def test_rebinding_into_a_private_network(receiver: Receiver) -> None:
    """The first answer is public and does not answer; the second, private one is never asked for."""
    names = Names([ip_address("127.0.0.9")], [LOOPBACK])
    allowed = (ip_network("127.0.0.9/32"),)
    attempted = Sender(allowed, resolve=names).send(
        f"http://rebinding.example.test:{receiver.port}/hook", ID, BODY, [SECRET], now()
    )
    assert attempted.result == "failed"
    assert receiver.received == []
    assert len(names.asked) == 1


def test_the_next_address_is_tried_when_one_does_not_answer(receiver: Receiver) -> None:
    """Such as an IPv6 address on a machine without IPv6."""
    names = Names([ip_address("127.0.0.9"), LOOPBACK])
    url = f"http://hook.example.test:{receiver.port}/"
    assert Sender(LOCAL, resolve=names).send(url, ID, BODY, [SECRET], now()).result == "delivered"


def test_a_name_that_does_not_exist() -> None:
    """The top-level name `invalid` never does (RFC 6761); the system's resolver is asked."""
    attempted = Sender(LOCAL).send("http://hook.invalid/", ID, BODY, [SECRET], now())
    assert attempted.result == "failed"
    assert "The name hook.invalid cannot be resolved" in attempted.detail


def test_the_systems_resolver() -> None:
    """It knows this machine, each address once."""
    addresses = resolve("localhost", 80)
    assert LOOPBACK in addresses
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(receiver: Receiver, status: int) -> None:
    """The history says where the receiver wanted to send us."""
    receiver.answers = [answer(status, Location="/elsewhere")]
    attempted = Sender(LOCAL).send(receiver.url, ID, BODY, [SECRET], now())
    assert (attempted.result, attempted.status) == ("failed", status)
    assert f"a redirect to http://127.0.0.1:{receiver.port}/elsewhere, which is not followed" in attempted.detail
    assert len(receiver.received) == 1


@pytest.mark.parametrize("location", ["http://10.0.0.1/secret", "//10.0.0.1/secret", "http://inside.example.test/"])
def test_a_redirect_into_a_private_network(receiver: Receiver, location: str) -> None:
    """It is refused with that reason, whether the address is private or that of the name."""
    receiver.answers = [answer(302, Location=location)]
    names = Names([LOOPBACK], [ip_address("10.0.0.1")])
    url = f"http://hook.example.test:{receiver.port}/"
    attempted = Sender(LOCAL, resolve=names).send(url, ID, BODY, [SECRET], now())
    assert (attempted.result, attempted.status) == ("failed", 302)
    assert "a redirect into a private network" in attempted.detail
    assert len(receiver.received) == 1


@pytest.mark.parametrize("location", ["", "http://[", "gopher://x", "http://hook.invalid/"])
def test_a_redirect_to_nowhere(receiver: Receiver, location: str) -> None:
    """It is a failure like any other."""
    receiver.answers = [answer(302, Location=location)]
    attempted = Sender(LOCAL).send(receiver.url, ID, BODY, [SECRET], now())
    assert (attempted.result, attempted.status) == ("failed", 302)
    assert "redirect" in attempted.detail


def test_an_endless_answer(receiver: Receiver) -> None:
    """Nothing of a success is read, and the beginning of another answer."""
    receiver.answers = [endless(200), endless(500)]
    assert Sender(LOCAL).send(receiver.url, ID, BODY, [SECRET], now()).result == "delivered"
    attempted = Sender(LOCAL).send(receiver.url, ID, BODY, [SECRET], now())
    assert attempted.detail == "The receiver answered 500: " + "x" * 1024


def test_a_receiver_that_sends_byte_by_byte(byte_by_byte: int) -> None:
    """Every byte comes in time, the answer does not: the whole attempt has one deadline."""
    sender = Sender(LOCAL, seconds=0.5)
    attempted = sender.send(f"http://127.0.0.1:{byte_by_byte}/", ID, BODY, [SECRET], now())
    assert attempted.result == "failed"
    assert attempted.detail == "There was no whole answer within 0.5 s."


def test_tls_is_checked_by_the_name(tls_receiver: Receiver, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to the checked address; the certificate must be that of the name."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    right, wrong = (f"https://{name}.example.test:{tls_receiver.port}/hook" for name in ("hook", "other"))
    sender = Sender(LOCAL, resolve=lambda _host, _port: [LOOPBACK])
    assert sender.send(right, ID, BODY, [SECRET], now()).result == "delivered"
    attempted = sender.send(wrong, ID, BODY, [SECRET], now())
    assert attempted.result == "failed"
    assert "certificate" in attempted.detail.lower()
    assert len(tls_receiver.received) == 1


def test_an_unknown_certificate_is_refused(tls_receiver: Receiver) -> None:
    """Nobody has said that it is to be trusted."""
    sender = Sender(LOCAL, resolve=lambda _host, _port: [LOOPBACK])
    attempted = sender.send(f"https://hook.example.test:{tls_receiver.port}/", ID, BODY, [SECRET], now())
    assert attempted.result == "failed"
    assert "certificate" in attempted.detail.lower()
    assert tls_receiver.received == []


def test_proxies_of_the_environment_are_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name again, by itself."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Sender(LOCAL).send(receiver.url, ID, BODY, [SECRET], now()).result == "delivered"


def test_a_stored_text_that_is_no_address() -> None:
    """It is given up at once."""
    assert Sender(LOCAL).send("ftp://example.org/", ID, BODY, [SECRET], now()).result == "refused"
