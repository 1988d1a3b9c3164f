"""Asks for memory before it is needed, so that a core does not wait for it.

A processor itself looks ahead within a page of memory only, and the rows of a tensor that a layer has just written are
in neither of the caches near a core.
"""

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from workers.measurement.statistics.cpu.compiling import compiled

_LINE = 64
"""Bytes that memory hands over together."""
AHEAD = 2
"""By so many tokens earlier than they are needed are tokens asked for."""
_BYTES, _I32 = ir.IntType(8).as_pointer(), ir.IntType(32)
_READ, _SECOND_CACHE, _DATA = _I32(0), _I32(2), _I32(1)


@intrinsic
def prefetch(_: object, flat: types.Array, index: types.Integer) -> tuple[Any, Callable[..., Any]]:
    """Ask for the memory around an element of a contiguous array; without effect where the array has ended."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        ask = builder.module.declare_intrinsic(
            "llvm.prefetch", [_BYTES], ir.FunctionType(ir.VoidType(), [_BYTES, _I32, _I32, _I32])
        )
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), _BYTES)
        builder.call(ask, [place, _READ, _SECOND_CACHE, _DATA])
        return context.get_dummy_value()

    return types.void(flat, index), generate


@compiled()
def prefetch_row(flat: npt.NDArray[Any], first: int, channels: int) -> None:  # pragma: no cover - compiled
    """Ask for the elements first..first+channels of an array."""
    for c in range(0, channels, _LINE // flat.itemsize):
        prefetch(flat, first + c)
