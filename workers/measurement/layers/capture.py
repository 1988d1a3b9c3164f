"""Reads the tensors at a layer's sites while the layer runs.

B sequences, S tokens each, d channels of the site
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from workers.measurement.layers.sites import Site
from workers.measurement.models.projections import Projection


@dataclass
class Capture:
    """The inputs and outputs of every projection of a layer, by module name, [B, S, d] each."""

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    tokens: tuple[int, int] = (1, 1)
    """B and S of the run."""
    versions: list[tuple[str, torch.Tensor, int]] = field(default_factory=list)
    """What torch counted as each tensor's changes when it was captured, with the module's name."""

    def overwritten(self) -> set[str]:
        """Return the modules whose input or output the layer has written into since it was captured."""
        return {name for name, tensor, version in self.versions if tensor._version != version}

    def sites(self, projections: Sequence[Projection]) -> dict[Site, torch.Tensor]:
        """Return the tensor at every site; one that feeds several projections appears once.

        A projection that did not run in the pass (an expert to which no token went) has no site.
        """
        tensors: dict[Site, torch.Tensor] = {}
        for projection in projections:
            if projection.name not in self.inputs:
                continue
            tensors.setdefault(Site(projection.input_component, "input"), self.inputs[projection.name])
            for component, rows in projection.parts.items():
                tensors[Site(component, "output")] = self.outputs[projection.name][..., rows]
        return tensors


@contextmanager
def capturing(layer: nn.Module, projections: Sequence[Projection], copied: Collection[str] = ()) -> Iterator[Capture]:
    """Capture the projections of a layer for as long as the context lasts.

    Tensors are kept as [B, S, d] however the layer hands them on (OPT's MLP takes [B * S, d], DeepSeek's latents are
    [B, 1, S, d]); where there is not one row for each token, as in an expert to which only some go, as one sequence.
    The calls of a module that runs several times stand one after the other; one that gets no rows did not run.
    Tensors are not copied but for modules of `copied`: for those into whose tensors the layer writes later on, as
    Llama 4 adds the routed experts to the shared one's output (see `Capture.overwritten`).
    """
    capture = Capture()

    def note_tokens(_: nn.Module, positional: tuple[torch.Tensor, ...]) -> None:
        batch, length = positional[0].shape[:2]
        capture.tokens = batch, length

    handles = [layer.register_forward_pre_hook(note_tokens)]
    for projection in projections:
        module = layer.get_submodule(projection.name)
        hook = _hook(capture, projection.name, copy=projection.name in copied)
        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield capture
    finally:
        for handle in handles:
            handle.remove()


def _hook(capture: Capture, name: str, *, copy: bool) -> Any:
    def hook(
        _: nn.Module, positional: tuple[torch.Tensor, ...], keyword: dict[str, torch.Tensor], output: torch.Tensor
    ) -> None:
        taken = positional[0] if positional else next(iter(keyword.values()))
        if taken.numel():
            for kept, tensor in ((capture.inputs, taken), (capture.outputs, output)):
                own = tensor.detach().clone() if copy else tensor.detach()
                capture.versions.append((name, own, own._version))
                _append(kept, name, own, capture.tokens)

    return hook


def _append(kept: dict[str, torch.Tensor], name: str, tensor: torch.Tensor, tokens: tuple[int, int]) -> None:
    rows = tensor.reshape(-1, tensor.shape[-1])
    if name in kept:
        rows = torch.cat([kept[name].flatten(0, -2), rows])
    batch, length = tokens
    if len(rows) % (batch * length):
        length = len(rows)
    kept[name] = rows.view(-1, length, rows.shape[-1])
