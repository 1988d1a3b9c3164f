"""Pauses after errors: everybody is told by the run that pauses the audit, and by no other."""

from collections.abc import Callable
from pathlib import Path

import pytest
from judged import NOTIFY, definition
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from service.audits.receivers import Reach
from service.contracts.audits.audit import Trigger
from service.store.alerts import AlertStore
from service.store.artifacts import ArtifactStore
from service.store.audit_tables import AuditRow, AuditRunRow
from service.store.audits import AuditStore
from service.store.database import writer
from service.store.notifications.tables import MessageRow
from service.store.runs.rows import end_run, locked_run
from service.store.runs.store import RunStore

PAUSE_AFTER = 3


@pytest.fixture
def audits(engine: Engine, tmp_path: Path, clock) -> AuditStore:
    """An audit store with one audit, which three errors in a row pause."""
    store = AuditStore(engine, ArtifactStore(tmp_path / "artifacts"), clock, Reach(mail=True))
    store.create(definition(pause_after_errors=PAUSE_AFTER))
    return store


@pytest.fixture
def fail(audits: AuditStore, engine: Engine, clock) -> Callable[..., None]:
    """Ends a run as an error."""

    def end(trigger: Trigger = "request") -> None:
        run_id = audits.request_run("shipping", trigger).id
        with Session(writer(engine)) as session, session.begin():
            rows = locked_run(session, run_id)
            assert rows is not None
            end_run(session, *rows, "error", ["No such model."], clock.now)
        clock.move(1)

    return end


@pytest.fixture
def kinds(audits: AuditStore, engine: Engine, clock) -> Callable[[], list[str]]:
    """Returns the kinds of all announcements, oldest first, once it is sure that only pauses are sent."""

    def read() -> list[str]:
        alerts = AlertStore(engine, clock)
        told = [one.kind for one in reversed(alerts.announcements(audits.get("shipping").id, 100))]
        assert len(alerts.deliveries("shipping").deliveries) == told.count("paused") * len(NOTIFY)
        return told

    return read


def test_the_run_that_pauses_the_audit_tells_everybody(audits: AuditStore, fail, kinds) -> None:
    """Once: nobody would notice that the model is no longer watched."""
    for _ in range(PAUSE_AFTER + 1):
        fail()
    assert kinds() == ["error"] * (PAUSE_AFTER - 1) + ["paused", "error"]
    assert audits.get("shipping").paused


def test_a_pause_by_a_person_is_not_told_as_one_after_errors(audits: AuditStore, fail, kinds) -> None:
    audits.pause("shipping", "new hardware comes")
    for _ in range(PAUSE_AFTER + 1):
        fail()
    assert kinds() == ["error"] * (PAUSE_AFTER + 1)
    assert audits.get("shipping").pause_reason == "new hardware comes"


def test_a_pause_by_a_bound_that_was_lowered_is_told(audits: AuditStore, fail, kinds) -> None:
    """The audit then has more errors than its bound."""
    fail()
    fail()
    audits.update("shipping", definition(pause_after_errors=1))
    fail()
    assert kinds() == ["error", "error", "paused"]
    assert audits.get("shipping").paused


def test_an_audit_that_this_version_cannot_read_is_paused_and_nobody_told(
    audits: AuditStore, engine: Engine, clock
) -> None:
    """Its receivers are in what cannot be read."""
    audits.update("shipping", definition(pause_after_errors=1))
    run_id = audits.request_run("shipping").id
    with Session(writer(engine)) as session, session.begin():
        rows = locked_run(session, run_id)
        assert rows is not None
        rows[0].definition = {**rows[0].definition, "of_a_later_version": 1}
    assert RunStore(engine, clock).start(run_id)
    with Session(engine) as session:
        audit = session.scalars(select(AuditRow)).one()
        assert (audit.paused, audit.errors) == (True, 1)
        assert session.scalars(select(AuditRunRow.verdict)).one() == "error"
        assert session.scalars(select(MessageRow)).all() == []


def test_errors_of_gates_neither_pause_nor_are_told(audits: AuditStore, fail, kinds) -> None:
    """They judge other models than the audit's."""
    for _ in range(PAUSE_AFTER):
        fail("gate")
    assert kinds() == []
    assert not audits.get("shipping").paused
