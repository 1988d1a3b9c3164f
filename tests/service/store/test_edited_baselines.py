"""Edits of an audit whose pinned baseline does not fit: whoever insisted on it once does not have to again."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from service.contracts.audits.audit import AuditDefinition
from service.errors import InvalidRequest
from service.store.artifacts import ArtifactStore
from service.store.audits import AuditStore

CAUTIONS = ("There is no such report.",)


def definition(**changes: Any) -> AuditDefinition:
    facts = {"name": "shipping", "model": "/models/llama", "baseline": f"report:{'0' * 32}"}
    return AuditDefinition.model_validate(facts | changes)


@pytest.fixture
def audits(engine: Engine, tmp_path: Path, clock) -> AuditStore:
    """An audit store with one audit, whose baseline somebody insisted on."""
    store = AuditStore(engine, ArtifactStore(tmp_path / "artifacts"), clock)
    store.create(definition(), force=True)
    return store


@pytest.mark.parametrize(
    "changes",
    [
        {"limits": ("int8.perplexity <= 9",)},
        {"schedule": "0 3 * * *"},
        {"name": "other"},
        {"model": "/models/newer"},
        {"reruns": 1},
    ],
)
def test_other_edits_keep_the_cautions(audits: AuditStore, changes: dict[str, Any]) -> None:
    asked = definition(**changes)
    assert audits.check(asked, replaced="shipping") == CAUTIONS
    edited = audits.update("shipping", asked)
    assert (edited.definition, edited.baseline_cautions) == (asked, CAUTIONS)


@pytest.mark.parametrize(
    "changes",
    [
        {"baseline": f"report:{'1' * 32}"},
        {"sequences": 77},
        {"seed": 5},
        {"schemes": ["int8"]},
        {"calibration": {"name": "c.txt", "sha256": "0" * 64, "size": 1}},
    ],
)
def test_another_baseline_text_or_scheme_is_checked_again(audits: AuditStore, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="There is no such report"):
        audits.check(definition(**changes), replaced="shipping")
    with pytest.raises(InvalidRequest, match="There is no such report"):
        audits.update("shipping", definition(**changes))
    assert audits.get("shipping").definition == definition()


def test_another_audit_is_checked_though_the_same_was_forced_before(audits: AuditStore) -> None:
    for act in (audits.check, audits.create):
        with pytest.raises(InvalidRequest, match="There is no such report"):
            act(definition(name="other"))


def test_a_baseline_that_is_chosen_clears_the_cautions(audits: AuditStore) -> None:
    assert audits.update("shipping", definition(baseline="last-passing")).baseline_cautions == ()
