"""Vectors of pixels, beside `simd.py`: LANES pixels as a block of a tile, what stops them, and sums over them."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from nsw.kernels.simd import _FLOAT, _FLOATS, _INT, _INTS, BLOCK_W, FAST, LANES, Floats, Mask, _constant


@intrinsic
def block_x(context):
    """Columns of a block's pixel centres: 0.5, 1.5, ..., row after row."""
    return Floats(), lambda *_: ir.Constant(_FLOATS, [ir.Constant(_FLOAT, lane % BLOCK_W + 0.5) for lane in range(LANES)])


@intrinsic
def block_y(context):
    """Rows of a block's pixel centres."""
    return Floats(), lambda *_: ir.Constant(_FLOATS, [ir.Constant(_FLOAT, lane // BLOCK_W + 0.5) for lane in range(LANES)])


@intrinsic
def lesser(context, left, right):
    """Per lane the smaller of two numbers that are not negative, compared by their bits.

    `minimum` of something just loaded, to be stored in its place, would become a masked store, which takes some cores 20 cycles.
    """

    def emit(context, builder, sig, args):
        smin = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_INTS, [_INTS, _INTS]), f"llvm.smin.v{LANES}i32")
        return builder.bitcast(builder.call(smin, [builder.bitcast(arg, _INTS) for arg in args]), _FLOATS)

    return Floats(Floats, Floats), emit


@intrinsic
def negative_where(context, mask, value):
    """Per lane -|value| where the mask holds, by setting the sign bit; else the value."""

    def emit(context, builder, sig, args):
        sign = builder.select(args[0], ir.Constant(_INTS, [0x80000000] * LANES), ir.Constant(_INTS, [0] * LANES))
        return builder.bitcast(builder.or_(builder.bitcast(args[1], _INTS), sign), _FLOATS)

    return Floats(Mask, Floats), emit


@intrinsic
def but_not(context, mask, other):
    """Per lane, whether the first mask holds and the second does not."""
    return Mask(Mask, Mask), lambda context, builder, sig, args: builder.and_(args[0], builder.not_(args[1]))


def _quads(builder, vectors):
    """Sums over lanes of four vectors, as the four lanes of one short vector."""

    def halves(left, right):  # sums of neighbours of both, so that two such steps sum up every four lanes
        even, odd = [], []
        for quad in range(0, LANES, 4):
            even += [quad, quad + 2, LANES + quad, LANES + quad + 2]
            odd += [quad + 1, quad + 3, LANES + quad + 1, LANES + quad + 3]
        first, second = (builder.shuffle_vector(left, right, ir.Constant(_INTS, picks)) for picks in (even, odd))
        return builder.fadd(first, second, flags=FAST)

    mixed = halves(halves(vectors[0], vectors[1]), halves(vectors[2], vectors[3]))
    total, picks = None, ir.VectorType(_INT, 4)
    for quad in range(0, LANES, 4):
        part = builder.shuffle_vector(mixed, mixed, ir.Constant(picks, [quad, quad + 1, quad + 2, quad + 3]))
        total = part if total is None else builder.fadd(total, part, flags=FAST)
    return total


@intrinsic
def store_sums(context, array, index, vectors, channels):
    """Write the sum over lanes of every vector of both tuples side by side; four at a time, zeros up to a multiple of four."""

    def emit(context, builder, sig, args):
        values = cgutils.unpack_tuple(builder, args[2], vectors.count) + cgutils.unpack_tuple(builder, args[3], channels.count)
        values += [_constant(0.0)] * (-len(values) % 4)
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        for first in range(0, len(values), 4):
            pointer = builder.gep(base, [builder.add(args[1], ir.Constant(args[1].type, first))])
            target = builder.bitcast(pointer, ir.VectorType(_FLOAT, 4).as_pointer())
            builder.store(_quads(builder, values[first : first + 4]), target, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vectors, channels), emit
