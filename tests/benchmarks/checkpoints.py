"""Llama checkpoints of any size for the benchmarks: random weights, and outliers like those of real models.

Without outliers there would be nothing to find for several definitions, and they would seem to cost nothing.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
"""The tokenizer's vocabulary, by id."""
LOUD_DIMENSIONS = (3, 17, 21, 40, 55, 60)
"""What enters attention and MLP is some 15 there: outlier dimensions after LLM.int8(), in every layer."""
SINK_TOKEN, SINK_DIMENSIONS, SINK = "T", (5, 33), 300.0
"""A token, one in 35 of the text, whose hidden state is massive in two dimensions from the first layer on."""


def make_llama(
    path: Path,
    *,
    layers: int,
    hidden: int,
    intermediate: int,
    vocabulary: int = 8192,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Save a checkpoint with a byte tokenizer; returns its parameters. `hidden` is at least 64."""
    heads = hidden // 64
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=next(n for n in range(max(1, heads // 4), 0, -1) if heads % n == 0),
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    plant_outliers(dict(model.named_parameters()))
    model.save_pretrained(path, max_shard_size="500MB")
    tokenizer = Tokenizer(models.WordLevel({byte: i for i, byte in enumerate(ALPHABET)}, unk_token=ALPHABET[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def plant_outliers(tensors: Mapping[str, torch.Tensor]) -> None:
    """Change those tensors of a Llama, by name, that make outliers; others may be missing."""
    for name, tensor in tensors.items():
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            tensor[list(LOUD_DIMENSIONS)] = 15.0
        elif name == "model.embed_tokens.weight":
            tensor[ALPHABET.index(SINK_TOKEN), list(SINK_DIMENSIONS)] = SINK


def make_text(path: Path, tokens: int) -> Path:
    """Write text of at least so many tokens of the byte tokenizer."""
    sentence = "theQuickBrownFoxJumpsOverTheLazyDog"
    path.write_text(sentence * (tokens // len(sentence) + 1), encoding="utf-8")
    return path
