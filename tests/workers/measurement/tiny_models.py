"""Small checkpoints of several architectures, made from configs, with a tokenizer and a text of their own."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from service.contracts.request import MeasurementRequest

VOCABULARY = 320

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
    ),
    "gpt2": lambda: GPT2Config(
        n_embd=64, n_layer=3, n_head=4, n_positions=128, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=1
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        hidden_size=192,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=6,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
    ),
}


def words(count: int, seed: int) -> str:
    """Text of `count` words drawn from a small vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    stems = [
        "".join(pair) for pair in itertools.product(("ka", "lo", "mi", "ter", "un"), ("ra", "to", "sel", "ve", ""))
    ]
    return " ".join(stems[int(i)] for i in torch.randint(len(stems), (count,), generator=generator))


def save_tokenizer(path: Path, *, adds_bos: bool = False) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([words(2000, seed=0)], trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(path)


def save_checkpoint(
    path: Path, config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16, *, adds_bos: bool = False, **save: Any
) -> Path:
    """Save a randomly initialized model, wide enough in range for its layers to differ from one another."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(3.0)
    model.save_pretrained(path, **save)
    save_tokenizer(path, adds_bos=adds_bos)
    return path


def request_for(model: Path, text: Path, **settings: Any) -> MeasurementRequest:
    """Build a request with small defaults."""
    return MeasurementRequest.model_validate(
        {"sequences": 5, "sequence_length": 48}
        | settings
        | {"model": {"path": str(model)}, "calibration": {"path": str(text)}}
    )


def edit_config(path: Path, **changes: Any) -> None:
    """Change keys of a checkpoint's config.json; None removes one."""
    file = path / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
