"""Reads the configuration of a checkpoint by transformers, and checks that it can be measured."""

import re
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from workers.measurement.errors import BadModel, first_line
from workers.measurement.models.checkpoint import Checkpoint
from workers.measurement.models.permitted import MODEL_TYPES, unknown_types

_LANGUAGE_MODEL = re.compile("CausalLM|LMHead")
"""In the name of most causal decoders' architectures."""


def read_config(checkpoint: Checkpoint) -> Any:
    """Return the configuration of a checkpoint, as transformers reads it.

    Raises:
        BadModel: it is not valid, or not one of a causal decoder that can be measured; names the field.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library validates configs with errors of many kinds
        raise BadModel(f"model: {checkpoint.path / 'config.json'}: {reason(error, checkpoint)}") from error
    _check_causal(config)
    asked = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0)
    if asked > len(checkpoint.shapes):
        raise BadModel(
            f"model: {checkpoint.path / 'config.json'} asks for {asked} layers; the weight files hold only "
            f"{len(checkpoint.shapes)} tensors"
        )
    parts = (config, config.get_text_config(decoder=True))
    if any(getattr(part, "quantization_config", None) for part in parts):
        raise BadModel(f"model: {checkpoint.path} is already quantized; give the checkpoint before quantization")
    return config


def check_model_type(checkpoint: Checkpoint) -> None:
    """Refuse a model type that the layer-by-layer computation has not been shown to run exactly. Raises BadModel."""
    for said in unknown_types(checkpoint.config):
        raise BadModel(
            f"model: {checkpoint.path / 'config.json'}: {said[:120]}; allowed on this worker: "
            f"{', '.join(sorted(MODEL_TYPES))} (HEADROOM_ANY_MODEL_TYPE=true of the worker allows all)"
        )


def _check_causal(config: PreTrainedConfig) -> None:
    """Refuse a configuration that is not one of a causal decoder."""
    named = ", ".join(config.architectures or ["no architecture"])
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise BadModel(
            f"model: {named} ({config.model_type}) is not a causal decoder; allowed are the architectures "
            "that transformers loads as AutoModelForCausalLM"
        )
    if config.architectures and not any(_LANGUAGE_MODEL.search(name) for name in config.architectures):
        causal = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        allowed = [str(getattr(c, "__name__", c)) for c in (causal if isinstance(causal, tuple) else (causal,))]
        if not set(config.architectures) & set(allowed):
            raise BadModel(
                f"model: {named} is not a causal decoder; allowed for {config.model_type}: {', '.join(allowed)}"
            )


def reason(error: Exception, checkpoint: Checkpoint) -> str:
    """Return a library's reason for refusing a config, with the fields that hold the name it does not know."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    unknown = error.args[0] if isinstance(error, KeyError) and error.args else None
    if isinstance(unknown, str) and (fields := _holding(unknown, checkpoint.config)):
        return f"{' and '.join(fields)} is {unknown!r}, which transformers does not know"
    return first_line(error)


def _holding(text: str, fields: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the names of the fields whose value is `text`, those of nested objects with a dot."""
    names = []
    for name, value in fields.items():
        if value == text:
            names.append(f"{prefix}{name}")
        elif isinstance(value, dict):
            names += _holding(text, value, f"{prefix}{name}.")
    return names
