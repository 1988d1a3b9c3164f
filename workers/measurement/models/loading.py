"""Loads a checkpoint as a `Decoder`, with the decoder layers left on disk and a reader for them.

transformers loads the embedding, the final norm and the head, and notes where in the safetensors files each layer's
tensors lie. The decoder layers are the model's largest list of modules, so no step knows the architecture.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.hooks import remove_hook_from_module
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from workers.measurement.errors import BadModel, first_line
from workers.measurement.models.checkpoint import Checkpoint
from workers.measurement.models.config import read_config, reason
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.headers import check_headers
from workers.measurement.models.kept_precision import keep_in_float32
from workers.measurement.models.layer_reader import LayerReader, check_finite
from workers.measurement.models.probe import probe_first_layer, probe_layers
from workers.measurement.runtime.memory import is_fatal

MEASURED_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""Of a model and of its layers' weights, by the names of safetensors."""


def load_decoder(checkpoint: Checkpoint, device: torch.device, scratch: Path) -> Decoder:
    """Load a checkpoint with its decoder layers left on disk.

    Args:
        checkpoint: a directory that was looked at.
        device: where to compute.
        scratch: a directory for weights whose form in memory differs from that on disk.

    Raises:
        BadModel: not a causal decoder, config and weights disagree, or the layers cannot be called one by one.
    """
    config = read_config(checkpoint)
    prefix, placement = _plan(config, checkpoint, str(device))
    model = _load(checkpoint, config, placement, scratch)
    layers = _layers(model, prefix)
    reader = _reader(checkpoint, model, prefix, device)
    _check_type(checkpoint, model)
    model.eval()  # weights go on requiring gradients: without, torch multiplies strided float16 inputs in another way
    check_finite({name: weight for name, weight in model.named_parameters() if weight.device.type != "meta"})
    decoder = Decoder(model, layers, prefix, reader, device, answer_length=0)
    answer_length = probe_first_layer(model, layers, decoder.resident(0), device)
    probe_layers(model, layers, answer_length, device)
    return replace(decoder, answer_length=answer_length)


def _load(
    checkpoint: Checkpoint, config: PreTrainedConfig, placement: dict[str, str], scratch: Path
) -> PreTrainedModel:
    """Load a checkpoint by transformers, each module where `placement` puts it.

    Raises:
        BadModel: it does not load, or lacks tensors that the config asks for.
    """
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            config=config,
            device_map=placement,
            dtype="auto",
            offload_folder=scratch,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named below, in words of our own
        )
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        if is_fatal(error):
            raise
        raise BadModel(f"model: {checkpoint.path} cannot be loaded: {first_line(error)}") from error
    model: PreTrainedModel
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        raise BadModel(f"model: {checkpoint.path}: {_disagreement(info)}")
    return model


def _layers(model: nn.Module, prefix: str) -> nn.ModuleList:
    """Return the list of decoder layers of that name, which ends with a dot."""
    return cast(nn.ModuleList, model.get_submodule(prefix[:-1]))


def _plan(config: PreTrainedConfig, checkpoint: Checkpoint, device: str) -> tuple[str, dict[str, str]]:
    """Return the name of the list of decoder layers, with a dot, and where each module of the model goes.

    The decoder layers are the list that holds the most parameters. They go to disk, all else to the device.
    """
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # a hostile or mistaken config fails in as many ways as there are architectures
        file, why = checkpoint.path / "config.json", reason(error, checkpoint)
        raise BadModel(f"model: {file}: transformers cannot build this model: {why}") from error
    lists = {name: module for name, module in skeleton.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists or max(len(module) for module in lists.values()) == 0:
        raise BadModel(f"model: {type(skeleton).__name__} has no decoder layers")
    check_headers(skeleton, checkpoint)
    layers = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    outside = dict.fromkeys(_modules_beside(skeleton, layers), device)
    return f"{layers}.", outside | {f"{layers}.{i}": "disk" for i in range(len(lists[layers]))}


def _modules_beside(model: nn.Module, layers: str) -> Iterator[str]:
    """Yield the names of the modules and parameters that lie beside the list of layers, at every depth above it."""
    path = layers.split(".")
    for depth, next_name in enumerate(path):
        above = ".".join(path[:depth])
        module = model.get_submodule(above)
        for name, _ in (*module.named_children(), *module.named_parameters(recurse=False)):
            if name != next_name:
                yield f"{above}.{name}" if above else name


def _reader(checkpoint: Checkpoint, model: PreTrainedModel, prefix: str, device: torch.device) -> LayerReader:
    """Return a reader of the layers, which replaces accelerate's hooks; these are removed."""
    layers = _layers(model, prefix)
    weights = _weights_on_disk(layers)
    remove_hook_from_module(model, recurse=True)
    _check_stored(checkpoint, layers, prefix, weights.index)
    keep_in_float32(model, prefix, weights.index)
    names = [{name: f"{prefix}{i}.{name}" for name, _ in layer.named_parameters()} for i, layer in enumerate(layers)]
    return LayerReader(weights, names, device, ahead=device.type == "cuda")


def _weights_on_disk(layers: nn.ModuleList) -> Any:
    """Return accelerate's mapping from tensor names to tensors on disk, which its hooks on the modules hold."""
    hooks = (getattr(module, "_hf_hook", None) for module in layers.modules())
    maps = (getattr(hook, "weights_map", None) for hook in hooks)
    weights = next(weights_map.dataset for weights_map in maps if weights_map is not None)
    weights.device = None  # accelerate would read straight to the device, and make all that it computes wait
    return weights


def _check_stored(checkpoint: Checkpoint, layers: nn.ModuleList, prefix: str, index: dict[str, Any]) -> None:
    """Compare every layer tensor's shape on disk with the one that the config asks for, and its type with those that
    can be measured; reads headers only.
    """
    by_file: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
    for name, parameter in layers.named_parameters():
        full = prefix + name
        if full not in index:
            raise BadModel(
                f"model: {checkpoint.path}: config.json needs the weight {full}, but the weight files do not have it"
            )
        place = index[full]
        wanted = (full, place["weight_name"], tuple(parameter.shape))
        by_file.setdefault(place["safetensors_file"], []).append(wanted)
    for file, entries in by_file.items():
        with safe_open(file, framework="pt") as tensors:
            for full, stored, wanted_shape in entries:
                kept = tensors.get_slice(stored)
                if kept.get_dtype() not in MEASURED_TYPES:
                    raise BadModel(
                        f"model: {checkpoint.path}: {full} is stored as {kept.get_dtype()}; "
                        f"allowed are {', '.join(MEASURED_TYPES)}"
                    )
                shape = tuple(kept.get_shape())
                if shape != wanted_shape:
                    raise BadModel(
                        f"model: {checkpoint.path}: {full} has the shape {list(shape)} in the weight files, "
                        f"but config.json needs {list(wanted_shape)}"
                    )


def _check_type(checkpoint: Checkpoint, model: PreTrainedModel) -> None:
    """Refuse a type of the whole model that cannot be measured."""
    if model.dtype not in MEASURED_TYPES.values():
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in MEASURED_TYPES.values())
        name = str(model.dtype).removeprefix("torch.")
        raise BadModel(f"model: {checkpoint.path / 'config.json'}: dtype {name!r} is not allowed; allowed: {allowed}")


def _disagreement(info: dict[str, Any]) -> str:
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        return f"config.json needs {len(names)} tensors that the weight files do not have: {', '.join(names[:3])}"
    name, stored, wanted = sorted(info["mismatched_keys"])[0]
    return f"{name} has the shape {list(stored)} in the weight files, but config.json needs {list(wanted)}"
