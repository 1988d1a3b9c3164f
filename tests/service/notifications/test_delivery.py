"""Delivery from the outbox to real receivers: once each, again after failures, and again under the same id after a
death.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from pathlib import Path
from threading import Event

import pytest
from judged import KL, definition, end_run, finding
from mailing import Mailbox, running
from pydantic import SecretStr
from receiving import Receiver, answer
from sqlalchemy import Engine, update
from standardwebhooks import Webhook

from service.audits.receivers import Reach
from service.contracts.audits.alert import Announcement
from service.notifications.delivery import AT_ONCE, LEASE, Deliverer
from service.processes import spawn, terminate
from service.settings import Settings
from service.store.alerts import AlertStore
from service.store.artifacts import ArtifactStore
from service.store.audits import AuditStore
from service.store.database import make_engine, upgrade, writer
from service.store.notifications.outbox import Delivery
from service.store.notifications.tables import MessageRow

LOCAL = (ip_network("127.0.0.0/8"),)


class MovingClock:
    """The present time, and so much later as it is moved."""

    def __init__(self) -> None:
        self.later = timedelta()

    @property
    def now(self) -> datetime:
        return self()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.later


@pytest.fixture
def moving() -> MovingClock:
    """The clock of stores and deliverer."""
    return MovingClock()


@pytest.fixture
def outbox(engine: Engine, moving: MovingClock) -> AlertStore:
    """An empty outbox."""
    return AlertStore(engine, moving)


@pytest.fixture
def audits(engine: Engine, tmp_path: Path, moving: MovingClock) -> AuditStore:
    """An audit store that may tell receivers on this machine."""
    return AuditStore(engine, ArtifactStore(tmp_path / "artifacts"), moving, Reach(LOCAL, mail=True))


def settings(port: int | None = None) -> Settings:
    url = None if port is None else SecretStr(f"smtp://127.0.0.1:{port}")
    return Settings(webhook_networks=LOCAL, smtp_url=url, mail_from="headroom@example.org")


def settle(deliverer: Deliverer) -> None:
    """Do all that is due now."""
    while deliverer.step():
        deliverer.wait(60)


def only(outbox: AlertStore) -> Delivery:
    (delivery,) = outbox.deliveries("shipping").deliveries
    return delivery


def test_each_receiver_gets_one_message(
    audits: AuditStore, outbox: AlertStore, engine: Engine, moving: MovingClock, receiver: Receiver
) -> None:
    """When the alert opens and when it closes; nothing in the nights between."""
    audits.create(definition(notify=({"webhook": receiver.url}, {"email": "team@example.org"})))
    (webhook,) = outbox.webhooks("shipping")
    mailbox = Mailbox()
    with running(mailbox) as port:
        deliverer = Deliverer(settings(port), outbox)
        for verdict in ("broken", "broken", "broken", "pass", "pass"):
            end_run(engine, moving, verdict)
            settle(deliverer)
    opening, closing = (Webhook(outbox.secret(webhook.id)).verify(got.body, got.headers) for got in receiver.received)
    announced = Announcement.model_validate(opening["data"])
    assert [one.finding for one in announced.opened] == [finding(KL, "broken")]
    assert [one["id"] for one in closing["data"]["closed"]] == [announced.opened[0].id]
    subjects = [message["Subject"] for message in mailbox.messages()]
    assert subjects == ["Headroom: shipping: 1 alert opened", "Headroom: shipping: 1 alert closed"]
    assert [one.state for one in outbox.deliveries("shipping").deliveries] == ["delivered"] * 4


def test_failures_are_tried_again_under_one_id(
    audits: AuditStore, outbox: AlertStore, engine: Engine, moving: MovingClock, receiver: Receiver
) -> None:
    """Two answers of 500 and then 200: one message for whoever looks at ids, and its history."""
    receiver.answers = [answer(500), answer(500), answer(200)]
    audits.create(definition(notify=({"webhook": receiver.url},)))
    end_run(engine, moving, "broken")
    deliverer = Deliverer(settings(), outbox)
    for _ in range(3):
        settle(deliverer)
        due_at = only(outbox).due_at
        moving.later += timedelta() if due_at is None else due_at - moving() + timedelta(seconds=1)
    delivery = only(outbox)
    assert delivery.state == "delivered"
    assert [one.status for one in delivery.attempts] == [500, 500, 200]
    assert {got.headers["webhook-id"] for got in receiver.received} == {f"msg_{delivery.id}"}
    assert len({got.body for got in receiver.received}) == 1
    outbox.replay(delivery.id)
    settle(deliverer)
    assert [got.headers["webhook-id"] for got in receiver.received] == [f"msg_{delivery.id}"] * 4


def test_410_ends_it(
    audits: AuditStore, outbox: AlertStore, engine: Engine, moving: MovingClock, receiver: Receiver
) -> None:
    """The receiver is not asked again, nor for what comes later."""
    receiver.answers = [answer(410)]
    audits.create(definition(notify=({"webhook": receiver.url},)))
    deliverer = Deliverer(settings(), outbox)
    for verdict in ("broken", "pass", "broken"):
        end_run(engine, moving, verdict)
        settle(deliverer)
        moving.later += timedelta(days=1)
    assert len(receiver.received) == 1
    assert outbox.webhooks("shipping")[0].disabled_reason == "The receiver answered 410: it wants no more messages."


def test_two_schedulers_send_each_message_once(
    audits: AuditStore, outbox: AlertStore, engine: Engine, moving: MovingClock, receiver: Receiver
) -> None:
    """Both look for work again and again, while messages are under way."""
    hooks = tuple({"webhook": f"{receiver.url}/{number}"} for number in range(30))
    audits.create(definition(notify=hooks))
    end_run(engine, moving, "broken")
    deliverers = [Deliverer(settings(), AlertStore(engine, moving)) for _ in range(2)]
    while any(one.state == "owed" for one in outbox.deliveries("shipping").deliveries):
        for deliverer in deliverers:
            deliverer.step()
    for deliverer in deliverers:
        deliverer.wait(60)
    assert sorted(got.path for got in receiver.received) == sorted(f"/hook/{number}" for number in range(30))


def test_a_slow_receiver_holds_up_no_other(
    audits: AuditStore, outbox: AlertStore, engine: Engine, moving: MovingClock, receiver: Receiver
) -> None:
    """Of all that is owed to it, one attempt is under way: there is room for the others."""
    done = Event()

    def wait_if_slow(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/hook/slow":
            done.wait(60)
        answer(204)(handler)

    receiver.answers = [wait_if_slow]
    slow, quick = {"webhook": f"{receiver.url}/slow"}, {"webhook": f"{receiver.url}/quick"}
    audits.create(definition(notify=(slow,)))
    for verdict in ("broken", "pass") * AT_ONCE:
        end_run(engine, moving, verdict)
    audits.update("shipping", definition(notify=(slow, quick)))
    end_run(engine, moving, "broken")
    deliverer = Deliverer(settings(), outbox)
    while "delivered" not in [one.state for one in outbox.deliveries("shipping").deliveries]:
        deliverer.step()
    assert sorted(got.path for got in receiver.received) == ["/hook/quick", "/hook/slow"]
    done.set()
    deliverer.wait(60)


def test_what_a_dead_process_was_sending_is_sent_again(
    audits: AuditStore, outbox: AlertStore, engine: Engine, moving: MovingClock, receiver: Receiver
) -> None:
    """Under the same id, once its lease has run out: the process may have died before or after it sent."""
    audits.create(definition(notify=({"webhook": receiver.url},)))
    end_run(engine, moving, "broken")
    (claimed,) = outbox.claim(1, LEASE)
    deliverer = Deliverer(settings(), outbox)
    assert deliverer.step() == 0
    moving.later += LEASE
    settle(deliverer)
    assert [got.headers["webhook-id"] for got in receiver.received] == [f"msg_{claimed.id}"]


def test_mail_without_a_mail_server(
    audits: AuditStore, outbox: AlertStore, engine: Engine, moving: MovingClock
) -> None:
    """It stays owed, and its history says what is missing."""
    audits.create(definition(notify=({"email": "team@example.org"},)))
    end_run(engine, moving, "broken")
    settle(Deliverer(settings(), outbox))
    delivery = only(outbox)
    assert delivery.state == "owed"
    assert delivery.attempts[0].detail == "The service has no HEADROOM_SMTP_URL and HEADROOM_MAIL_FROM."


def test_a_message_that_cannot_be_made_is_tried_again(
    audits: AuditStore, outbox: AlertStore, engine: Engine, moving: MovingClock, receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A fault of the service's own is in its log and in the history, and harms no other message."""

    def broken_resolver(host: str, _port: int) -> list[object]:
        raise ZeroDivisionError(host)

    audits.create(definition(notify=({"webhook": receiver.url},)))
    end_run(engine, moving, "broken")
    settle(Deliverer(settings(), outbox, resolve=broken_resolver))
    delivery = only(outbox)
    assert (delivery.state, delivery.attempts[0].detail) == ("owed", "The service failed: ZeroDivisionError.")
    assert delivery.id in caplog.text


def _wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def test_the_scheduler_delivers(tmp_path: Path, receiver: Receiver, moving: MovingClock) -> None:
    """Two real processes and real receivers: one message each, and none more when the processes start again.

    By then the first messages are older than deliveries are kept.
    """
    mailbox = Mailbox()
    present = Settings(home=tmp_path)
    engine = make_engine(present.database)
    upgrade(engine)
    notify = ({"webhook": receiver.url}, {"email": "team@example.org"})
    reach = Reach(LOCAL, mail=True)
    AuditStore(engine, ArtifactStore(present.artifacts), reach=reach).create(definition(notify=notify))
    outbox = AlertStore(engine)
    with running(mailbox) as port:
        environment = {
            **os.environ,
            "HEADROOM_HOME": str(tmp_path),
            "HEADROOM_BROKER_URL": "redis://127.0.0.1:6379/15",
            "HEADROOM_SCHEDULER_SECONDS": "0.05",
            "HEADROOM_WEBHOOK_NETWORKS": "127.0.0.0/8",
            "HEADROOM_SMTP_URL": f"smtp://127.0.0.1:{port}",
            "HEADROOM_MAIL_FROM": "headroom@example.org",
            "HEADROOM_DELIVERY_DAYS": "7",
        }

        def states() -> list[str]:
            return [one.state for one in outbox.deliveries("shipping").deliveries]

        for verdict in ("broken", "pass"):
            command = [sys.executable, "-m", "service.scheduler"]
            programs = [spawn(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
            try:
                end_run(engine, moving, verdict)
                _wait_for(lambda: states() == ["delivered", "delivered"])
            finally:
                for program in programs:
                    terminate(program, 20)
                    program.stderr.close()
            with writer(engine).begin() as connection:
                connection.execute(update(MessageRow).values(due_at=moving.now - timedelta(days=8)))
    engine.dispose()
    titles = [json.loads(got.body)["data"]["title"] for got in receiver.received]
    assert titles == ["shipping: 1 alert opened", "shipping: 1 alert closed"]
    assert [message["Subject"] for message in mailbox.messages()] == [f"Headroom: {title}" for title in titles]


def test_a_killed_scheduler_loses_no_message(tmp_path: Path, receiver: Receiver, moving: MovingClock) -> None:
    """It dies while the receiver has the message and has not answered: the next one sends it again, under its id."""
    present = Settings(home=tmp_path)
    engine = make_engine(present.database)
    upgrade(engine)
    audits = AuditStore(engine, ArtifactStore(present.artifacts), reach=Reach(LOCAL))
    audits.create(definition(notify=({"webhook": receiver.url},)))
    outbox, dead = AlertStore(engine), Event()

    def answer_nobody(_: object) -> None:
        dead.wait(60)

    receiver.answers = [answer_nobody, answer(204)]
    environment = {
        **os.environ,
        "HEADROOM_HOME": str(tmp_path),
        "HEADROOM_BROKER_URL": "redis://127.0.0.1:6379/15",
        "HEADROOM_SCHEDULER_SECONDS": "0.05",
        "HEADROOM_WEBHOOK_NETWORKS": "127.0.0.0/8",
    }
    end_run(engine, moving, "broken")
    command = [sys.executable, "-m", "service.scheduler"]
    first = spawn(command, env=environment)
    _wait_for(lambda: len(receiver.received) == 1)
    first.kill()
    first.wait()
    dead.set()
    with writer(engine).begin() as connection:  # as if the lease had run out
        connection.execute(update(MessageRow).values(leased_until=moving.now - timedelta(seconds=1)))
    second = spawn(command, env=environment)
    try:
        _wait_for(lambda: only(outbox).state == "delivered")
    finally:
        terminate(second, 20)
    assert [got.headers["webhook-id"] for got in receiver.received] == [only(outbox).webhook_id] * 2
    assert len(only(outbox).attempts) == 1
    engine.dispose()


def test_a_wrong_mail_server_stops_the_scheduler_at_its_start(tmp_path: Path) -> None:
    """With a message that names the setting."""
    environment = {
        **os.environ,
        "HEADROOM_HOME": str(tmp_path),
        "HEADROOM_BROKER_URL": "redis://127.0.0.1:6379/15",
        "HEADROOM_SMTP_URL": "mail.example.org",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "service.scheduler"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert "HEADROOM_SMTP_URL: 'mail.example.org' is not allowed" in ended.stderr
