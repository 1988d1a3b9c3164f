"""Refuses configurations that name code, and model types that are not known to be measured exactly."""

from collections.abc import Iterator, Mapping
from typing import Any

from workers.measurement.models.components import ARCHITECTURES

CODE_KEYS = frozenset(
    {"auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "code_revision", "use_kernels"}
)
"""Keys by which transformers finds or loads Python code that comes with a model."""
_KERNEL_KEYS = frozenset({"attn_implementation", "_attn_implementation", "experts_implementation"})
"""Keys whose value names code on the hub where it holds a slash."""
_WEIGHT_KEYS = frozenset({"transformers_weights"})
"""Keys by which transformers loads other files than the usual ones, from other directories too."""

MODEL_TYPES = frozenset(ARCHITECTURES) | {
    "bamba",
    "cohere",
    "deepseek_v32",
    "dots3_note_text",
    "falcon_mamba",
    "granite",
    "inkling_text",
    "jamba",
    "mamba",
    "openai-gpt",
}
"""Model types whose layer-by-layer computation a test compares with the whole model, bit for bit."""


def keys_that_load_code(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a configuration, at any depth and with dots, that make a library load code."""
    for path, key, value in _entries(config):
        if key in CODE_KEYS or (key in _KERNEL_KEYS and "/" in str(value)):
            yield path


def keys_that_name_weights(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a configuration, likewise, by which it names files of weights itself."""
    return (path for path, key, _ in _entries(config) if key in _WEIGHT_KEYS)


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield every key of a configuration as a path with dots and alone, and its value."""
    pending: list[tuple[str, Any]] = [("", config)]
    while pending:
        prefix, value = pending.pop()
        if isinstance(value, list):
            pending += [(f"{prefix}{place}.", item) for place, item in enumerate(value)]
        if not isinstance(value, Mapping):
            continue
        for key, item in value.items():
            yield f"{prefix}{key}", key, item
            pending.append((f"{prefix}{key}.", item))


def unknown_types(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the model types of a configuration, and of its text model, that are not in MODEL_TYPES."""
    text = config.get("text_config")
    for prefix, part in (("", config), ("text_config.", text)):
        if isinstance(part, Mapping) and str(part.get("model_type")) not in MODEL_TYPES:
            yield f"{prefix}model_type is {part.get('model_type')!r}"
