"""Adds eight tokens by eight channels to a reduction, written out in vector operations.

The compiler makes vector instructions of extremes, of power sums and of decoding only in loops of their own, each of
which loads the tokens again, and of none in a loop that also counts bins. Here they are loaded once for all of that.
The operations are LLVM's, which every processor has, in vectors as wide as its own.

    d channels, a multiple of 8
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from workers.measurement.statistics.cpu.histogram import LANES, U32
from workers.measurement.statistics.reduction import BINS, F32, F64, I32, SHIFT

ROWS = 8
"""Tokens that are taken together."""
COLUMNS = 8
"""Channels that are taken together."""
_I64, _I32, _F32, _F64 = ir.IntType(64), ir.IntType(32), ir.FloatType(), ir.DoubleType()
_INTEGERS, _FLOATS, _DOUBLES = (ir.VectorType(element, COLUMNS) for element in (_I32, _F32, _F64))


class Columns(NamedTuple):
    """The channels of a reduction: pivots and thresholds, and their figures so far. All arrays are contiguous.

    No figure is changed by NaN, but for those bins of the histogram that NaN have of their own.
    """

    pivot: F32
    """[d], finite."""
    threshold: np.float32
    minimum: F32
    """[d]."""
    maximum: F32
    """[d]."""
    power_sums: F64
    """[4, d]: of the first four powers of x - pivot."""
    over: I32
    """[d]: how many magnitudes are at or over the threshold."""
    lanes: U32
    """[2, 16384]: how many values lie in each bin, in two parts."""


@intrinsic
def add_columns(
    _: object, bits: types.Array, first: types.Integer, columns: types.NamedTuple
) -> tuple[Any, Callable[..., Any]]:
    """Add the channels first..first+8 of 8 tokens to the figures of those channels.

    Args:
        bits: [8, d], patterns of float32 (uint32) or bfloat16 (uint16); what is not finite must be NaN.
        first: a channel, int64.
        columns: a `Columns`.
    """
    signature = types.void(bits, first, columns)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        encoded, first_channel, record = arguments
        kind, _, record_kind = signature.args
        # Open the record: arrays become views with an address, numbers stay values.
        fields = [
            context.make_array(field)(context, builder, value) if isinstance(field, types.Array) else value
            for field, value in zip(
                record_kind.types, cgutils.unpack_tuple(builder, record, len(record_kind.types)), strict=True
            )
        ]
        _emit(builder, context.make_array(kind)(context, builder, encoded), first_channel, Columns(*fields))
        return context.get_dummy_value()

    return signature, generate


def _emit(b: ir.IRBuilder, bits: Any, first: ir.Value, columns: Columns) -> None:
    """Emit the operations; the fields of `columns` are LLVM's values here."""
    # Load the figures of the eight channels into vectors, which stay in registers over all eight tokens. Rows of
    # `bits` and of the power sums lie d elements apart.
    channels = cgutils.unpack_tuple(b, bits.shape, 2)[1]
    starts = [b.add(first, b.mul(_I64(k), channels)) for k in range(ROWS)]
    limit = _repeated(b, columns.threshold)
    pivot = _load(b, columns.pivot, first, _FLOATS)
    least, most = _load(b, columns.minimum, first, _FLOATS), _load(b, columns.maximum, first, _FLOATS)
    count = _load(b, columns.over, first, _INTEGERS)
    powers = [_load(b, columns.power_sums, starts[k], _DOUBLES) for k in range(4)]
    for start in starts:
        x = _decoded(b, _load(b, bits, start, ir.VectorType(bits.data.type.pointee, COLUMNS)))
        # Ordered comparisons are false for NaN, which therefore moves no extreme and is not counted.
        least = b.select(b.fcmp_ordered("<", x, least), x, least)
        most = b.select(b.fcmp_ordered(">", x, most), x, most)
        magnitude = b.bitcast(b.and_(b.bitcast(x, _INTEGERS), _INTEGERS([0x7FFFFFFF] * COLUMNS)), _FLOATS)
        count = b.add(count, b.zext(b.fcmp_ordered(">=", magnitude, limit), _INTEGERS))
        powers = _add_powers(b, powers, x, pivot)
        _count_bins(b, bits, start, columns.lanes)
    # Put the figures back.
    _store(b, least, columns.minimum, first)
    _store(b, most, columns.maximum, first)
    _store(b, count, columns.over, first)
    for k, power in enumerate(powers):
        _store(b, power, columns.power_sums, starts[k])


def _add_powers(b: ir.IRBuilder, powers: list[ir.Value], x: ir.Value, pivot: ir.Value) -> list[ir.Value]:
    """Add the first four powers of x - pivot to four vectors of sums, in float64.

    NaN stands at the pivot, and adds nothing. Multiplications and additions may be contracted to fused ones, which
    round once instead of twice.
    """
    distance = b.fsub(
        b.fpext(b.select(b.fcmp_ordered("==", x, x), x, pivot), _DOUBLES),
        b.fpext(pivot, _DOUBLES),
    )
    square = b.fmul(distance, distance, flags=("contract",))
    terms = [
        distance,
        square,
        b.fmul(square, distance, flags=("contract",)),
        b.fmul(square, square, flags=("contract",)),
    ]
    return [b.fadd(power, term, flags=("contract",)) for power, term in zip(powers, terms, strict=True)]


def _count_bins(b: ir.IRBuilder, bits: Any, start: ir.Value, lanes: Any) -> None:
    """Count one token's eight values in their bins, one by one: neighbors go to different lanes in turn."""
    width = bits.data.type.pointee.width
    for j in range(COLUMNS):
        pattern = b.load(b.gep(bits.data, [b.add(start, _I64(j))]))
        # The top 14 bits of a float32 pattern, which are those of a bfloat16's too.
        number = b.lshr(pattern, pattern.type(SHIFT - 32 + width))
        place = b.gep(lanes.data, [b.add(b.zext(number, _I64), _I64(j % LANES * BINS))])
        b.store(b.add(b.load(place), _I32(1)), place)


def _decoded(b: ir.IRBuilder, patterns: ir.Value) -> ir.Value:
    """Return patterns of float32, or of bfloat16, as floats: a bfloat16 is the upper half of a float32."""
    if patterns.type != _INTEGERS:
        patterns = b.shl(b.zext(patterns, _INTEGERS), _INTEGERS([16] * COLUMNS))
    return b.bitcast(patterns, _FLOATS)


def _repeated(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Return a vector with a float in every place."""
    undefined = _FLOATS(ir.Undefined)
    return b.shuffle_vector(b.insert_element(undefined, value, _I32(0)), undefined, _INTEGERS([0] * COLUMNS))


def _load(b: ir.IRBuilder, array: Any, index: ir.Value, vector: ir.VectorType) -> ir.Value:
    """Return eight elements of an array as a vector."""
    loaded = b.load(_place(b, array, index, vector))
    loaded.align = _alignment(vector)
    return loaded


def _store(b: ir.IRBuilder, value: ir.Value, array: Any, index: ir.Value) -> None:
    """Put a vector into eight elements of an array."""
    b.store(value, _place(b, array, index, value.type)).align = _alignment(value.type)


def _place(b: ir.IRBuilder, array: Any, index: ir.Value, vector: ir.VectorType) -> ir.Value:
    """Return the address of an array's element as that of a vector."""
    return b.bitcast(b.gep(array.data, [index]), vector.as_pointer())


def _alignment(vector: ir.VectorType) -> int:
    """Return that of a single element, in bytes: where a vector begins is not otherwise known."""
    return {_F32: 4, _F64: 8}.get(vector.element) or vector.element.width // 8
