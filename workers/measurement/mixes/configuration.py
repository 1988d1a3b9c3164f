"""Converts a mix to the arguments of `transformers.BitsAndBytesConfig`, and verifies what transformers converts.

An entry of `llm_int8_skip_modules` matches a module by its whole name up to a dot, as a regular expression, or as a
suffix, so `1.mlp` also skips layers 11 and 21. Full names are unambiguous to transformers and to servers that compare
names as text. Giving any drops what transformers skips by itself, such as the output head, so these are listed too.
"""

from collections.abc import Collection
from typing import Any

import bitsandbytes as bnb
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer

from service.contracts.schemes import BITSANDBYTES_4BIT, BITSANDBYTES_INT8, Scheme
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.projections import is_projection


def configuration(scheme: Scheme, quantized: Collection[str], decoder: Decoder) -> dict[str, Any] | None:
    """Return the arguments of BitsAndBytesConfig, JSON types only; None where it cannot express the scheme.

    Args:
        scheme: with settings that the model decides resolved.
        quantized: full names of the modules that are quantized; every other projection is skipped.
        decoder: the model.
    """
    if scheme.simulated or scheme.analysis_only:
        return None
    linear = (name for name, module in decoder.model.named_modules() if is_projection(module))
    skipped = [name for name in linear if name not in quantized]
    settings = scheme.settings
    if scheme.kernel == BITSANDBYTES_INT8:
        own: dict[str, Any] = {"load_in_8bit": True, "llm_int8_threshold": settings["threshold"]}
    elif scheme.kernel == BITSANDBYTES_4BIT:
        own = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": settings["quant_type"],
            "bnb_4bit_use_double_quant": settings["double_quantisation"],
            "bnb_4bit_compute_dtype": settings["compute_dtype"],
        }
    else:
        return None
    return own | {"llm_int8_skip_modules": skipped}


def converted_modules(config: dict[str, Any], model_config: PreTrainedConfig) -> set[str]:
    """Return the names of the modules that transformers converts, of a model on the meta device built by `config`."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)
    quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(**config), pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map={"": "cpu"})
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}
