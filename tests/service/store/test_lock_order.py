"""Transactions that meet: a webhook answers that it is gone while an edit removes it from its audit."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from judged import HOOK, NOTIFY, definition, end_run
from sqlalchemy import Connection, Engine, event, text

from service.audits.receivers import Reach
from service.store.alerts import AlertStore
from service.store.artifacts import ArtifactStore
from service.store.audits import AuditStore
from service.store.notifications.attempts import Attempted
from service.store.notifications.outbox import Owed

GONE = Attempted("gone", "The receiver answered 410: it wants no more messages.", 410)
SECONDS = 30.0
_WAITERS = text("SELECT count(*) FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))")


@pytest.fixture
def audits(engine: Engine, tmp_path: Path, clock) -> AuditStore:
    """An audit store with one audit that has one webhook."""
    store = AuditStore(engine, ArtifactStore(tmp_path / "artifacts"), clock, Reach(mail=True))
    store.create(definition(notify=NOTIFY[:1]))
    return store


@pytest.fixture
def outbox(audits: AuditStore, engine: Engine, clock) -> AlertStore:  # noqa: ARG001
    """An outbox with one message."""
    end_run(engine, clock, "broken")
    return AlertStore(engine, clock)


def wait_for_waiter(connection: Connection, engine: Engine) -> None:
    """Return when another transaction waits for this one; on SQLite it waits since its beginning."""
    if engine.dialect.name != "postgresql":
        return
    pid = connection.connection.dbapi_connection.info.backend_pid
    deadline = time.monotonic() + SECONDS
    with engine.connect() as looking:
        while not looking.scalar(_WAITERS, {"pid": pid}):
            assert time.monotonic() < deadline
            looking.rollback()
            time.sleep(0.01)


def meet(engine: Engine, first: Callable[[], Any], statement: str, second: Callable[[], Any]) -> list[Exception]:
    """Run `first`; once it has executed `statement`, run `second` in a thread, and go on when that one waits.

    Returns what `second` raised.
    """
    raised: list[Exception] = []
    threads: list[threading.Thread] = []

    def run() -> None:
        try:
            second()
        except Exception as error:
            raised.append(error)

    def after(connection: Connection, _cursor: Any, executed: str, *_: Any) -> None:
        if executed.startswith(statement) and not threads:
            threads.append(threading.Thread(target=run))
            threads[0].start()
            wait_for_waiter(connection, engine)

    event.listen(engine, "after_cursor_execute", after)
    try:
        first()
    finally:
        event.remove(engine, "after_cursor_execute", after)
        for thread in threads:
            thread.join(SECONDS)
    assert len(threads) == 1
    assert not threads[0].is_alive()
    return raised


def claim(outbox: AlertStore) -> Owed:
    (owed,) = outbox.claim(1, timedelta(minutes=1))
    return owed


def test_an_edit_that_removes_a_webhook_meets_its_410(
    audits: AuditStore, outbox: AlertStore, engine: Engine, clock
) -> None:
    """The edit deletes the webhook and then withholds its messages, the 410 locks its message before the webhook."""
    owed = claim(outbox)
    raised = meet(
        engine,
        lambda: audits.update("shipping", definition(notify=())),
        "DELETE FROM webhook_endpoints",
        lambda: outbox.record(owed, GONE, clock.now),
    )
    assert raised == []
    assert outbox.webhooks("shipping") == []
    (delivery,) = outbox.deliveries("shipping").deliveries
    assert (delivery.address, delivery.state, [one.result for one in delivery.attempts]) == (HOOK, "withheld", ["gone"])
