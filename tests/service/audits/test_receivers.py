"""Whom an audit tells: addresses by their form, and networks that webhooks may not reach."""

from email.headerregistry import Address
from ipaddress import ip_address, ip_network

import pytest

from service.audits.networks import is_allowed, literal
from service.audits.receivers import Reach, Receiver, check, receivers
from service.errors import InvalidRequest

PUBLIC = ["93.184.215.14", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:0:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "100::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a00:1::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_reached(address: str) -> None:
    """Also as IPv6 addresses that carry a public IPv4 address."""
    assert is_allowed(ip_address(address), ())


@pytest.mark.parametrize("address", PRIVATE)
def test_other_addresses_may_not(address: str) -> None:
    """Private, local, shared, reserved, documentation, multicast; and in every way of carrying IPv4 in IPv6."""
    assert not is_allowed(ip_address(address), ())


@pytest.mark.parametrize(
    ("address", "network"),
    [("10.1.2.3", "10.1.0.0/16"), ("::ffff:10.1.2.3", "10.1.0.0/16"), ("fd00::5", "fd00::/64")],
)
def test_the_operator_may_allow_networks(address: str, network: str) -> None:
    """An allowed network does not open others."""
    assert is_allowed(ip_address(address), [ip_network(network)])
    assert not is_allowed(ip_address("192.168.1.1"), [ip_network(network)])


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
    ],
)
def test_hosts_that_are_addresses(host: str, address: str) -> None:
    """In all the forms that the system's resolver takes for one."""
    assert literal(host) == ip_address(address)


@pytest.mark.parametrize("host", ["example.org", "localhost", "1.example", "127.0.0.1.nip.io"])
def test_hosts_that_are_names(host: str) -> None:
    """They are resolved whenever a message is sent."""
    assert literal(host) is None


def test_receivers_of_each_kind() -> None:
    """In their order, each once, and as they were written."""
    notify = [{"webhook": "https://example.org/hook?a=b"}, {"email": "team@example.org"}]
    expected = (Receiver("webhook", "https://example.org/hook?a=b"), Receiver("email", "team@example.org"))
    assert check(notify, Reach(mail=True)) == expected
    assert receivers([*notify, *notify]) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/hook",
        "http://127.1:8080/hook",
        "http://2130706433/",
        "http://0x7f.1/",
        "https://[::1]/hook",
        "https://[::ffff:10.0.0.1]/hook",
        "http://169.254.169.254/latest/meta-data",
        "http://localhost/hook",
        "http://LOCALHOST./hook",
        "http://api.localhost:9000/",
    ],
)
def test_private_webhooks_are_refused(url: str) -> None:
    """The message names the address and the setting that would allow it."""
    with pytest.raises(InvalidRequest) as refused:
        check([{"webhook": url}], Reach())
    assert url in str(refused.value)
    assert "is in a private network" in str(refused.value)
    assert "HEADROOM_WEBHOOK_NETWORKS" in str(refused.value)


def test_private_webhooks_in_allowed_networks() -> None:
    """The very network, and names of this machine, whose address is checked when a message is sent."""
    reach = Reach((ip_network("127.0.0.0/8"),))
    assert check([{"webhook": "http://127.0.0.1:9000/"}, {"webhook": "http://localhost:9000/"}], reach)
    with pytest.raises(InvalidRequest, match="private network"):
        check([{"webhook": "http://10.0.0.1/"}], reach)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org/hook",
        "ftp://example.org/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:25/",
        "https://",
        "https:///hook",
        "https://user:secret@example.org/",
        "https://example.org:99999/",
        "https://example.org:0/",
        "https://example.org/#part",
        "https://example.org/ hook",
        "https://example.org/\r\nHost: other",
        "https://example.org/" + "x" * 2048,
        "https://xn--a\u00e4/",
        "https://b\u00fccher.example/",
        "https://xn--\u00e4/",
        "http://１２７.0.0.1/",
    ],
)
def test_texts_that_are_no_webhook(url: str) -> None:
    """The message says what one looks like."""
    with pytest.raises(InvalidRequest, match="is not a webhook's address; allowed: http"):
        check([{"webhook": url}], Reach())


@pytest.mark.parametrize(
    "address",
    [
        "",
        "team",
        "team@",
        "@example.org",
        "a b@example.org",
        "team@example.org\r\nBcc: all@example.org",
        "team@example.org\n",
        "Team <team@example.org>",
        "a@b,c@d",
        "team@exa mple.org",
        "team@-example.org",
        ".team@example.org",
        "team.@example.org",
        "the..team@example.org",
        "x" * 65 + "@example.org",
        "team@" + ".".join(["x" * 60] * 5),
    ],
)
def test_texts_that_are_no_mailbox(address: str) -> None:
    """Nothing that could be a second header or recipient gets through."""
    with pytest.raises(InvalidRequest, match="is not an e-mail address"):
        check([{"email": address}], Reach(mail=True))


@pytest.mark.parametrize("local", ["a", "the.whole.team+alerts", "!#$%&'*+/=?^_`{|}~-", "x" * 64, "x." * 31 + "xx"])
def test_local_parts_of_a_mailbox(local: str) -> None:
    """Dot-atoms of up to 64 characters, each of which a mail header can hold."""
    address = f"{local}@example.org"
    assert check([{"email": address}], Reach(mail=True)) == (Receiver("email", address),)
    assert Address(addr_spec=address).addr_spec == address


def test_mail_needs_a_mail_server() -> None:
    """Otherwise nobody would notice that nothing is sent."""
    with pytest.raises(InvalidRequest, match="HEADROOM_SMTP_URL and HEADROOM_MAIL_FROM"):
        check([{"email": "team@example.org"}], Reach())


@pytest.mark.parametrize("entry", [{}, {"pager": "5"}, {"webhook": "https://example.org/", "email": "a@example.org"}])
def test_other_entries_are_refused(entry: dict[str, str]) -> None:
    """The message has both forms."""
    with pytest.raises(InvalidRequest, match='"webhook"'):
        check([entry], Reach(mail=True))


def test_the_same_receiver_twice_is_refused() -> None:
    """It would get every message twice, or the second entry would say nothing."""
    with pytest.raises(InvalidRequest, match="is there twice"):
        check([{"email": "a@example.org"}, {"email": "a@example.org"}], Reach(mail=True))
