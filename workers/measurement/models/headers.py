"""Compares the shapes that a config asks for with those in the headers of the weight files, before anything is loaded.

A model without memory for its weights (torch's meta device) gives the shapes. Weight files may hold tensors under other
names or in other pieces than the model does, so what has no counterpart is held to the number of values in all files.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import chain

from torch import nn

from workers.measurement.errors import BadModel
from workers.measurement.models.checkpoint import Checkpoint

Shape = tuple[int, ...]
BUFFER_VALUES = 1 << 28
"""Values of a buffer that is computed, such as a mask, which is in no weight file."""


def check_headers(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Compare a model on the meta device with the weight files.

    Raises:
        BadModel: a tensor has another size there, or the model is larger than the files; names the tensor.
    """
    stored = checkpoint.shapes
    held = sum(math.prod(shape) for shape in stored.values())
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    buffers = {name: tuple(buffer.shape) for name, buffer in model.named_buffers()}
    for name, shape in chain(wanted.items(), buffers.items()):
        # Equal numbers of values may be laid out otherwise; loading transposes some.
        if name in stored and math.prod(stored[name]) != math.prod(shape):
            raise BadModel(
                f"model: {checkpoint.path}: {name} has the shape {list(stored[name])} in the weight files, "
                f"but config.json needs {list(shape)}"
            )
    for name, shape, most in _unnamed(wanted, buffers, stored, held):
        if math.prod(shape) > most:
            raise BadModel(
                f"model: {checkpoint.path}: config.json needs {name} of the shape {list(shape)}, which is "
                f"{math.prod(shape):,} values; the weight files hold {held:,} together"
            )
    needed = sum(map(math.prod, wanted.values()))
    if needed > 2 * held:
        raise BadModel(
            f"model: {checkpoint.path}: config.json needs {needed:,} parameters; the weight files hold {held:,} values"
        )


def _unnamed(
    wanted: Mapping[str, Shape], buffers: Mapping[str, Shape], stored: Mapping[str, Shape], held: int
) -> Iterator[tuple[str, Shape, int]]:
    """Yield what the weight files do not have under its name, and the most values that it may have."""
    for named, most in ((wanted, held), (buffers, max(held, BUFFER_VALUES))):
        yield from ((name, shape, most) for name, shape in named.items() if name not in stored)
