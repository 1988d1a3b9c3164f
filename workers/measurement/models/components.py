"""Names the component that each module of a decoder layer computes, architecture by architecture, as data.

The sweep needs no code per architecture; only the names do. A row of the table gives the modules of a layer, and how
a fused module's outputs divide among its components. Fused modules have three layouts in the wild: q, k and v as three
blocks (GPT-2, Phi-3); the queries of a k/v head with its k and v, head by head (GPT-NeoX, BLOOM, Falcon); and, where k
and v come from a latent, the k and v of each head (DeepSeek). Taking one for another is silently wrong, for the widths
are the same.

    H query heads, K key/value heads, D channels of a head, F intermediate size
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

Rows = slice | torch.Tensor
Split = Callable[[Any], dict[str, Rows]]
"""From the model's text config to the output channels of every component of a fused module."""


@dataclass(frozen=True)
class Heads:
    """How the channels of `attn.o.input`, the heads' outputs side by side, divide into heads."""

    query: int
    """H: query head h uses key/value head floor(h / (H / K))."""
    key_value: int
    """K: as many as query heads where the architecture does not group them."""
    width: int
    """D: channels of one head's output. Not always hidden_size / heads (Gemma), and not always as many as a
    query has (DeepSeek)."""


def heads(config: Any) -> Heads | None:
    """Return the heads that a text config describes, under whatever names; None if it has no attention heads."""
    query = getattr(config, "num_attention_heads", None)
    if not isinstance(query, int) or query < 1:
        return None
    if latent := getattr(config, "v_head_dim", None):
        return Heads(query, query, latent)
    width = getattr(config, "head_dim", None) or config.hidden_size // query
    if config.model_type == "falcon":
        # Falcon ignores num_kv_heads outside its new decoder: all heads share one k and v, or each has its own.
        ungrouped = 1 if config.multi_query else query
        return Heads(query, config.num_kv_heads if config.new_decoder_architecture else ungrouped, width)
    return Heads(query, getattr(config, "num_key_value_heads", None) or query, width)


def _blocks(config: Any) -> dict[str, Rows]:
    """[H + K + K, D]: all of q, then all of k, then all of v."""
    h = _attention_heads(config)
    k, v = h.query * h.width, (h.query + h.key_value) * h.width
    return {"attn.q": slice(0, k), "attn.k": slice(k, v), "attn.v": slice(v, v + h.key_value * h.width)}


def _interleaved(config: Any) -> dict[str, Rows]:
    """[K, H / K + 2, D]: the queries of each k/v head, then its k, then its v. K is H in GPT-NeoX and BLOOM."""
    h = _attention_heads(config)
    group = h.query // h.key_value
    channels = torch.arange(h.key_value * (group + 2) * h.width).view(h.key_value, group + 2, h.width)
    return {
        "attn.q": channels[:, :group].reshape(-1),
        "attn.k": channels[:, group].reshape(-1),
        "attn.v": channels[:, group + 1].reshape(-1),
    }


def _from_latent(config: Any) -> dict[str, Rows]:
    """[H, N + D]: the N channels of k that carry no position, then v, head by head."""
    h = _attention_heads(config)
    k = config.qk_nope_head_dim
    channels = torch.arange(h.query * (k + h.width)).view(h.query, k + h.width)
    return {"attn.k": channels[:, :k].reshape(-1), "attn.v": channels[:, k:].reshape(-1)}


def _gate_up(config: Any) -> dict[str, Rows]:
    """[2, F]: gate, then up."""
    width = config.intermediate_size
    return {"mlp.gate": slice(0, width), "mlp.up": slice(width, 2 * width)}


def _attention_heads(config: Any) -> Heads:
    layout = heads(config)
    if layout is None:
        raise ValueError(f"num_attention_heads: {config.model_type} has none; a fused q, k, v needs them")
    return layout


@dataclass(frozen=True)
class Architecture:
    """The names of one architecture's decoder layer."""

    modules: Mapping[str, str | Split]
    """Module name inside the layer -> its component, or how its outputs divide among several."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Module name -> the name that its input goes by, where that does not follow from its component."""


_Modules = dict[str, str | Split]


def _attention(path: str = "self_attn", out: str = "o_proj") -> _Modules:
    return {
        f"{path}.q_proj": "attn.q",
        f"{path}.k_proj": "attn.k",
        f"{path}.v_proj": "attn.v",
        f"{path}.{out}": "attn.o",
    }


def _fused_attention(path: str, split: Split) -> _Modules:
    return {f"{path}.query_key_value": split, f"{path}.dense": "attn.o"}


def _gated_mlp(path: str = "mlp") -> _Modules:
    return {f"{path}.{p}_proj": f"mlp.{p}" for p in ("gate", "up", "down")}


def _plain_mlp(up: str, down: str) -> _Modules:
    return {up: "mlp.up", down: "mlp.down"}


_LLAMA = Architecture(_attention() | _gated_mlp())
_NEOX_MLP = _plain_mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_GPT2: _Modules = {
    "attn.c_attn": _blocks,
    "attn.c_proj": "attn.o",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
_PHI3: _Modules = {
    "self_attn.qkv_proj": _blocks,
    "self_attn.o_proj": "attn.o",
    "mlp.gate_up_proj": _gate_up,
    "mlp.down_proj": "mlp.down",
}
_LATENT_ATTENTION: _Modules = {
    "self_attn.q_proj": "attn.q",
    "self_attn.q_b_proj": "attn.q",
    "self_attn.kv_b_proj": _from_latent,
    "self_attn.o_proj": "attn.o",
}

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "stablelm": _LLAMA,
        "gemma": _LLAMA,
        "gemma2": _LLAMA,
        "gemma3_text": _LLAMA,
        "olmo2": _LLAMA,
        "starcoder2": Architecture(_attention() | _plain_mlp("mlp.c_fc", "mlp.c_proj")),
        "phi": Architecture(_attention(out="dense") | _plain_mlp("mlp.fc1", "mlp.fc2")),
        "phi3": Architecture(_PHI3),
        "opt": Architecture(_attention(out="out_proj") | _plain_mlp("fc1", "fc2")),
        "gptj": Architecture(_attention("attn", "out_proj") | _plain_mlp("mlp.fc_in", "mlp.fc_out")),
        "gpt2": Architecture(_GPT2),
        "gpt_neox": Architecture(_fused_attention("attention", _interleaved) | _NEOX_MLP),
        "bloom": Architecture(_fused_attention("self_attention", _interleaved) | _NEOX_MLP),
        "falcon": Architecture(_fused_attention("self_attention", _interleaved) | _NEOX_MLP),
        "mixtral": Architecture(_attention()),
        "gpt_oss": Architecture(_attention()),
        "qwen2_moe": Architecture(
            _attention() | _gated_mlp() | _gated_mlp("mlp.shared_expert"), inputs={"mlp.shared_expert_gate": "mlp.up"}
        ),
        "qwen3_moe": Architecture(_attention() | _gated_mlp()),
        "llama4_text": Architecture(
            _attention() | _gated_mlp("feed_forward") | _gated_mlp("feed_forward.shared_expert")
        ),
        "deepseek_v3": Architecture(
            _LATENT_ATTENTION | _gated_mlp() | _gated_mlp("mlp.shared_experts"),
            inputs={
                "self_attn.q_a_proj": "attn.q",
                "self_attn.kv_a_proj_with_mqa": "attn.q",
                "self_attn.q_b_proj": "self_attn.q_b_proj",
                "self_attn.kv_b_proj": "self_attn.kv_b_proj",
            },
        ),
    }
)
"""By `model_type` of the text config."""
