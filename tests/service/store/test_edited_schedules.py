"""Edits of an audit while a scheduled time is due: it fires still, or is skipped with the reason; none is lost."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from service.contracts.audits.audit import AuditDefinition
from service.store.artifacts import ArtifactStore
from service.store.audits import AuditStore
from service.store.runs.store import RunStore

DUE = datetime(2026, 1, 1, 3, tzinfo=UTC)
REPLACED = "The schedule was changed before the run for this time had been made."


def definition(**changes: Any) -> AuditDefinition:
    facts = {"name": "shipping", "model": "/models/llama", "schedule": "0 3 * * *"}
    return AuditDefinition.model_validate(facts | changes)


@pytest.fixture
def audits(engine: Engine, tmp_path: Path, clock) -> AuditStore:
    """An audit store with one audit, of which the run of 03:00 is due at 03:00:30."""
    store = AuditStore(engine, ArtifactStore(tmp_path / "artifacts"), clock)
    store.create(definition())
    clock.move(3 * 3600 + 30)
    return store


@pytest.fixture
def runs(engine: Engine, clock) -> RunStore:
    """The scheduler's view of the same audits."""
    return RunStore(engine, clock)


def history(audits: AuditStore) -> list[tuple[datetime | None, str | None, tuple[str, ...]]]:
    """Return time, verdict and reasons of all runs, oldest first."""
    return [(run.scheduled_at, run.verdict, run.reasons) for run in reversed(audits.runs("shipping").runs)]


@pytest.mark.parametrize(
    "changes", [{"limits": ("int8.perplexity <= 9",)}, {"overlap": "queue"}, {"catch_up_seconds": 60}, {"sequences": 7}]
)
def test_a_due_time_fires_after_an_edit_of_anything_but_the_schedule(
    audits: AuditStore, runs: RunStore, changes: dict[str, Any]
) -> None:
    edited = audits.update("shipping", definition(**changes))
    assert edited.next_run_at == DUE
    assert runs.due_audits() == [edited.id]
    assert runs.fire(edited.id) == 1
    assert history(audits) == [(DUE, None, ())]
    assert audits.get("shipping").next_run_at == datetime(2026, 1, 2, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    "changes", [{"schedule": "0 9 * * *"}, {"schedule": None}, {"timezone": "Asia/Tokyo"}, {"jitter_seconds": 600}]
)
def test_a_due_time_of_a_replaced_schedule_is_skipped_with_the_reason(
    audits: AuditStore, runs: RunStore, changes: dict[str, Any]
) -> None:
    edited = audits.update("shipping", definition(**changes))
    assert history(audits) == [(DUE, "skipped", (REPLACED,))]
    assert edited.next_run_at is None or edited.next_run_at > datetime(2026, 1, 1, 3, 0, 30, tzinfo=UTC)
    assert runs.due_audits() == []


def test_all_times_of_an_outage_are_skipped_when_the_schedule_is_replaced(audits: AuditStore, clock) -> None:
    clock.move(2 * 86400)
    audits.update("shipping", definition(schedule="0 9 * * *"))
    written = history(audits)
    assert [(at.day, verdict) for at, verdict, _ in written] == [(1, "skipped"), (2, "skipped"), (3, "skipped")]
    later = "A later time, 2026-01-03 03:00 UTC, is due too."
    assert [reasons for _, _, reasons in written] == [(later,), (later,), (REPLACED,)]


def test_a_time_that_has_fired_is_not_skipped(audits: AuditStore, runs: RunStore) -> None:
    runs.fire(audits.get("shipping").id)
    audits.update("shipping", definition(schedule="0 9 * * *"))
    assert history(audits) == [(DUE, None, ())]


def test_a_paused_audit_misses_no_time(audits: AuditStore) -> None:
    audits.pause("shipping", "new hardware comes")
    audits.update("shipping", definition(schedule="0 9 * * *"))
    assert history(audits) == []
