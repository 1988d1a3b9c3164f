"""A measured mix is the model that transformers loads by its configuration, and the configuration is verified."""

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, VOCABULARY, save_checkpoint
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from service.contracts.request import Analysis
from service.contracts.schemes import SCHEMES
from workers.measurement.mixes.configuration import configuration, converted_modules
from workers.measurement.mixes.mix_sweep import Mix, Workplace, measure_mixes
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.loading import load_decoder
from workers.measurement.models.projections import is_projection
from workers.measurement.quantization.resolving import resolved
from workers.measurement.runtime.progress import ProgressReporter

TOKEN_IDS = torch.randint(VOCABULARY, (4, 20), generator=torch.Generator().manual_seed(5))
FIRST = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 12 layers, so that names of layers 1 and 11 can be taken for one another."""
    config = CONFIGS["llama"]()
    config.update({"num_hidden_layers": 12, "hidden_size": 64, "intermediate_size": 64})
    return save_checkpoint(tmp_path_factory.mktemp("deep") / "llama", config)


def opened(path: Path, scratch: Path) -> Decoder:
    return load_decoder(open_checkpoint(path), torch.device("cpu"), scratch / "offloaded")


def inside(decoder: Decoder) -> set[str]:
    """The names of the projections of the layers."""
    named = decoder.model.named_modules()
    return {name for name, module in named if is_projection(module) and name.startswith(decoder.prefix)}


def whole_model(path: Path, scheme: str, kept: Collection[str]) -> torch.Tensor:
    """Logits of the model that transformers loads with these modules skipped."""
    common = {"llm_int8_skip_modules": ["lm_head", *kept]}
    told = (
        BitsAndBytesConfig(load_in_8bit=True, **common)
        if scheme == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=scheme, bnb_4bit_compute_dtype=torch.bfloat16, **common
        )
    )
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=told).eval()
    with torch.no_grad():
        return model(input_ids=TOKEN_IDS, use_cache=False).logits


def kl(reference: torch.Tensor, logits: torch.Tensor) -> np.ndarray:
    log_p, log_q = (torch.log_softmax(one[:, FIRST:-1].double(), dim=-1) for one in (reference, logits))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).flatten().numpy()


def test_mixes_of_several_schemes_are_what_transformers_loads(checkpoint: Path, tmp_path: Path) -> None:
    decoder = opened(checkpoint, tmp_path)
    kept = {
        "a": ("nf4", {"model.layers.1.mlp.down_proj", "model.layers.3.self_attn.q_proj"}),
        "b": ("nf4", set()),
        "c": ("int8", {f"model.layers.{layer}.self_attn.v_proj" for layer in range(12)}),
        "d": ("nf4", {name for name in inside(decoder) if ".7." in name}),
    }
    mixes = [
        Mix(name, resolved(SCHEMES[of], decoder.dtype), frozenset(modules)) for name, (of, modules) in kept.items()
    ]
    found = measure_mixes(
        decoder, mixes, TOKEN_IDS.split(2), Analysis(), FIRST, Workplace(0, tmp_path / "streams", 60),
        ProgressReporter(out=io.StringIO()),
    )  # fmt: skip
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(checkpoint).eval()(input_ids=TOKEN_IDS, use_cache=False).logits
    for name, (scheme, modules) in kept.items():
        expected = kl(reference, whole_model(checkpoint, scheme, modules))
        assert found.comparisons[name].kl_divergence == pytest.approx(expected, rel=1e-4, abs=1e-9), name
    assert found.comparisons["a"].sequence.tolist() == np.repeat(range(4), TOKEN_IDS.shape[1] - 1 - FIRST).tolist()


@pytest.mark.parametrize("scheme", ["int8", "nf4", "fp4-dq"])
def test_a_configuration_converts_what_is_meant(scheme: str, checkpoint: Path, tmp_path: Path) -> None:
    decoder = opened(checkpoint, tmp_path)
    quantized = inside(decoder) - {"model.layers.1.mlp.down_proj", "model.layers.10.self_attn.o_proj"}
    config = configuration(resolved(SCHEMES[scheme], decoder.dtype), quantized, decoder)
    assert config is not None
    assert {*config["llm_int8_skip_modules"]} == {
        "lm_head", "model.layers.1.mlp.down_proj", "model.layers.10.self_attn.o_proj"
    }  # fmt: skip
    assert converted_modules(config, decoder.model.config) == quantized
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=BitsAndBytesConfig(**config))
    kind = "Linear8bitLt" if scheme == "int8" else "Linear4bit"
    assert {name for name, module in loaded.named_modules() if type(module).__name__ == kind} == quantized


def test_an_ambiguous_name_is_seen_by_what_transformers_converts(checkpoint: Path, tmp_path: Path) -> None:
    decoder = opened(checkpoint, tmp_path)
    config = {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "1.mlp.down_proj"]}
    skipped = inside(decoder) - converted_modules(config, decoder.model.config)
    assert skipped == {"model.layers.1.mlp.down_proj", "model.layers.11.mlp.down_proj"}
    alone = {"load_in_8bit": True, "llm_int8_skip_modules": ["model.layers.1.mlp.down_proj"]}
    assert "lm_head" in converted_modules(alone, decoder.model.config)  # which is skipped only where none is named


@pytest.mark.parametrize("scheme", ["mxfp4", "w8a8-token"])
def test_what_is_simulated_has_no_configuration(scheme: str, checkpoint: Path, tmp_path: Path) -> None:
    decoder = opened(checkpoint, tmp_path)
    assert configuration(SCHEMES[scheme], inside(decoder), decoder) is None
    blocks = resolved(SCHEMES["nf4"], decoder.dtype)
    blocks = blocks.model_copy(update={"settings": blocks.settings | {"block_size": 128}})
    assert configuration(blocks, inside(decoder), decoder) is None
