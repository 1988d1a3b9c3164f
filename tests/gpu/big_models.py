"""Llama checkpoints of real sizes with random weights and planted outliers, made on the device and written once.

As those of `tests/benchmarks/checkpoints.py`, which are made in host memory, and too slowly for 8 B parameters.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measuring_process import write_token_ids
from step_support import Context, Skip

SHAPES = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
    },
}
"""Of TinyLlama 1.1 B and of Llama 3 8 B."""
DRY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 512}
DRY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
SHARD_BYTES = 1 << 30
WRITERS = 4
STANDARD_DEVIATION = 0.02


def checkpoint(context: Context, shape: str) -> Path:
    """Return the directory of a checkpoint, made by the first step that needs it."""
    path = context.scratch / f"llama-{shape}"
    with (context.scratch / f"llama-{shape}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # steps of a dry run run side by side
        if not (path / "config.json").is_file():
            shutil.rmtree(path, ignore_errors=True)
            _make(path, DRY if context.dry else SHAPES[shape], context.device)
    return path


def random_tokens(context: Context, name: str, shape: tuple[int, int]) -> Path:
    """Return a calibration file of token ids [N, S], the sink token among them as often as in the benchmarks' text."""
    path = context.scratch / f"{name}.jsonl"
    if path.is_file():
        return path
    import torch
    from checkpoints import ALPHABET, SINK_TOKEN

    generator = torch.Generator().manual_seed(1)
    token_ids = torch.randint(256, shape, generator=generator)
    token_ids[torch.rand(shape, generator=generator) < 1 / 35] = ALPHABET.index(SINK_TOKEN)
    write_token_ids(path.with_suffix(".new"), token_ids)
    return path.with_suffix(".new").rename(path)


def _make(path: Path, sizes: dict[str, Any], device: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**sizes, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()}
    needed, free = 2 * sum(p.numel() for p in skeleton.parameters()), shutil.disk_usage(path.parent).free
    if free < 1.1 * needed:
        raise Skip(f"{path.parent} has {free / 1e9:.1f} GB free, {1.1 * needed / 1e9:.1f} are needed; set --scratch")
    path.mkdir()
    shards = list(_shards(shapes))
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda number: _write(path / files[number], shards[number], number, device), range(len(shards))))
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(path)  # last: it tells that the checkpoint is whole


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        elements = 1
        for length in shape:
            elements *= length
        if shard and size + 2 * elements > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += 2 * elements
    yield shard


def _write(file: Path, shapes: dict[str, tuple[int, ...]], seed: int, device: str) -> None:
    """Make a shard's tensors and write them; the seed is the shard's, so that threads may take them in any order."""
    import torch
    from checkpoints import plant_outliers
    from safetensors.torch import save_file

    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            tensors[name] = torch.ones(shape, dtype=torch.bfloat16, device=device)
        else:
            values = torch.empty(shape, dtype=torch.bfloat16, device=device)
            tensors[name] = values.normal_(0, STANDARD_DEVIATION, generator=generator)
    plant_outliers(tensors)
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
