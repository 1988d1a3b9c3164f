"""The record of what an audit is asked to do."""

import pytest
from pydantic import ValidationError

from service.audits.baseline import rule
from service.contracts.audits.audit import AuditDefinition, NewestIn


def test_an_audit_takes_the_keys_of_a_job_and_its_own():
    written = {
        "name": "shipping-llama",
        "model": {"newest_in": "/models/candidates"},
        "schemes": ["int8", "nf4"],
        "sequences": 32,
        "schedule": "0 3 * * *",
        "timezone": "Europe/Berlin",
        "baseline": "median:5",
        "limits": ["int8.kl_divergence.mean <= baseline * 1.2"],
        "notify": [{"webhook": "https://example.org/hook"}],
    }
    audit = AuditDefinition.model_validate(written)
    assert audit.model == NewestIn(newest_in="/models/candidates")
    assert AuditDefinition.model_validate_json(audit.model_dump_json()) == audit
    assert {key: audit.model_dump(mode="json")[key] for key in written} == written


def test_what_is_left_out_is_safe():
    audit = AuditDefinition(name="a", model="sample")
    assert (audit.schedule, audit.overlap, audit.reruns, audit.skip_unchanged) == (None, "skip", 1, True)
    assert rule(audit.baseline).kind == "last-passing"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "No"),
        ("name", ""),
        ("name", "-a"),
        ("name", "a" * 64),
        ("name", "0123456789abcdef" * 2),
        ("limit", []),
        ("model", {"newest": "/x"}),
        ("jitter_seconds", -1),
        ("catch_up_seconds", True),
        ("reruns", 17),
        ("pause_after_errors", 0),
        ("overlap", "both"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(key, value):
    with pytest.raises(ValidationError) as refused:
        AuditDefinition.model_validate({"name": "a", "model": "sample", key: value})
    assert {error["loc"][0] for error in refused.value.errors()} == {key}
