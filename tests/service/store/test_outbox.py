"""The outbox: each message is sent once by whoever claims it, tried again for three days, and can be replayed."""

import base64
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from judged import HOOK, NOTIFY, definition, end_run
from sqlalchemy import Engine, func, select

from service.audits.receivers import Reach
from service.errors import Conflict, InvalidRequest, NotFound
from service.store.alerts import AlertStore
from service.store.artifacts import ArtifactStore
from service.store.audits import AuditStore
from service.store.notifications.attempts import Attempted
from service.store.notifications.outbox import Delivery, Owed
from service.store.notifications.tables import AttemptRow

LEASE = timedelta(seconds=60)
DELIVERED = Attempted("delivered", "The receiver answered 204.", 204)
FAILED = Attempted("failed", "The receiver answered 500.", 500)
GONE = Attempted("gone", "The receiver answered 410: it wants no more messages.", 410)


@pytest.fixture
def audits(engine: Engine, tmp_path: Path, clock) -> AuditStore:
    """An audit store with one audit that has one webhook."""
    store = AuditStore(engine, ArtifactStore(tmp_path / "artifacts"), clock, Reach(mail=True))
    store.create(definition(notify=NOTIFY[:1]))
    return store


@pytest.fixture
def outbox(audits: AuditStore, engine: Engine, clock) -> AlertStore:  # noqa: ARG001
    """An outbox without messages."""
    return AlertStore(engine, clock)


@pytest.fixture
def announce(outbox: AlertStore, engine: Engine, clock) -> Callable[[], None]:
    """Makes one announcement: the alert opens or closes."""

    def end() -> None:
        end_run(engine, clock, "pass" if outbox.alerts().alerts else "broken")

    return end


def claim(outbox: AlertStore) -> Owed:
    (owed,) = outbox.claim(10, LEASE)
    return owed


def only(outbox: AlertStore) -> Delivery:
    (delivery,) = outbox.deliveries("shipping").deliveries
    return delivery


def test_a_delivered_message_is_done(outbox: AlertStore, announce, clock) -> None:
    """With one attempt in its history."""
    announce()
    owed = claim(outbox)
    assert owed.receiver == ("webhook", HOOK)
    assert len(owed.announcement.opened) == 1
    began = clock.now
    clock.move(1.5)
    outbox.record(owed, DELIVERED, began)
    delivery = only(outbox)
    assert (delivery.id, delivery.state, delivery.due_at) == (owed.id, "delivered", None)
    (attempt,) = delivery.attempts
    assert (attempt.number, attempt.at, attempt.seconds, attempt.result, attempt.status) == (
        1, began, 1.5, "delivered", 204)  # fmt: skip
    clock.move(10 * 86400)
    assert outbox.claim(10, LEASE) == []


def test_a_failure_is_tried_again_for_three_days(outbox: AlertStore, announce, clock) -> None:
    """With growing delays, always under the same id; then the message has failed."""
    announce()
    began, ids, waits = clock.now, set(), []
    while (delivery := only(outbox)).state == "owed":
        waits.append((delivery.due_at - clock.now).total_seconds())
        assert waits[-1] == 0 or outbox.claim(10, LEASE) == []
        clock.move(waits[-1])
        owed = claim(outbox)
        ids.add(owed.id)
        outbox.record(owed, FAILED, clock.now)
    assert len(ids) == 1
    assert waits == sorted(waits)
    assert len(waits) == len(set(waits)) == 10
    assert timedelta(days=3) < clock.now - began < timedelta(days=4)
    assert delivery.state == "failed"
    assert [one.number for one in delivery.attempts] == list(range(1, 11))


@pytest.mark.parametrize(
    ("asked", "waits"), [(timedelta(seconds=1), 5), (timedelta(hours=1), 3600), (timedelta(days=30), 86400)]
)
def test_a_receiver_is_left_alone_for_as_long_as_it_asks(outbox: AlertStore, announce, clock, asked, waits) -> None:
    """For the usual time at least, and for a day at most."""
    announce()
    outbox.record(claim(outbox), FAILED._replace(wait=asked), clock.now)
    assert (only(outbox).due_at - clock.now).total_seconds() == waits


def test_the_last_attempt_is_the_last_whatever_a_receiver_asks(outbox: AlertStore, announce, clock) -> None:
    announce()
    for _ in range(10):
        clock.move((only(outbox).due_at - clock.now).total_seconds())
        outbox.record(claim(outbox), FAILED._replace(wait=timedelta(days=2)), clock.now)
    assert only(outbox).state == "failed"


def test_messages_that_ended_are_removed_after_a_while(outbox: AlertStore, announce, clock) -> None:
    """With their attempts; what is owed stays however old it is, and so does what was sent again in between."""
    for outcome in (DELIVERED, Attempted("refused", "No.", 550), DELIVERED):
        announce()
        outbox.record(claim(outbox), outcome, clock.now)
        clock.move(1)
    delivered, refused, replayed = (one.id for one in reversed(outbox.deliveries("shipping").deliveries))
    clock.move(50 * 86400)
    outbox.replay(replayed)
    outbox.record(claim(outbox), DELIVERED, clock.now)
    announce()
    clock.move(50 * 86400)
    kept = timedelta(days=90)
    assert outbox.prune(kept, limit=1) == 1
    left = [one.id for one in outbox.deliveries("shipping").deliveries]
    assert delivered not in left
    assert refused in left
    assert outbox.prune(kept) == 1
    left = outbox.deliveries("shipping").deliveries
    assert [one.state for one in left] == ["owed", "delivered"]
    assert left[1].id == replayed
    assert [len(one.attempts) for one in left] == [0, 2]
    with outbox._read() as session:
        assert session.scalar(select(func.count()).select_from(AttemptRow)) == 2
    assert len(outbox.announcements(left[0].audit_id, 10)) == 4
    assert outbox.prune(kept) == 0


def test_two_schedulers_remove_each_message_once(audits: AuditStore, engine: Engine, clock) -> None:
    audits.update("shipping", definition(notify=tuple({"email": f"{n}@example.org"} for n in range(60))))
    end_run(engine, clock, "broken")
    for owed in (store := AlertStore(engine, clock)).claim(60, LEASE):
        store.record(owed, DELIVERED, clock.now)
    clock.move(86400)
    removed: list[int] = []

    def prune() -> None:
        of = AlertStore(engine, clock)
        removed.extend(of.prune(timedelta(hours=1), limit=7) for _ in range(10))

    threads = [threading.Thread(target=prune) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(removed) == 60


def test_what_can_never_be_delivered_is_given_up_at_once(outbox: AlertStore, announce, clock) -> None:
    announce()
    outbox.record(claim(outbox), Attempted("refused", "No such mailbox.", 550), clock.now)
    assert only(outbox).state == "failed"


def test_a_claimed_message_is_nobody_elses(outbox: AlertStore, announce, clock) -> None:
    """Until the lease runs out, as when the process that sent it died."""
    announce()
    first = claim(outbox)
    clock.move(59)
    assert outbox.claim(10, LEASE) == []
    clock.move(1)
    second = claim(outbox)
    assert first.id == second.id
    assert first.fence < second.fence
    outbox.record(first, FAILED, clock.now)
    assert only(outbox).state == "owed"
    assert outbox.claim(10, LEASE) == []
    outbox.record(second, DELIVERED, clock.now)
    delivery = only(outbox)
    assert delivery.state == "delivered"
    assert [one.result for one in delivery.attempts] == ["failed", "delivered"]


def test_one_message_at_a_time_to_one_receiver(outbox: AlertStore, announce, clock) -> None:
    """In their order."""
    announce()
    clock.move(1)
    announce()
    opening = claim(outbox)
    assert opening.announcement.opened
    assert outbox.claim(10, LEASE) == []
    outbox.record(opening, DELIVERED, clock.now)
    assert claim(outbox).announcement.closed


def test_a_claim_takes_no_more_than_asked_for(audits: AuditStore, outbox: AlertStore, engine: Engine, clock) -> None:
    audits.update("shipping", definition(notify=tuple({"email": f"{n}@example.org"} for n in range(5))))
    end_run(engine, clock, "broken")
    assert [len(outbox.claim(limit, LEASE)) for limit in (2, 2, 2, 2)] == [2, 2, 1, 0]


def test_several_schedulers_send_each_message_once(audits: AuditStore, engine: Engine, clock) -> None:
    """Four of them race for 60 messages."""
    audits.update("shipping", definition(notify=tuple({"email": f"{n}@example.org"} for n in range(60))))
    end_run(engine, clock, "broken")
    sent: Counter[str] = Counter()
    lock = threading.Lock()

    def schedule() -> None:
        store = AlertStore(engine, clock)
        for _ in range(60):
            for owed in store.claim(3, LEASE):
                with lock:
                    sent[owed.id] += 1
                store.record(owed, DELIVERED, clock.now)

    threads = [threading.Thread(target=schedule) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sent.values()) == [1] * 60


def test_410_disables_the_webhook(outbox: AlertStore, announce, clock) -> None:
    """What is owed to it and what comes later is withheld, until somebody enables it and replays."""
    announce()
    owed = claim(outbox)
    announce()
    outbox.record(owed, GONE, clock.now)
    (webhook,) = outbox.webhooks("shipping")
    assert (webhook.disabled_at, webhook.disabled_reason) == (clock.now, GONE.detail)
    clock.move(1)
    announce()
    states = [one.state for one in reversed(outbox.deliveries("shipping").deliveries)]
    assert sorted(states[:2]) == ["failed", "withheld"]
    assert states[2] == "withheld"
    assert outbox.claim(10, LEASE) == []
    last = outbox.deliveries("shipping").deliveries[0]
    with pytest.raises(Conflict, match=f"enable it first .*{webhook.id}"):
        outbox.replay(last.id)
    assert outbox.enable(webhook.id).disabled_at is None
    outbox.replay(last.id)
    assert claim(outbox).id == last.id


def test_a_message_can_be_replayed(outbox: AlertStore, announce, clock) -> None:
    """Under the same id, and with as many attempts as a new one; its history goes on."""
    announce()
    owed = claim(outbox)
    outbox.record(owed, DELIVERED, clock.now)
    replayed = outbox.replay(owed.id)
    assert (replayed.id, replayed.state, replayed.due_at) == (owed.id, "owed", clock.now)
    for _ in range(10):
        clock.move((only(outbox).due_at - clock.now).total_seconds())
        outbox.record(claim(outbox), FAILED, clock.now)
    assert only(outbox).state == "failed"
    assert [one.number for one in only(outbox).attempts] == list(range(1, 12))


def test_what_cannot_be_replayed(audits: AuditStore, outbox: AlertStore, announce) -> None:
    """A message to a receiver that the audit no longer has, and one that there is not."""
    announce()
    message = only(outbox)
    audits.update("shipping", definition(notify=NOTIFY[1:]))
    assert only(outbox).state == "withheld"
    with pytest.raises(Conflict, match="no longer in `notify`"):
        outbox.replay(message.id)
    for unknown in ("none", "a\0b"):
        with pytest.raises(NotFound, match="is not the id of a delivery"):
            outbox.replay(unknown)


def test_an_attempt_at_what_was_deleted_is_dropped(audits: AuditStore, outbox: AlertStore, announce, clock) -> None:
    announce()
    owed = claim(outbox)
    audits.delete("shipping")
    outbox.record(owed, DELIVERED, clock.now)
    assert outbox.claim(10, LEASE) == []


def test_details_are_kept_as_the_database_can(outbox: AlertStore, announce, clock) -> None:
    """Cut when they are long, and without NUL, which PostgreSQL cannot keep."""
    announce()
    outbox.record(claim(outbox), Attempted("failed", "a\0" + "x" * 5000), clock.now)
    assert only(outbox).attempts[0].detail == "a" + "x" * 2047


def test_deliveries_are_listed_newest_first_in_pages(outbox: AlertStore, announce, clock) -> None:
    for _ in range(5):
        announce()
        clock.move(1)
    everything = outbox.deliveries("shipping").deliveries
    assert [one.created_at for one in everything] == sorted((one.created_at for one in everything), reverse=True)
    first = outbox.deliveries("shipping", page_size=3)
    second = outbox.deliveries("shipping", page_size=3, page_token=first.next_page_token)
    assert first.deliveries + second.deliveries == everything
    assert second.next_page_token is None
    assert outbox.delivery(everything[0].id) == everything[0]
    with pytest.raises(InvalidRequest, match="page_token"):
        outbox.deliveries("shipping", page_token="x")


def test_a_webhook_has_a_secret_of_its_own(audits: AuditStore, outbox: AlertStore, announce) -> None:
    """Of the form of Standard Webhooks: 24 to 64 bytes, in base64."""
    audits.create(definition(name="other", notify=NOTIFY[:1]))
    (webhook,), (other,) = outbox.webhooks("shipping"), outbox.webhooks("other")
    secret = outbox.secret(webhook.id)
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert secret != outbox.secret(other.id)
    announce()
    assert claim(outbox).secrets == (secret,)


def test_a_secret_is_replaced_with_an_overlap(outbox: AlertStore, announce, clock) -> None:
    """In which messages are signed with both."""
    (webhook,) = outbox.webhooks("shipping")
    former = outbox.secret(webhook.id)
    present = outbox.rotate(webhook.id, timedelta(hours=1))
    assert outbox.secret(webhook.id) == present != former
    announce()
    owed = claim(outbox)
    assert owed.secrets == (present, former)
    outbox.record(owed, FAILED, clock.now)
    clock.move(3600)
    assert claim(outbox).secrets == (present,)


def test_a_webhook_keeps_its_secret_through_edits(audits: AuditStore, outbox: AlertStore) -> None:
    """As long as the audit has it; one that comes again later is a new one."""
    (before,) = outbox.webhooks("shipping")
    audits.update("shipping", definition(notify=NOTIFY, limits=()))
    assert outbox.webhooks("shipping") == [before]
    audits.update("shipping", definition(notify=()))
    assert outbox.webhooks("shipping") == []
    audits.update("shipping", definition(notify=NOTIFY))
    (after,) = outbox.webhooks("shipping")
    assert after.id != before.id
    for act in (outbox.secret, outbox.enable):
        with pytest.raises(NotFound, match="is not the id of a webhook"):
            act(before.id)
