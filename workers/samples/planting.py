"""Plants known outlier dimensions into a trained model, without changing the function that it computes.

A norm multiplies its channel j by a weight, and the projections after it multiply channel j by their column j. With
the norm's weight times c and the columns divided by c the product is the same, while the tensor between them is c
times larger in channel j. For c a power of two a float keeps every bit, so planting can be undone exactly.

The columns become small beside the others in their rows and blocks, as the weights of real outlier channels are.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM

FOLLOWERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
"""The projections that read each norm's output."""
MAGNITUDE = 6.0
"""abs(x) that LLM.int8() calls an outlier."""
MARGIN = 1.5
"""Planted dimensions must be this far over the magnitude, and every other one this far under it."""
PLAN = ((8.0, slice(0, None)), (8.0, slice(2, None)), (16.0, slice(3, -1)))
"""What the shipped checkpoint carries: c and the layers, for the strongest dimension and the next ones."""
QUIETING = 0.5
"""c of the dimensions that training itself made so strong that they would be within the margin."""


@dataclass(frozen=True)
class Scaling:
    """One dimension made larger or smaller between the norms and the projections."""

    dimension: int
    """Channel of the residual stream."""
    factor: float
    """c, a power of two."""
    layers: tuple[int, ...]
    """Decoder layers in which both norms are scaled."""


@dataclass(frozen=True)
class Plan:
    """Every scaling of a checkpoint."""

    planted: tuple[Scaling, ...]
    """The outlier dimensions: those that were the strongest by nature, as they are in the models people use."""
    quieted: tuple[Scaling, ...]
    """The others that training made strong, scaled down so that the truth is clear."""

    @property
    def scalings(self) -> tuple[Scaling, ...]:
        """All of them."""
        return self.planted + self.quieted


def make_plan(magnitudes: torch.Tensor, layers: int) -> Plan:
    """Choose the dimensions of a trained model to scale.

    Args:
        magnitudes: for each channel [d] the largest threshold at which it is an outlier by nature.
        layers: number of decoder layers.
    """
    strongest = magnitudes.argsort(descending=True).tolist()
    planted = tuple(
        Scaling(dimension, factor, tuple(range(layers)[chosen]))
        for dimension, (factor, chosen) in zip(strongest, PLAN, strict=False)
    )
    strong = [j for j in strongest[len(PLAN) :] if magnitudes[j] > MAGNITUDE / MARGIN]
    return Plan(planted, tuple(Scaling(j, QUIETING, tuple(range(layers))) for j in strong))


def plant(model: LlamaForCausalLM, scalings: tuple[Scaling, ...]) -> None:
    """Scale the norms and the columns in place.

    Raises:
        ValueError: a factor is not a power of two, or a weight would lose bits (it would become subnormal or
            overflow); the model is then partly scaled and of no use.
    """
    for scaling in scalings:
        for norm, projections in scaled_modules(model, scaling):
            multiply(norm[scaling.dimension], scaling.factor)
            for projection in projections:
                multiply(projection[:, scaling.dimension], 1.0 / scaling.factor)


def undo(model: LlamaForCausalLM, scalings: tuple[Scaling, ...]) -> None:
    """Undo `plant`, bit for bit."""
    plant(model, tuple(Scaling(s.dimension, 1.0 / s.factor, s.layers) for s in scalings))


def scaled_modules(model: LlamaForCausalLM, scaling: Scaling) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Each norm's weight [d] to scale, with the weights [out, d] of the projections after it."""
    for index in scaling.layers:
        layer = model.get_submodule(f"model.layers.{index}")
        for norm, followers in FOLLOWERS.items():
            weights = [layer.get_parameter(f"{name}.weight").detach() for name in followers]
            yield layer.get_parameter(f"{norm}.weight").detach(), weights


def multiply(values: torch.Tensor, factor: float) -> None:
    """Multiply in place, or raise ValueError where a bit would be lost."""
    scaled = values * factor
    if math.frexp(factor)[0] != 0.5 or not torch.equal(scaled / factor, values):
        raise ValueError(f"factor: {factor} loses bits of {values.dtype} weights; allowed are powers of two in range")
    values.copy_(scaled)
