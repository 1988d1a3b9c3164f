"""Loads a decoder model whose layers stay on disk, and are read one at a time.

transformers loads everything but the decoder layers (embedding, final norm, head), and notes where in the
safetensors files each layer's tensors lie. `resident` puts one layer's weights in place for as long as they are
needed. No step knows the architecture: the layers are the model's largest list of modules, their arguments are
taken down by standing in for them, and the model's own code turns the last hidden states into logits.

    B sequences, S tokens each, d hidden dimensions, V vocabulary
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import set_module_tensor_to_device
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from workers.measurement.errors import BadModel, first_line
from workers.measurement.models.checkpoint import Checkpoint
from workers.measurement.models.config import read_config, reason
from workers.measurement.models.headers import check_headers
from workers.measurement.models.kept_precision import keep_in_float32
from workers.measurement.models.layer_reader import LayerReader, check_finite
from workers.measurement.models.probe import probe_first_layer, probe_layers
from workers.measurement.models.projections import is_projection
from workers.measurement.models.stand_ins import Arguments as Arguments
from workers.measurement.models.stand_ins import Injector, Recorded, Recorder, hidden_of, standing_in
from workers.measurement.runtime.memory import drop_file_pages, is_fatal

_MEASURED_TYPES = ("BF16", "F16", "F32")
"""Of a layer's weights, as safetensors names them."""


@dataclass(frozen=True)
class Decoder:
    """A causal language model with its layers on disk."""

    model: nn.Module
    layers: nn.ModuleList
    prefix: str
    """Name of `layers` inside the model, with a dot at the end."""
    reader: LayerReader
    """Gives the layers' weights."""
    device: torch.device
    answer_length: int
    """Length of the tuple that the layers return, hidden states first; 0 if they return the hidden states alone."""

    @property
    def config(self) -> Any:
        """The text model's configuration."""
        return self.model.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]

    def layer_config(self, index: int) -> Any:
        """Return the configuration of one layer, which in some models differs from another's in heads and widths."""
        return self.config.per_layer_config[index] if getattr(self.config, "is_heterogeneous", False) else self.config

    @property
    def outside(self) -> tuple[str, ...]:
        """Names of the projections outside the layers that schemes replace: all but the output head."""
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        return tuple(
            name
            for name, module in self.model.named_modules()
            if is_projection(module) and module is not head and not name.startswith(self.prefix)
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the model is stored and computed, but for weights that it keeps in float32."""
        dtype: torch.dtype = self.model.dtype  # type: ignore[assignment]
        return dtype

    @property
    def widest(self) -> int:
        """The most channels that a weight of the layers takes or gives."""
        return max((max(p.shape[-2:]) for p in self.layers.parameters() if p.ndim > 1), default=1)

    @contextmanager
    def resident(self, index: int, step: int = 1) -> Iterator[nn.Module]:
        """Hold layer `index` in memory; afterwards its weights are freed. Mapped ones need no room once they were used.

        `step`: 1 where the next layer follows, -1 where it is the one before.

        Raises:
            BadModel: a weight is NaN or infinite; names it.
        """
        layer = self.layers[index]
        names = [name for name, _ in layer.named_parameters()]
        handles = [module.register_forward_hook(_let_go) for module in layer.modules() if module._parameters]
        try:
            self._place(layer, index, step)
            yield layer
        finally:
            for handle in handles:
                handle.remove()
            for name in names:
                set_module_tensor_to_device(layer, name, "meta", clear_cache=False)

    def _place(self, layer: nn.Module, index: int, step: int) -> None:
        for name, tensor in self.reader.take(index, step).items():
            # The device's allocator keeps what the layer before has left: giving it back would make the device wait.
            set_module_tensor_to_device(layer, name, self.device, value=tensor, clear_cache=False)

    def rest(self) -> None:
        """Let go of the file pages of what lies outside the layers, and of what loading read beside it."""
        for parameter in self.model.parameters():
            drop_file_pages(parameter, whole_file=True)

    def record(self, token_ids: torch.Tensor) -> tuple[torch.Tensor, list[Arguments]]:
        """Return what enters the first layer, [B, S, d], and every layer's own arguments, for token_ids [B, S]."""
        stand_ins = [Recorder(layer, self.answer_length) for layer in self.layers]
        stand_ins[-1].last = True
        with standing_in(self.layers, stand_ins), torch.no_grad(), contextlib.suppress(Recorded):
            self.model(input_ids=token_ids.to(self.device), use_cache=False)
        return stand_ins[0].hidden, [stand_in.arguments for stand_in in stand_ins]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the model's logits, [B, S, V], for hidden states [B, S, d] after the last layer.

        They can be differentiated where the hidden states require gradients.
        """
        logits: torch.Tensor = self._end(hidden, lambda *_: None).logits
        return logits

    def logits_of(self, head_input: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the model's logits, [B, S, V], with head_input [B, S, e] in place of what `hidden` would lead to."""
        logits: torch.Tensor = self._end(hidden, lambda *_: (head_input,)).logits
        return logits

    def head_input(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what enters the output head, [B, S, e]: hidden states [B, S, d] after the final norm."""
        entered: list[torch.Tensor] = []

        def take(_: nn.Module, positional: tuple[torch.Tensor, ...]) -> None:
            entered.append(positional[0])
            raise Recorded

        with contextlib.suppress(Recorded):
            self._end(hidden, take)
        return entered[0]

    def _end(self, hidden: torch.Tensor, before_head: Callable[..., Any]) -> Any:
        """Return what the model does after its last layer, with a hook before the output head."""
        stand_ins = [Injector(layer, self.answer_length, hidden) for layer in self.layers]
        token_ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
        handle = self.model.get_output_embeddings().register_forward_pre_hook(before_head)  # type: ignore[operator]
        try:
            with standing_in(self.layers, stand_ins), torch.set_grad_enabled(hidden.requires_grad):
                return self.model(input_ids=token_ids, use_cache=False)
        finally:
            handle.remove()


def _let_go(module: nn.Module, *_: object) -> None:
    """Let go of the file pages of the weights that a module has just used."""
    for parameter in module.parameters(recurse=False):
        drop_file_pages(parameter)


def run_layer(layer: Callable[..., Any], hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
    """Return the hidden states after a layer, [B, S, d], with the arguments that the model would hand it.

    They can be differentiated where those before the layer require gradients.
    """
    positional, keyword = arguments
    with torch.set_grad_enabled(hidden.requires_grad):
        output = layer(hidden, *positional, **keyword)
    hidden_after: torch.Tensor = hidden_of(output)
    return hidden_after


def load_decoder(checkpoint: Checkpoint, device: torch.device, scratch: Path) -> Decoder:
    """Load a checkpoint with its decoder layers left on disk.

    Args:
        checkpoint: a directory that was looked at.
        device: where to compute.
        scratch: a directory for weights whose form in memory differs from that on disk.

    Raises:
        BadModel: no causal decoder, or config and weights disagree; names what. Also a model whose layers cannot
            be called one by one.
    """
    config = read_config(checkpoint)
    prefix, placement = _plan(config, checkpoint, str(device))
    model = _load(checkpoint, config, placement, scratch)
    layers = _layers(model, prefix)
    reader = _reader(checkpoint, model, prefix, device)
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
    """Return what reads the layers, in the place of accelerate's hooks, which are removed."""
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
                if kept.get_dtype() not in _MEASURED_TYPES:
                    raise BadModel(
                        f"model: {checkpoint.path}: {full} is stored as {kept.get_dtype()}; "
                        f"allowed are {', '.join(_MEASURED_TYPES)}"
                    )
                shape = tuple(kept.get_shape())
                if shape != wanted_shape:
                    raise BadModel(
                        f"model: {checkpoint.path}: {full} has the shape {list(shape)} in the weight files, "
                        f"but config.json needs {list(wanted_shape)}"
                    )


def _disagreement(info: dict[str, Any]) -> str:
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        return f"config.json needs {len(names)} tensors that the weight files do not have: {', '.join(names[:3])}"
    name, stored, wanted = sorted(info["mismatched_keys"])[0]
    return f"{name} has the shape {list(stored)} in the weight files, but config.json needs {list(wanted)}"
