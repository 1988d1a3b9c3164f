"""Decoders that no table names are measured under their module names, or refused by name with the reason."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from architectures import CONFIGS, LATENT, VOCABULARY, save_random, swept_logits, whole_model
from oracle import configuration
from torch import nn
from transformers import BartConfig, BertConfig, ViTConfig

from service.contracts.request import Analysis
from service.contracts.schemes import SCHEMES
from workers.measurement.errors import BadModel
from workers.measurement.layers.streams import REFERENCE
from workers.measurement.layers.sweep import prepare_sweep, sweep_layers
from workers.measurement.layers.sweep_state import Batch
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.loading import load_decoder
from workers.measurement.models.probe import probe_layers

TOKEN_IDS = torch.randint(VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(5))
_SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
_PER_LAYER = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 16}
_SHARED = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2}
_LATENT = LATENT | {"num_key_value_heads": 4, "q_lora_rank": 64}

_TURNS = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "num_experts": 2}
_INKLING = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def config_of(name: str, **settings: Any) -> Any:
    return getattr(transformers, f"{name}Config")(**(_COMMON | settings))


OTHERS = {
    "cohere": lambda: config_of("Cohere", **_SIZES, num_key_value_heads=2),
    "granite": lambda: config_of("Granite", **_SIZES, num_key_value_heads=2),
    "mamba": lambda: config_of("Mamba", hidden_size=64, num_hidden_layers=2, state_size=8, time_step_rank=64),
    "bamba": lambda: config_of(
        "Bamba", **_SIZES, num_key_value_heads=2, mamba_n_heads=4, mamba_d_head=32, attn_layer_indices=[1]
    ),
    "falcon_mamba": lambda: config_of(
        "FalconMamba", hidden_size=64, num_hidden_layers=2, state_size=8, time_step_rank=64
    ),
    "jamba": lambda: config_of("Jamba", **_SIZES, **_TURNS, num_key_value_heads=2, mamba_d_state=8, mamba_dt_rank=64),
    "inkling": lambda: config_of("InklingText", **_SIZES, **_INKLING, num_key_value_heads=2, head_dim=16),
    "openai-gpt": lambda: config_of("OpenAIGPT", n_embd=64, n_layer=2, n_head=4, n_positions=64),
    "deepseek_v32": lambda: config_of("DeepseekV32", **_SIZES, **_LATENT),
    "dots3": lambda: config_of("Dots3NoteText", **_SIZES, **_LATENT, moe_layer_freq=1),
}
"""Cohere, Granite and Bamba run attention; Mamba has none; Falcon-Mamba's and Jamba's layers call one projection only
where they are told that they are quantized; Inkling keeps some weights in float32; Bamba's layers return a pair that
its model takes apart, and OpenAI's first GPT's return a list; the layers of Dots 3 differ in their heads."""

USED_OTHERWISE = {"mamba": "dt_proj", "deepseek_v32": "weights_proj", "dots3": "weights_proj"}
"""Projections that the layer does not only call; bitsandbytes cannot replace them."""

OWN_NAMES = {
    "cohere": {"self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"},
    "granite": {"self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"},
    "mamba": {"mixer.in_proj", "mixer.x_proj", "mixer.out_proj"},
    "bamba": {"mamba.in_proj", "feed_forward.down_proj"},
    "falcon_mamba": {"mixer.in_proj", "mixer.x_proj", "mixer.out_proj"},
    "jamba": {"mamba.in_proj", "feed_forward.down_proj"},
    "inkling": {"self_attn.q_proj", "self_attn.r_proj"},
    "openai-gpt": {"attn.c_attn", "mlp.c_fc"},
    "deepseek_v32": {"self_attn.kv_b_proj", "self_attn.indexer.weights_proj"},
    "dots3": {"self_attn.q_a_proj"},
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_a_decoder_outside_the_table_is_swept_exactly_under_its_module_names(architecture: str, tmp_path: Path) -> None:
    path = save_random(tmp_path / "model", OTHERS[architecture]())
    decoder = load_decoder(open_checkpoint(path), torch.device("cpu"), tmp_path / "scratch")
    state = prepare_sweep(
        decoder,
        [Batch(TOKEN_IDS)],
        [SCHEMES["int8"], SCHEMES["nf4"]],
        Analysis(),
        budget_bytes=2**30,
        directory=tmp_path / "streams",
    )
    found = list(sweep_layers(state))
    names = [{site.component for site in layer.ranges} for layer in found]
    kept = USED_OTHERWISE.get(architecture, "none")
    left = {name.rpartition(".")[2] for layer in found for scheme in layer.schemes.values() for name in scheme.left}
    assert left == {kept} - {"none"}
    assert names[0] > OWN_NAMES[architecture]
    assert not set.union(*names) & {"attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"}
    skipped = ["lm_head", kept]
    for stream in state.streams.names:
        told = configuration(path, stream, llm_int8_skip_modules=skipped)
        with torch.no_grad():
            expected = whole_model(path, told)(input_ids=TOKEN_IDS, use_cache=False).logits
        assert torch.equal(swept_logits(state, stream), expected), stream


@pytest.mark.parametrize("architecture", ["mamba", "falcon_mamba", "jamba", "inkling", "gpt_oss"])
def test_the_reference_is_exact_in_float16_and_no_gradients_are_kept(architecture: str, tmp_path: Path) -> None:
    path = save_random(tmp_path / "model", (CONFIGS | OTHERS)[architecture](), torch.float16)
    decoder = load_decoder(open_checkpoint(path), torch.device("cpu"), tmp_path / "scratch")
    state = prepare_sweep(
        decoder, [Batch(TOKEN_IDS)], [], Analysis(), budget_bytes=2**30, directory=tmp_path / "streams"
    )
    for _ in sweep_layers(state):
        assert not state.streams.get(REFERENCE, 0).requires_grad
    with torch.no_grad():
        expected = whole_model(path, None)(input_ids=TOKEN_IDS, use_cache=False).logits
    found = swept_logits(state, REFERENCE)
    assert torch.equal(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("make", [OTHERS["inkling"], CONFIGS["gpt_oss"]], ids=["inkling", "gpt_oss"])
def test_every_weight_of_a_layer_has_the_type_that_the_whole_model_gives_it(
    make: Callable[[], Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    path = save_random(tmp_path / "model", make(), dtype)
    expected = {name: weight.dtype for name, weight in whole_model(path, None).named_parameters()}
    decoder = load_decoder(open_checkpoint(path), torch.device("cpu"), tmp_path / "scratch")
    assert decoder.dtype == dtype
    for index in range(len(decoder.layers)):
        with decoder.resident(index) as layer:
            for name, weight in layer.named_parameters():
                assert weight.dtype == expected[f"{decoder.prefix}{index}.{name}"], name


REFUSED = {
    "bert": (
        lambda: BertConfig(**_SIZES, vocab_size=VOCABULARY),
        "BertLMHeadModel is not a causal decoder: in its first layer a position depends on the next one",
    ),
    "gemma3n": (
        lambda: config_of("Gemma3nText", **_SIZES, **_PER_LAYER, **_SHARED, laurel_rank=8, head_dim=16),
        r"layers of Gemma3nForCausalLM take hidden states \[4, 1, 2, 64\] for 1 sequence of 2 tokens",
    ),
    "gemma4": (
        lambda: config_of("Gemma4Text", **_SIZES, **_PER_LAYER, **_SHARED),
        "layers of Gemma4ForCausalLM cannot be measured one by one: they pass each other keys and values",
    ),
}


@pytest.mark.parametrize("architecture", REFUSED)
def test_a_model_that_the_sweep_would_compute_wrongly_is_refused_by_name(architecture: str, tmp_path: Path) -> None:
    make, message = REFUSED[architecture]
    path = save_random(tmp_path / "model", make())
    with pytest.raises(BadModel, match=message):
        load_decoder(open_checkpoint(path), torch.device("cpu"), tmp_path / "scratch")


@pytest.mark.parametrize(
    ("make", "architecture", "message"),
    [
        (lambda: BartConfig(), "BartForConditionalGeneration", r"BartForConditionalGeneration \(bart\)"),
        (lambda: BertConfig(), "BertForMaskedLM", "BertForMaskedLM is not a causal decoder"),
        (lambda: ViTConfig(), "ViTForImageClassification", r"ViTForImageClassification \(vit\)"),
        (lambda: config_of("T5"), "T5ForConditionalGeneration", r"T5ForConditionalGeneration \(t5\)"),
    ],
)
def test_encoder_decoders_masked_and_vision_models_are_refused_by_name(
    make: Callable[[], Any], architecture: str, message: str, tmp_path: Path
) -> None:
    path = save_random(tmp_path / "model", OTHERS["granite"]())
    config = make()
    config.architectures = [architecture]
    config.save_pretrained(path)
    with pytest.raises(BadModel, match=message):
        load_decoder(open_checkpoint(path), torch.device("cpu"), tmp_path / "scratch")


class Whole(nn.Module):
    """A model of three layers and no weights, which calls them as a test says."""

    def __init__(self, run: Callable[[nn.ModuleList, torch.Tensor], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(3))
        self._run = run

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        assert not use_cache
        return SimpleNamespace(logits=self._run(self.layers, input_ids[..., None] * torch.ones(4)))


def in_turn(layers: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def twice_over(layers: nn.ModuleList, hidden: torch.Tensor) -> None:
    for layer in (*layers, *layers):
        hidden = layer(hidden)


def one_left_out(layers: nn.ModuleList, hidden: torch.Tensor) -> None:
    for layer in layers[:2]:
        hidden = layer(hidden)


def scaled_between(layers: nn.ModuleList, hidden: torch.Tensor) -> None:
    for layer in layers:
        hidden = layer(hidden) * 0.5


def told_of_the_one_before(layers: nn.ModuleList, hidden: torch.Tensor) -> None:
    for layer in layers:
        hidden = layer(hidden, hidden.mean())


def ending_on_what_came_first(layers: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
    return hidden + in_turn(layers, hidden)


def ending_on_a_layer_between(layers: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
    between = layers[0](hidden)
    return between + in_turn(layers[1:], between)


def breaking_off(layers: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
    return in_turn(layers, hidden) @ torch.ones(5)


def sharing_a_dictionary(layers: nn.ModuleList, hidden: torch.Tensor) -> None:
    shared: dict[str, torch.Tensor] = {}
    for layer in layers:
        hidden = layer(hidden, shared)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (twice_over, r"calls them in the order \[0, 1, 2, 0, 1, 2\], but each of the 3 must run once"),
        (one_left_out, r"in the order \[0, 1\], but each of the 3 must run once"),
        (scaled_between, "the model changes the hidden states between two layers"),
        (told_of_the_one_before, "an argument of a layer depends on the outputs of earlier layers"),
        (ending_on_what_came_first, "the predictions depend on more than the last hidden states"),
        (ending_on_a_layer_between, "the predictions depend on more than the last hidden states"),
        (breaking_off, r"needs more from them than hidden states \(size mismatch"),
        (sharing_a_dictionary, "pass each other keys and values besides the hidden states"),
    ],
)
def test_layers_that_do_not_follow_one_another_by_hidden_states_alone_are_refused(run: Any, message: str) -> None:
    model = Whole(run)
    with pytest.raises(BadModel, match=f"layers of Whole cannot be measured one by one: .*{message}"):
        probe_layers(model, model.layers, 0, torch.device("cpu"))


def test_predictions_that_are_no_numbers_are_no_reason_to_refuse() -> None:
    model = Whole(lambda layers, hidden: in_turn(layers, hidden) * torch.tensor([1.0, torch.nan, torch.inf, 1.0]))
    probe_layers(model, model.layers, 0, torch.device("cpu"))


def test_running_out_of_memory_says_nothing_of_the_model() -> None:
    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    model = Whole(out_of_memory)
    with pytest.raises(RuntimeError, match="allocate memory"):
        probe_layers(model, model.layers, 0, torch.device("cpu"))


def test_layers_that_do_are_taken_and_put_back() -> None:
    model = Whole(in_turn)
    layers = list(model.layers)
    probe_layers(model, model.layers, 0, torch.device("cpu"))
    assert all(now is before for now, before in zip(model.layers, layers, strict=True))
