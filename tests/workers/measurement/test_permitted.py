"""The model types that are allowed by default are those whose layers are compared with the whole model."""

import pytest
from architectures import CONFIGS
from test_other_decoders import OTHERS

from workers.measurement.models.permitted import MODEL_TYPES, keys_that_load_code, unknown_types


def test_the_allowed_model_types_are_those_that_are_tested() -> None:
    assert {make().model_type for make in (CONFIGS | OTHERS).values()} == MODEL_TYPES


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({"model_type": "llama", "layers": [{"a": 1}]}, []),
        ({"auto_map": {}}, ["auto_map"]),
        ({"a": [{"b": {"trust_remote_code": False}}]}, ["a.0.b.trust_remote_code"]),
        ({"attn_implementation": "sdpa"}, []),
        ({"text_config": {"_attn_implementation": "org/kernel"}}, ["text_config._attn_implementation"]),
    ],
)
def test_keys_that_load_code_are_known_at_any_depth(config: dict[str, object], keys: list[str]) -> None:
    assert list(keys_that_load_code(config)) == keys


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llama"}, []),
        ({}, ["model_type is None"]),
        ({"model_type": ["llama"]}, ["model_type is ['llama']"]),
        ({"model_type": "llama", "text_config": {"model_type": "nosuch"}}, ["text_config.model_type is 'nosuch'"]),
    ],
)
def test_a_model_type_is_known_or_named(config: dict[str, object], said: list[str]) -> None:
    assert list(unknown_types(config)) == said
