"""A tiny model of every architecture in the table of components, and what the table must say of it.

Widths divide by what bitsandbytes packs (64 columns, 32 rows). Where an architecture allows it, head_dim is not
hidden_size / heads, keys and values are grouped, and the sliding window is shorter than the tests' sequences.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig

VOCABULARY = 320

HIDDEN = 64

_SIZES = {"hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_WIDE = _GROUPED | {"head_dim": 32}
_GPT2 = {"n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": 64}
_FALCON = {"hidden_size": HIDDEN, "ffn_hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LATENT = {
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 48,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
"""Of a small model with DeepSeek's latent attention and experts."""


def swept_logits(state: Any, stream: str) -> torch.Tensor:
    """Return the logits [B, S, V] of a stream's first batch after the last layer, all in one go."""
    hidden = state.streams.get(stream, 0)
    logits: torch.Tensor = state.decoder.logits_of(state.head_input(stream, hidden), hidden)
    return logits


def _config(name: str, **settings: Any) -> Callable[[], PreTrainedConfig]:
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1}
    return lambda: getattr(transformers, f"{name}Config")(**(common | {"pad_token_id": None} | settings))


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": _config("Llama", **_WIDE),
    "mistral": _config("Mistral", **_WIDE, sliding_window=9),
    "gemma": _config("Gemma", **_WIDE),
    "gemma2": _config("Gemma2", **_WIDE, sliding_window=9),
    "gemma3": _config("Gemma3Text", **_WIDE, sliding_window=9, layer_types=["sliding_attention", "full_attention"]),
    "qwen2": _config("Qwen2", **_GROUPED, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": _config("Qwen3", **_WIDE),
    "gpt2": _config("GPT2", **_GPT2, n_inner=128),
    "gpt_neox": _config("GPTNeoX", **_SIZES),
    "opt": _config("OPT", **_SIZES, ffn_dim=128, word_embed_proj_dim=HIDDEN),
    "opt, norms after": _config("OPT", **_SIZES, ffn_dim=128, word_embed_proj_dim=HIDDEN, do_layer_norm_before=False),
    "opt, projected": _config("OPT", **_SIZES, ffn_dim=128, word_embed_proj_dim=128, do_layer_norm_before=False),
    "phi": _config("Phi", **_GROUPED),
    "phi3": _config("Phi3", **_GROUPED, sliding_window=9),
    "falcon, one k and v": _config("Falcon", **_FALCON, multi_query=True),
    "falcon, grouped": _config("Falcon", **_FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon, per head": _config("Falcon", **_FALCON, multi_query=False, alibi=True, parallel_attn=False),
    "bloom": _config("Bloom", hidden_size=HIDDEN, n_layer=2, n_head=4),
    "gptj": _config("GPTJ", **_GPT2, n_inner=128, rotary_dim=16),
    "stablelm": _config("StableLm", **_GROUPED, qk_layernorm=True),
    "starcoder2": _config("Starcoder2", **_GROUPED, sliding_window=9),
    "olmo2": _config("Olmo2", **_GROUPED),
    "mixtral": _config("Mixtral", **_WIDE, num_local_experts=4, sliding_window=9),
    "qwen2_moe": _config("Qwen2Moe", **_GROUPED, **_EXPERTS, shared_expert_intermediate_size=64, mlp_only_layers=[1]),
    "qwen3_moe": _config("Qwen3Moe", **_WIDE, **_EXPERTS, mlp_only_layers=[1]),
    "gpt_oss": _config("GptOss", **_WIDE, num_local_experts=4, num_experts_per_tok=2, sliding_window=9),
    "deepseek_v3": _config("DeepseekV3", **_SIZES, **LATENT, num_key_value_heads=4, q_lora_rank=64),
    "deepseek_v3, whole q": _config("DeepseekV3", **_SIZES, **LATENT, num_key_value_heads=4, q_lora_rank=None),
    "llama4": _config(
        "Llama4Text",
        **_WIDE,
        intermediate_size_mlp=128,
        num_local_experts=4,
        interleave_moe_layer_step=2,
        attention_chunk_size=16,
        no_rope_layers=[1, 0],
    ),
}

_ATTENTION = {"attn.q", "attn.k", "attn.v", "attn.o"}
_PLAIN = _ATTENTION | {"mlp.up", "mlp.down"}
_GATED = _PLAIN | {"mlp.gate"}
_LATENT_COMPONENTS = _GATED | {"self_attn.kv_a_proj_with_mqa"}

COMPONENTS: dict[str, tuple[set[str], set[str]]] = {
    "llama": (_GATED, _GATED),
    "mistral": (_GATED, _GATED),
    "gemma": (_GATED, _GATED),
    "gemma2": (_GATED, _GATED),
    "gemma3": (_GATED, _GATED),
    "qwen2": (_GATED, _GATED),
    "qwen3": (_GATED, _GATED),
    "gpt2": (_PLAIN, _PLAIN),
    "gpt_neox": (_PLAIN, _PLAIN),
    "opt": (_PLAIN, _PLAIN),
    "opt, norms after": (_PLAIN, _PLAIN),
    "opt, projected": (_PLAIN, _PLAIN),
    "phi": (_PLAIN, _PLAIN),
    "phi3": (_GATED, _GATED),
    "falcon, one k and v": (_PLAIN, _PLAIN),
    "falcon, grouped": (_PLAIN, _PLAIN),
    "falcon, per head": (_PLAIN, _PLAIN),
    "bloom": (_PLAIN, _PLAIN),
    "gptj": (_PLAIN, _PLAIN),
    "stablelm": (_GATED, _GATED),
    "starcoder2": (_PLAIN, _PLAIN),
    "olmo2": (_GATED, _GATED),
    "mixtral": (_ATTENTION, _ATTENTION),
    "qwen2_moe": (_GATED | {"mlp.shared_expert_gate"}, _GATED),
    "qwen3_moe": (_ATTENTION, _GATED),
    "gpt_oss": (_ATTENTION, _ATTENTION),
    "deepseek_v3": (_LATENT_COMPONENTS | {"self_attn.q_a_proj"}, _LATENT_COMPONENTS | {"self_attn.q_a_proj"}),
    "deepseek_v3, whole q": (_LATENT_COMPONENTS, _LATENT_COMPONENTS),
    "llama4": (_GATED, _GATED),
}
"""The components of the first and the second layer."""

_FALCON_MODULES = {
    f"transformer.h.{layer}.{name}"
    for layer in (0, 1)
    for name in (
        "self_attention.query_key_value",
        "self_attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    )
}

NOT_QUANTIZED: dict[str, set[str]] = {
    "falcon, one k and v": _FALCON_MODULES,
    "falcon, grouped": _FALCON_MODULES,
    "falcon, per head": _FALCON_MODULES,
    "mixtral": {f"model.layers.{i}.mlp.{name}" for i in (0, 1) for name in ("gate", "experts")},
    "gpt_oss": {f"model.layers.{i}.mlp.{name}" for i in (0, 1) for name in ("router", "experts")},
    "qwen2_moe": {"model.layers.0.mlp.gate", "model.layers.0.mlp.experts"},
    "qwen3_moe": {"model.layers.0.mlp.gate", "model.layers.0.mlp.experts"},
    "deepseek_v3": {"model.layers.1.mlp.gate", "model.layers.1.mlp.experts"},
    "deepseek_v3, whole q": {"model.layers.1.mlp.gate", "model.layers.1.mlp.experts"},
    "llama4": {"model.layers.1.feed_forward.router", "model.layers.1.feed_forward.experts"},
}
"""Modules of the layers that bitsandbytes leaves as they are; none in the architectures that are not named."""


def random_model(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Build a model in which every weight and every stored buffer differs from what it starts with."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *_stored_buffers(model)]:
            if tensor.ndim >= 2 and "embed" not in name:
                tensor.normal_(0, 0.08)
            elif tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def save_random(path: Path, config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Save such a model without a tokenizer."""
    random_model(config, dtype).save_pretrained(path)
    return path


def whole_model(path: Path, quantization: BitsAndBytesConfig | None) -> Any:
    """Load the whole model as transformers does, with what bitsandbytes' CPU kernels refuse kept from them.

    Their packed 4-bit path takes no weight of one row (Qwen2-MoE's gate of its shared expert), and their int8 path
    no input of four dimensions (DeepSeek's latents).
    """
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=quantization).eval()
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit) and module.out_features % 32:
            module.support_avx512bf16_for_cpu = False
        if isinstance(module, bnb.nn.Linear8bitLt):
            module.forward = _by_rows(module.forward)
    return model


def _by_rows(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def two_dimensional(x: torch.Tensor) -> torch.Tensor:
        if x.ndim < 4:
            return forward(x)
        return forward(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

    return two_dimensional


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Find the decoder layers of a whole model."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()))


def _stored_buffers(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    stored = model.state_dict()
    return [(name, tensor) for name, tensor in model.named_buffers() if name in stored and tensor.is_floating_point()]
