"""Every architecture in the table: computed as the whole model computes it, named as its own code divides it."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import (
    COMPONENTS,
    CONFIGS,
    HIDDEN,
    NOT_QUANTIZED,
    VOCABULARY,
    decoder_layers,
    random_model,
    save_random,
    swept_logits,
    whole_model,
)
from oracle import WholeModel, configuration
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.bloom.modeling_bloom import BloomAttention

from service.contracts.request import Analysis
from service.contracts.schemes import SCHEMES
from workers.measurement.layers.sites import Site
from workers.measurement.layers.streams import REFERENCE
from workers.measurement.layers.sweep import prepare_sweep, sweep_layers
from workers.measurement.layers.sweep_state import Batch
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.components import heads
from workers.measurement.models.loading import load_decoder
from workers.measurement.models.projections import projections, weight_rows
from workers.measurement.results.report import not_quantised

NAMES = ("int8", "nf4", "fp4")
TOKEN_IDS = torch.randint(VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Swept:
    """What a sweep over one architecture's tiny model left."""

    architecture: str
    path: Path
    logits: dict[str, torch.Tensor]
    sites: list[dict[Site, int]]
    """By layer: every site and its channels."""
    not_quantised: tuple[str, ...]
    prefix: str


@pytest.fixture(scope="module", params=CONFIGS)
def swept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return sweep(request.param, tmp_path_factory.mktemp("architecture"))


def sweep(architecture: str, directory: Path, dtype: torch.dtype = torch.bfloat16) -> Swept:
    path = save_random(directory / "model", CONFIGS[architecture](), dtype)
    decoder = load_decoder(open_checkpoint(path), torch.device("cpu"), directory / "scratch")
    schemes = [SCHEMES[name] for name in NAMES]
    state = prepare_sweep(
        decoder, [Batch(TOKEN_IDS)], schemes, Analysis(), budget_bytes=2**30, directory=directory / "streams"
    )
    sites = [{s: len(x.channels().mean) for s, x in found.ranges.items()} for found in sweep_layers(state)]
    logits = {name: swept_logits(state, name) for name in state.streams.names}
    return Swept(architecture, path, logits, sites, not_quantised(decoder), decoder.prefix)


@functools.lru_cache(maxsize=4)
def whole(path: Path, scheme: str) -> Any:
    return whole_model(path, configuration(path, scheme))


def whole_model_logits(path: Path, scheme: str) -> torch.Tensor:
    with torch.no_grad():
        return whole(path, scheme)(input_ids=TOKEN_IDS, use_cache=False).logits


def test_the_sweep_computes_what_the_whole_model_and_bitsandbytes_compute(swept: Swept) -> None:
    for scheme, logits in swept.logits.items():
        assert torch.equal(logits, whole_model_logits(swept.path, scheme)), scheme
    left_as_it_is = swept.architecture.startswith("falcon")
    for scheme in NAMES:
        assert torch.equal(swept.logits[REFERENCE], swept.logits[scheme]) == left_as_it_is, scheme


@pytest.mark.parametrize("architecture", ["gpt_oss", "gemma3", "deepseek_v3", "bloom"])
def test_fp16_checkpoints_whose_norms_or_biases_stay_in_float32(architecture: str, tmp_path: Path) -> None:
    found = sweep(architecture, tmp_path, torch.float16)
    assert found.logits[REFERENCE].isfinite().all()
    for scheme in (REFERENCE, "int8"):
        assert torch.equal(found.logits[scheme], whole_model_logits(found.path, scheme)), scheme


def test_every_component_is_named(swept: Swept) -> None:
    for sites, expected in zip(swept.sites, COMPONENTS[swept.architecture], strict=True):
        assert {site.component for site in sites if site.port == "output"} == expected | {"block"}


def test_every_input_is_measured_once_and_the_hidden_states_enter_q_and_up(swept: Swept) -> None:
    inputs = {"attn.q", "attn.o"}
    latents = {"self_attn.kv_b_proj"} if swept.architecture.startswith("deepseek") else set()
    latents |= {"self_attn.q_b_proj"} if swept.architecture == "deepseek_v3" else set()
    for sites, components in zip(swept.sites, COMPONENTS[swept.architecture], strict=True):
        mlp = components & {"mlp.up", "mlp.down"}
        assert {site.component for site in sites if site.port == "input"} == inputs | mlp | latents
        assert sites[Site("attn.q", "input")] == sites[Site("block", "output")] == HIDDEN
        assert sites.get(Site("mlp.up", "input"), HIDDEN) == HIDDEN


def test_what_no_scheme_replaces_is_listed_by_name(swept: Swept) -> None:
    within = {name for name in swept.not_quantised if name.startswith(swept.prefix)}
    assert within == NOT_QUANTIZED.get(swept.architecture, set())
    model = AutoModelForCausalLM.from_pretrained(swept.path, quantization_config=configuration(swept.path, "int8"))
    own = {
        n for n, m in model.named_modules() if any(p.ndim > 1 and p.is_floating_point() for p in m.parameters(False))
    }
    assert own == set(swept.not_quantised)


def test_projections_outside_the_layers_are_put_back(tmp_path: Path) -> None:
    path = save_random(tmp_path / "model", CONFIGS["opt, projected"](), torch.float32)
    decoder = load_decoder(open_checkpoint(path), torch.device("cpu"), tmp_path / "scratch")
    assert set(decoder.outside) == {"model.decoder.project_in", "model.decoder.project_out"}
    own = {name: decoder.model.get_submodule(name) for name in decoder.outside}
    state = prepare_sweep(
        decoder, [Batch(TOKEN_IDS)], [SCHEMES["nf4"]], Analysis(), budget_bytes=2**30, directory=tmp_path / "streams"
    )
    assert not torch.equal(state.streams.get(REFERENCE, 0), state.streams.get("nf4", 0))
    hidden = state.streams.get(REFERENCE, 0)
    assert not torch.equal(state.head_input("nf4", hidden), state.head_input(REFERENCE, hidden))
    assert {name: decoder.model.get_submodule(name) for name in decoder.outside} == own
    weights = sum(module.weight.nbytes for module in own.values())
    assert 0.84 * weights < state.outside["nf4"].saved_bytes < 0.86 * weights


FUSED = ["gpt2", "gpt_neox", "bloom", "phi3", *(name for name in CONFIGS if name.startswith(("falcon", "deepseek")))]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, ...]]:
    """The q, k and v that the first attention computations are called with, [B, heads, S, D] each."""
    calls: list[tuple[torch.Tensor, ...]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def recording(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **keyword: Any) -> Any:
        calls.append((query, key, value))
        return attend(query, key, value, *rest, **keyword)

    divide = BloomAttention._reshape

    def noting(attention: nn.Module, fused: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(divide(attention, fused))
        return calls[-1]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recording)
    monkeypatch.setattr(BloomAttention, "_reshape", noting)  # BLOOM's attention calls no function of that kind
    return calls


@pytest.mark.parametrize("architecture", FUSED)
def test_fused_outputs_are_split_as_the_attention_receives_them(
    architecture: str, received: list[tuple[torch.Tensor, ...]]
) -> None:
    model = random_model(CONFIGS[architecture]())
    layer, config = decoder_layers(model)[0], model.config
    [fused] = [p for p in projections(layer, config) if "attn.v" in p.parts]
    assert len(fused.parts) > 1
    outputs: list[torch.Tensor] = []
    layer.get_submodule(fused.name).register_forward_hook(lambda _, __, output: outputs.append(output))
    # At position 0 the rotary embedding turns by no angle.
    positions = {} if architecture == "bloom" else {"position_ids": torch.zeros_like(TOKEN_IDS)}
    with torch.no_grad():
        model(input_ids=TOKEN_IDS, use_cache=False, **positions)
    found = heads(config)
    assert found is not None
    for name, tensor in zip(("attn.q", "attn.k", "attn.v"), received[0], strict=True):
        if name not in fused.parts:
            continue
        count = found.query if name == "attn.q" else found.key_value
        split = outputs[0][..., fused.parts[name]].reshape(*TOKEN_IDS.shape, count, -1)
        one_each = tensor[:, :: tensor.shape[1] // count].transpose(1, 2)  # k and v may be repeated for every query
        assert torch.equal(split, one_each[..., : split.shape[-1]]), name


def test_gate_and_up_are_split_as_the_mlp_uses_them() -> None:
    model = random_model(CONFIGS["phi3"]())
    layer = decoder_layers(model)[0]
    kept: dict[str, torch.Tensor] = {}
    layer.mlp.activation_fn.register_forward_hook(lambda _, inputs, output: kept.update(gate=inputs[0], act=output))
    layer.mlp.gate_up_proj.register_forward_hook(lambda _, __, output: kept.update(fused=output))
    layer.mlp.down_proj.register_forward_hook(lambda _, inputs, __: kept.update(product=inputs[0]))
    with torch.no_grad():
        model(input_ids=TOKEN_IDS, use_cache=False)
    [fused] = [p for p in projections(layer, model.config) if "mlp.up" in p.parts]
    assert torch.equal(kept["fused"][..., fused.parts["mlp.gate"]], kept["gate"])
    assert torch.equal(kept["fused"][..., fused.parts["mlp.up"]] * kept["act"], kept["product"])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_heads_are_as_wide_as_the_values_and_as_what_enters_o(architecture: str) -> None:
    model = random_model(CONFIGS[architecture](), torch.float32)
    layer, config = decoder_layers(model)[0], model.config
    found = heads(config)
    assert found is not None
    [value] = [p for p in projections(layer, config) if "attn.v" in p.parts]
    outputs = len(weight_rows(layer.get_submodule(value.name)))
    assert len(torch.arange(outputs)[value.parts["attn.v"]]) == found.key_value * found.width
    [out] = [p for p in projections(layer, config) if "attn.o" in p.parts]
    assert weight_rows(layer.get_submodule(out.name)).shape[1] == found.query * found.width


def test_a_fused_module_of_another_width_keeps_its_module_name() -> None:
    model = random_model(CONFIGS["phi3"]())
    config = CONFIGS["phi3"]()
    config.update({"num_key_value_heads": 4, "intermediate_size": 96})
    found = {p.name: list(p.parts) for p in projections(decoder_layers(model)[0], config)}
    assert found["self_attn.qkv_proj"] == ["self_attn.qkv_proj"]
    assert found["mlp.gate_up_proj"] == ["mlp.gate_up_proj"]
    assert found["self_attn.o_proj"] == ["attn.o"]


@pytest.mark.parametrize("architecture", ["llama", "llama4", *(name for name in CONFIGS if name.startswith("falcon"))])
def test_outputs_are_what_the_modules_gave_whatever_the_layer_adds_to_them_later(
    architecture: str, tmp_path: Path
) -> None:
    path = save_random(tmp_path / "model", CONFIGS[architecture](), torch.bfloat16)
    decoder = load_decoder(open_checkpoint(path), torch.device("cpu"), tmp_path / "scratch")
    given = WholeModel(path, TOKEN_IDS).outputs
    state = prepare_sweep(
        decoder, [Batch(TOKEN_IDS)], [SCHEMES["nf4"]], Analysis(), budget_bytes=2**30, directory=tmp_path / "streams"
    )
    checked = 0
    for index, found in enumerate(sweep_layers(state)):
        for projection in projections(decoder.layers[index], decoder.layer_config(index)):
            output = given[f"{decoder.prefix}{index}.{projection.name}"].float()
            for component, rows in projection.parts.items():
                wanted = output.reshape(-1, output.shape[-1])[:, rows].abs().amax(dim=0)
                site = Site(component, "output")
                assert found.ranges[site].channels().abs_max.tolist() == wanted.tolist(), site
                if site in found.schemes["nf4"].isolated:
                    error = found.schemes["nf4"].isolated[site].deviation().relative_l2
                    assert error is not None
                    assert error < 0.3, site
                checked += 1
    assert checked >= 8
