"""Adds eight tokens by eight channels to a reduction, written out in vector operations.

The compiler makes vector instructions of extremes, of power sums and of decoding only in loops of their own, each of
which loads the tokens again, and of none in a loop that also counts bins. Here they are loaded once for all of that.
The operations are LLVM's, which every processor has, in vectors as wide as its own.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from workers.measurement.statistics.cpu.histogram import LANES
from workers.measurement.statistics.reduction import BINS, SHIFT

ROWS = 8
"""Tokens that are taken together."""
COLUMNS = 8
"""Channels that are taken together."""
_I64, _I32, _F32, _F64 = ir.IntType(64), ir.IntType(32), ir.FloatType(), ir.DoubleType()
_INTEGERS, _FLOATS, _DOUBLES = (ir.VectorType(element, COLUMNS) for element in (_I32, _F32, _F64))


@intrinsic
def add_columns(
    _: Any, bits: Any, first: Any, pivot: Any, threshold: Any, low: Any, high: Any, over: Any, sums: Any, lanes: Any
) -> tuple[Any, Callable[..., Any]]:
    """Add the channels first..first+8 of 8 tokens to what is known of those channels.

    Args:
        bits: [8, d], patterns of float32 (uint32) or bfloat16 (uint16); what is not finite must be NaN.
        first: a channel, int64.
        pivot: [d], float32, finite.
        threshold: float32.
        low: [d], float32, the least of each channel; like all that follows not changed by NaN.
        high: [d], float32, the most.
        over: [d], int32, how many magnitudes are at or over the threshold.
        sums: [4, d], float64, of the first four powers of x - pivot.
        lanes: [2, 16384], uint32, how many values lie in each bin, in two parts; those of NaN have bins of their own.

    All arrays are contiguous.
    """
    signature = types.void(bits, first, pivot, threshold, low, high, over, sums, lanes)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        values = [
            context.make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
            for kind, value in zip(kinds, arguments, strict=True)
        ]
        _emit(builder, kinds[0].dtype.bitwidth, *values)
        return context.get_dummy_value()

    return signature, generate


def _emit(
    b: Any,
    width: int,
    bits: Any,
    first: Any,
    pivot: Any,
    threshold: Any,
    low: Any,
    high: Any,
    over: Any,
    sums: Any,
    lanes: Any,
) -> None:
    """Emit the operations; `width` is that of a pattern, in bits."""
    channels = cgutils.unpack_tuple(b, bits.shape, 2)[1]
    starts = [b.add(first, b.mul(_I64(k), channels)) for k in range(ROWS)]
    limit = _repeated(b, threshold)
    p = _load(b, pivot, first, _FLOATS)
    about = b.fpext(p, _DOUBLES)
    least, most = _load(b, low, first, _FLOATS), _load(b, high, first, _FLOATS)
    count = _load(b, over, first, _INTEGERS)
    powers = [_load(b, sums, starts[k], _DOUBLES) for k in range(4)]
    for start in starts:
        x = _decoded(b, _load(b, bits, start, ir.VectorType(ir.IntType(width), COLUMNS)))
        least = b.select(b.fcmp_ordered("<", x, least), x, least)
        most = b.select(b.fcmp_ordered(">", x, most), x, most)
        magnitude = b.bitcast(b.and_(b.bitcast(x, _INTEGERS), _INTEGERS([0x7FFFFFFF] * COLUMNS)), _FLOATS)
        count = b.add(count, b.zext(b.fcmp_ordered(">=", magnitude, limit), _INTEGERS))
        v = b.fsub(b.fpext(b.select(b.fcmp_ordered("==", x, x), x, p), _DOUBLES), about)
        square = b.fmul(v, v, flags=("contract",))
        terms = [v, square, b.fmul(square, v, flags=("contract",)), b.fmul(square, square, flags=("contract",))]
        powers = [b.fadd(power, term, flags=("contract",)) for power, term in zip(powers, terms, strict=True)]
        for j in range(COLUMNS):
            pattern = b.load(b.gep(bits.data, [b.add(start, _I64(j))]))
            number = b.lshr(pattern, pattern.type(SHIFT - 32 + width))
            place = b.gep(lanes.data, [b.add(b.zext(number, _I64), _I64(j % LANES * BINS))])
            b.store(b.add(b.load(place), _I32(1)), place)
    _store(b, least, low, first)
    _store(b, most, high, first)
    _store(b, count, over, first)
    for k, power in enumerate(powers):
        _store(b, power, sums, starts[k])


def _decoded(b: Any, patterns: Any) -> Any:
    """Return patterns of float32, or of bfloat16, as floats."""
    if patterns.type != _INTEGERS:
        patterns = b.shl(b.zext(patterns, _INTEGERS), _INTEGERS([16] * COLUMNS))
    return b.bitcast(patterns, _FLOATS)


def _repeated(b: Any, value: Any) -> Any:
    nothing = _FLOATS(ir.Undefined)
    return b.shuffle_vector(b.insert_element(nothing, value, _I32(0)), nothing, _INTEGERS([0] * COLUMNS))


def _load(b: Any, array: Any, index: Any, vector: Any) -> Any:
    found = b.load(_place(b, array, index, vector))
    found.align = _alignment(vector)
    return found


def _store(b: Any, value: Any, array: Any, index: Any) -> None:
    b.store(value, _place(b, array, index, value.type)).align = _alignment(value.type)


def _place(b: Any, array: Any, index: Any, vector: Any) -> Any:
    return b.bitcast(b.gep(array.data, [index]), vector.as_pointer())


def _alignment(vector: Any) -> int:
    """Return that of a single element, in bytes: where a vector begins is not otherwise known."""
    return {_F32: 4, _F64: 8}.get(vector.element) or vector.element.width // 8
