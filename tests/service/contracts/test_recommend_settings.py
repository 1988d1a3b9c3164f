"""What a job may ask about mixes."""

import pytest
from pydantic import ValidationError

from service.contracts.request import Analysis, JobRequest


def test_a_recommendation_implies_estimates_and_measured_modules():
    asked = JobRequest.model_validate({"model": "sample", "recommend": {"enabled": True, "max_bytes": "120MB"}})
    assert (asked.harm.estimate, asked.harm.exact) == (True, "modules")
    assert (asked.harm.top_modules, asked.harm.random_modules) == (24, 12)
    assert asked.recommend.max_bytes == 120_000_000
    assert asked.recommend.whole_groups
    less = {"recommend": {"enabled": True}, "harm": {"exact": "none", "estimate": True, "draws": 8}}
    assert Analysis.model_validate(less).harm.exact == "none"
    layers = Analysis.model_validate({"recommend": {"enabled": True}, "harm": {"exact": "layers"}}).harm
    assert (layers.estimate, layers.exact) == (True, "layers")
    assert Analysis.model_validate(asked.model_dump(mode="json", include=set(Analysis.model_fields))).harm == asked.harm


def test_without_one_nothing_changes():
    assert not Analysis.model_validate({"recommend": {"enabled": False}}).harm.measures


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"recommend": {"enabled": True, "max_bytes": 1, "max_kl": 1}}, "exclude each other"),
        ({"recommend": {"max_kl": 0.1}}, "set enabled to true"),
        ({"recommend": {"enabled": True, "max_kl": 0}}, "greater than 0"),
        (
            {"recommend": {"enabled": True}, "harm": {"exact": "none", "estimate": False}},
            "needs harm.estimate to be true",
        ),
        ({"recommend": {"enabled": True}, "schemes": []}, "without a scheme there is no harm"),
        ({"recommend": {"enabled": True, "max_bytes": "4.6"}}, "a number with a unit, such as 125MB"),
        ({"recommend": {"enabled": True, "max_bytes": ".5 B"}}, "a number with a unit, such as 125MB"),
        ({"keep": ["a b"]}, "match pattern"),
    ],
)
def test_what_cannot_be_recommended_is_refused(asked, said):
    with pytest.raises(ValidationError, match=said):
        Analysis.model_validate(asked)


def test_one_sequence_selects_nothing():
    asked = {"recommend": {"enabled": True}, "sequences": 1}
    with pytest.raises(ValidationError, match="a recommendation needs 2 sequences or more to select mixes"):
        Analysis.model_validate(asked)
    assert Analysis.model_validate(asked | {"sequences": 2}).recommend.enabled
    assert Analysis.model_validate({"sequences": 1}).sequences == 1


@pytest.mark.parametrize("harm", [{"draws": 0}, {"draws": True}])
def test_no_draw_is_refused(harm):
    with pytest.raises(ValidationError, match="draws"):
        Analysis.model_validate({"harm": {"estimate": True} | harm})
