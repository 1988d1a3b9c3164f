"""Names the sites of a layer, and orders the work on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from workers.measurement.models.projections import BLOCK
from workers.measurement.statistics.cpu.threads import map_in_threads

Port = Literal["input", "output"]


class Site(NamedTuple):
    """A place in a layer where a tensor is measured."""

    component: str
    port: Port


BLOCK_OUTPUT = Site(BLOCK, "output")
HEADS_SITE = Site("attn.o", "input")
"""The heads' outputs, side by side."""

ForEach = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""Applies a function to every item, and returns the results in the items' order."""


def for_each_on(device: torch.device) -> ForEach:
    """Return a function that processes sites: on a CPU in threads, on another device one after the other."""
    return map_in_threads if device.type == "cpu" else _in_turn


def largest_first(sites: Mapping[Site, torch.Tensor]) -> list[Site]:
    """Return the sites by the size of their tensors, so that threads end at about the same time."""
    return sorted(sites, key=lambda site: sites[site].numel(), reverse=True)


def _in_turn(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return list(map(work, items))
