"""The queue: its configuration against Celery's own list, and messages through a real server."""

import base64
import json
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from celery.app.defaults import DEFAULTS
from pydantic import SecretStr

from service import queue
from service.errors import InvalidRequest, ServiceUnreachable
from service.local.broker import program
from service.processes import spawn, terminate
from service.settings import Settings

PASSWORD = "p@ss/w:rd"
QUOTED = "p%40ss%2Fw%3Ard"


def settings(url: str | None) -> Settings:
    return Settings(broker_url=SecretStr(url) if url else None)


@contextmanager
def server(socket: Path) -> Iterator[redis.Redis]:
    """A Redis server of this test's own, on a Unix socket and with a password."""
    options = ["--port", "0", "--unixsocket", str(socket), "--requirepass", PASSWORD, "--save", ""]
    process = spawn([str(program()), *options], stdout=subprocess.DEVNULL, cwd=socket.parent)
    client = redis.Redis(unix_socket_path=str(socket), password=PASSWORD)
    try:
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert process.poll() is None
                time.sleep(0.02)
        yield client
    finally:
        client.close()
        terminate(process, 5)


@pytest.fixture
def socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server listens."""
    return tmp_path_factory.mktemp("r") / "r.sock"


def url(socket: Path) -> str:
    return f"redis+socket://:{QUOTED}@{socket}?virtual_host=2"


def test_every_setting_is_one_of_celerys() -> None:
    config = queue.celery_config(settings("rediss://host:6380/0"))
    assert set(config) - set(DEFAULTS) == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_acks_late", False),
        ("worker_prefetch_multiplier", 1),
        ("worker_disable_prefetch", True),
        ("worker_pool", "solo"),
        ("worker_concurrency", 1),
        ("accept_content", ["json"]),
        ("task_serializer", "json"),
        ("task_ignore_result", True),
        ("result_backend", None),
        ("worker_enable_remote_control", False),
        ("worker_send_task_events", False),
        ("task_send_sent_event", False),
        ("broker_connection_retry_on_startup", True),
        ("broker_connection_max_retries", None),
    ],
)
def test_the_application_is_configured(name: str, value: object) -> None:
    assert queue.make_app(settings("redis://127.0.0.1:6379/0")).conf[name] == value


def test_connections_have_timeouts_and_are_checked() -> None:
    with queue.make_app(settings("redis://user:secret@127.0.0.1:1/5")).connection_for_write() as connection:
        parameters = connection.transport.Channel._connparams(_unopened(connection))
    assert (parameters["username"], parameters["password"], parameters["db"]) == ("user", "secret", 5)
    assert parameters["socket_connect_timeout"] == 5
    assert parameters["socket_timeout"] == 30
    assert parameters["socket_keepalive"] is True
    assert parameters["health_check_interval"] == 25


def _unopened(connection: object) -> object:
    """A channel of kombu's that has read its options and connected to nothing."""
    transport = connection.transport  # type: ignore[attr-defined]
    channel = transport.Channel.__new__(transport.Channel)
    channel.connection = transport
    for name, value in connection.transport_options.items():  # type: ignore[attr-defined]
        setattr(channel, name, value)
    return channel


def test_a_tls_brokers_certificate_is_checked() -> None:
    with queue.make_app(settings("rediss://host:6380/0")).connection_for_write() as connection:
        assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}


@pytest.mark.parametrize("wrong", [None, "amqp://user:hidden@host", "memory://", "redis", "http://host"])
def test_other_brokers_are_refused_by_name(wrong: str | None) -> None:
    with pytest.raises(InvalidRequest, match=r"HEADROOM_BROKER_URL.*redis://") as caught:
        queue.make_app(settings(wrong))
    assert "hidden" not in str(caught.value)


def test_a_message_is_the_jobs_id_and_dispatch_number_and_nothing_else(socket: Path) -> None:
    with server(socket) as client:
        app = queue.make_app(settings(url(socket)))
        queue.send(app, "a" * 32, 7)
        assert sum(queue.waiting(app).values()) == 1
        client.select(2)
        message = json.loads(client.lindex(queue.QUEUE, 0))
        assert message["headers"]["task"] == queue.TASK
        assert message["content-type"] == "application/json"
        arguments, keywords, _ = json.loads(base64.b64decode(message["body"]))
        assert (arguments, keywords) == (["a" * 32, 7], {})
        app.close()


def test_messages_are_counted(socket: Path) -> None:
    with server(socket) as client:
        app = queue.make_app(settings(url(socket)))
        counts = [sum(queue.waiting(app).values())]
        for number in range(3):
            queue.send(app, "a" * 32, number)
            counts.append(sum(queue.waiting(app).values()))
        client.flushall()  # the server is this test's own
        counts.append(sum(queue.waiting(app).values()))
        assert counts == [0, 1, 2, 3, 0]
        app.close()


def test_a_broker_that_is_down_is_named_without_its_password(socket: Path) -> None:
    app = queue.make_app(settings(url(socket)))
    for call in (lambda: queue.send(app, "a" * 32, 1), lambda: queue.waiting(app)):
        with pytest.raises(ServiceUnreachable, match=r"redis\+socket://:\*\*@") as caught:
            call()
        assert QUOTED not in str(caught.value)
        assert PASSWORD not in str(caught.value)
    app.close()


def test_a_wrong_password_is_told(socket: Path) -> None:
    with server(socket):
        app = queue.make_app(settings(url(socket).replace(QUOTED, "wrong")))
        for call in (lambda: queue.send(app, "a" * 32, 1), lambda: queue.waiting(app)):
            with pytest.raises(ServiceUnreachable):
                call()
        app.close()


def test_a_broker_that_is_away_is_named_by_its_setting_without_the_password(socket: Path) -> None:
    app = queue.make_app(settings(url(socket)))
    for call in (lambda: queue.send(app, "a" * 32, 1), lambda: queue.waiting(app)):
        with pytest.raises(ServiceUnreachable) as caught:
            call()
        assert str(caught.value).startswith("HEADROOM_BROKER_URL: the broker at redis+socket://:**@")
        assert PASSWORD not in str(caught.value)
        assert QUOTED not in str(caught.value)
    app.close()


@pytest.mark.parametrize("address", ["host:port/0", "host:99999/0", "[::1/0"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(
        InvalidRequest,
        match=r"^HEADROOM_BROKER_URL: 'redis://\.\.\.' has a malformed host or port; allowed: redis://host:port/0, ",
    ) as caught:
        queue.make_app(settings(f"redis://:hush@{address}"))
    assert "hush" not in str(caught.value)


def test_a_broker_that_is_full_is_unreachable_too(socket: Path) -> None:
    with server(socket) as client:
        app = queue.make_app(settings(url(socket)))
        client.config_set("maxmemory", 1)
        with pytest.raises(ServiceUnreachable, match="maxmemory"):
            queue.send(app, "a" * 32, 1)
        app.close()


def test_sending_goes_on_after_the_broker_was_restarted(socket: Path) -> None:
    app = queue.make_app(settings(url(socket)))
    with server(socket):
        queue.send(app, "a" * 32, 1)
    with pytest.raises(ServiceUnreachable):
        queue.send(app, "a" * 32, 2)
    with server(socket):
        queue.send(app, "a" * 32, 3)
        assert sum(queue.waiting(app).values()) == 1
    app.close()
