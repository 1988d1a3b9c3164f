"""Random Llama checkpoints of any size for the benchmarks; speed does not depend on what the weights say."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def make_llama(
    path: Path,
    *,
    layers: int,
    hidden: int,
    intermediate: int,
    vocabulary: int = 8192,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Save a checkpoint with a byte tokenizer; returns its parameters."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
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
    model.save_pretrained(path, max_shard_size="500MB")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.WordLevel({byte: i for i, byte in enumerate(alphabet)}, unk_token=alphabet[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return sum(p.numel() for p in model.parameters())


def make_text(path: Path, tokens: int) -> Path:
    """Write text of at least so many tokens of the byte tokenizer."""
    sentence = "theQuickBrownFoxJumpsOverTheLazyDog"
    path.write_text(sentence * (tokens // len(sentence) + 1), encoding="utf-8")
    return path
