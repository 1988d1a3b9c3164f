"""What a job may ask about harm, and which tables its report has."""

import pytest
from pydantic import ValidationError

from service.contracts.harm.settings import HarmSettings
from service.contracts.harm.tables import harm_tables
from service.contracts.refusals import sentence
from service.contracts.request import JobRequest


@pytest.mark.parametrize(
    ("asked", "tables"),
    [
        ({}, ()),
        ({"draws": 8}, ()),
        ({"estimate": True}, ("harm", "interactions")),
        ({"exact": "layers"}, ("harm",)),
        ({"exact": "modules"}, ("harm", "interactions")),
        ({"dimensions": True}, ("harm", "interactions", "dimension_harm")),
    ],
)
def test_a_report_has_the_tables_of_what_was_asked_for(asked, tables):
    settings = HarmSettings.model_validate(asked)
    assert tuple(table.name for table in harm_tables(settings)) == tables
    assert settings.measures == bool(tables)
    assert settings.estimates == ("interactions" in tables)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"harm": {"draws": 0}}, "harm.draws: 0 is not allowed; allowed: 1 or more"),
        ({"harm": {"draws": True}}, "a number, not true or false"),
        ({"harm": {"exact": "layer"}}, "harm.exact: 'layer' is not allowed; allowed: 'none', 'layers' or 'modules'"),
        ({"harm": {"component": "attn.v"}}, "component 'attn.v' needs exact to be 'modules', which is 'none'"),
        ({"schemes": [], "harm": {"estimate": True}}, "harm: without a scheme there is no harm"),
        ({"harm": {"top": 3}}, "harm.top: no field has this name"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_allowed(body, said):
    with pytest.raises(ValidationError) as refused:
        JobRequest.model_validate({"model": "sample"} | body)
    first = refused.value.errors()[0]
    assert said in sentence(".".join(map(str, first["loc"])), repr(first["input"]), first)


def test_no_scheme_and_no_harm_is_allowed():
    assert not JobRequest(model="sample", schemes=()).harm.measures
