"""Only what is comparable becomes a baseline, and what could not be compared with one does not pass."""

from typing import Any

import pytest
from audited import LIMIT, Model, Service

from service.contracts.audits.audit import AuditDefinition

GOOD, WORSE = Model("a"), Model("b", shift=1.0)
FILE = {"name": "text.jsonl", "sha256": "0" * 64, "size": 10}


def edit(service: Service, **changes: Any) -> None:
    asked = {"name": "shipping", "model": "/models/llama", "limits": (LIMIT,)} | changes
    service.audits.update("shipping", AuditDefinition.model_validate(asked))


def test_a_model_that_cannot_be_compared_warns_and_becomes_no_baseline(service: Service) -> None:
    """Another tokenizer makes another text of the same documents: nothing is known of the figures."""
    service.audit()
    first = service.run(GOOD)
    run = service.run(Model("e", shift=1.0, text=9))
    assert (run.verdict, run.baseline_report_id) == ("warn", first.report_id)
    assert run.findings[0].uncompared
    assert run.reasons == (
        f"{LIMIT}: not judged. The calibration texts differ, and texts that differ are never compared.",
    )
    assert service.run(WORSE, GOOD).verdict == "fail"


@pytest.mark.parametrize("baseline", ["last-passing", "median:5"])
@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"sequences": 8},
        {"calibration": FILE},
        {"massive": {"magnitude": 50.0}},
        {"schemes": ["int8", "nf4:block_size=128"]},
    ],
)
def test_after_an_edit_of_what_decides_the_figures_a_baseline_begins_anew(
    service: Service, change: dict[str, Any], baseline: str
) -> None:
    limit = "schemes.int8.kl_divergence.mean <= baseline * 1.2"
    service.audit(baseline=baseline, limits=(limit,), reruns=0)
    first = service.run(GOOD)
    edit(service, baseline=baseline, limits=(limit,), reruns=0, **change)
    assert not service.audits.report_is_baseline(first.report_id or "")
    second = service.run(Model("c"))
    assert (second.verdict, second.baseline_report_id) == ("pass", None)
    assert second.reasons == (f"{limit}: not judged. There is no baseline yet.",)
    assert service.run(Model("d")).baseline_report_id == second.report_id
    edit(service, baseline=baseline, limits=(limit,), reruns=0)
    assert service.audits.report_is_baseline(first.report_id or "")
    assert service.run(Model("e")).baseline_report_id == first.report_id


@pytest.mark.parametrize("change", [{"schemes": ["nf4"]}, {"batch_sequences": 2}, {"verdict": {"kl_severe": 0.2}}])
def test_an_edit_that_leaves_the_figures_comparable_keeps_the_baseline(
    service: Service, change: dict[str, Any]
) -> None:
    service.audit()
    first = service.run(GOOD)
    edit(service, **change)
    assert service.run(Model("c")).baseline_report_id == first.report_id


def test_a_scheme_that_is_added_begins_a_baseline_anew(service: Service) -> None:
    service.audit()
    service.run(GOOD)
    edit(service, schemes=["int8", "nf4", "fp4"])
    assert service.run(Model("c")).baseline_report_id is None


def test_other_definitions_begin_a_baseline_anew(service: Service) -> None:
    service.audit(baseline="median:3", skip_unchanged=False)
    service.run(GOOD)
    newer = Model("c")
    newer.changes = {"definitions_version": "2.0"}
    second = service.run(newer)
    assert (second.verdict, second.baseline_report_id) == ("pass", None)
    assert service.run(newer).baseline_report_id == second.report_id
