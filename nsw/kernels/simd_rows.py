"""Vectors of splats, beside `simd.py`: one number of each of LANES rows of an array, and the functions that projection needs."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from nsw.kernels.simd import _FLOAT, _FLOATS, _INT, _INTS, FAST, LANES, Floats, Mask, _broadcast, _constant


@intrinsic
def read(context, array, index):
    """One element of a one-dimensional array; unlike `array[index]`, an index is never counted from the end."""

    def emit(context, builder, sig, args):
        return builder.load(builder.gep(context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]]))

    return array.dtype(array, types.intp), emit


@intrinsic
def fetch(context, array, row):
    """Ask for the cache line with the beginning of a row of an array [n] or [n, k], which will be read or written soon.

    Rows in order of depth lie anywhere in memory; asked for a few dozen rows ahead, they are there when their turn comes.
    """

    def emit(context, builder, sig, args):
        view, byte = context.make_array(sig.args[0])(context, builder, args[0]), ir.IntType(8).as_pointer()
        stride = builder.extract_value(view.strides, 0)
        pointer = builder.gep(builder.bitcast(view.data, byte), [builder.mul(args[1], stride)])
        kind = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(ask, [pointer, *(ir.Constant(_INT, n) for n in (0, 3, 1))])  # to read, keep near, data
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@intrinsic
def take(context, counter):
    """Return the number in `counter[0]` (int64) and add one to it, as one step that threads cannot interrupt."""

    def emit(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), emit


def _lane_rows(builder, first, last):
    """For each lane the row first + lane, or the last row where that is beyond it."""
    for lane in range(LANES):
        row = builder.add(first, ir.Constant(first.type, lane))
        yield lane, builder.select(builder.icmp_signed("<", row, last), row, last)


@intrinsic
def load_rows(context, array, first, last, stride, column):
    """One number of each of LANES rows that lie `stride` apart in a flat array; the last row again beyond `last`."""

    def emit(context, builder, sig, args):
        data, value = context.make_array(sig.args[0])(context, builder, args[0]).data, ir.Constant(_FLOATS, ir.Undefined)
        for lane, row in _lane_rows(builder, args[1], args[2]):
            pointer = builder.gep(data, [builder.add(builder.mul(row, args[3]), args[4])])
            number = builder.load(pointer)
            number = builder.sitofp(number, _FLOAT) if array.dtype == types.int32 else number
            value = builder.insert_element(value, number, ir.Constant(_INT, lane))
        return value

    return Floats(array, types.intp, types.intp, types.intp, types.intp), emit


@intrinsic
def store_rows(context, array, first, last, stride, column, value):
    """The reverse of `load_rows`; into an int32 array, whole numbers. Beyond `last`, lanes must repeat the last row's number."""
    whole = array.dtype == types.int32

    def emit(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        value = builder.fptosi(args[5], _INTS) if whole else args[5]
        for lane, row in _lane_rows(builder, args[1], args[2]):
            pointer = builder.gep(data, [builder.add(builder.mul(row, args[3]), args[4])])
            builder.store(builder.extract_element(value, ir.Constant(_INT, lane)), pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.intp, types.intp, Floats), emit


def _one_row_a_lane(builder, vectors, lane: int):
    """One lane of each vector, side by side."""
    row = ir.Constant(ir.VectorType(_FLOAT, len(vectors)), ir.Undefined)
    for at, vector in enumerate(vectors):
        number = builder.extract_element(vector, ir.Constant(_INT, lane))
        row = builder.insert_element(row, number, ir.Constant(_INT, at))
    return row


@intrinsic
def store_across(context, array, index, stride, vectors):
    """Write the first lane of every vector of a tuple side by side, from `index` on; the next lane `stride` further; and so on.

    A loop over lanes that wrote number by number would take five times as long: here four numbers leave at once.
    """

    def emit(context, builder, sig, args):
        values = cgutils.unpack_tuple(builder, args[3], vectors.count)
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        for lane in range(LANES):
            row = builder.add(args[1], builder.mul(args[2], ir.Constant(args[2].type, lane)))
            for first in range(0, len(values), 4):
                part = _one_row_a_lane(builder, values[first : first + 4], lane)
                pointer = builder.gep(data, [builder.add(row, ir.Constant(row.type, first))])
                builder.store(part, builder.bitcast(pointer, part.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vectors), emit


@intrinsic
def whole_bits(context, value):
    """Per lane the whole number of a float, as the bits of an int32."""
    return Floats(Floats), lambda context, builder, sig, args: builder.bitcast(builder.fptosi(args[0], _INTS), _FLOATS)


@intrinsic
def first_lanes(context, count):
    """A mask that holds in the first `count` lanes (a float)."""

    def emit(context, builder, sig, args):
        lanes = ir.Constant(_FLOATS, [ir.Constant(_FLOAT, float(lane)) for lane in range(LANES)])
        return builder.fcmp_ordered("<", lanes, _broadcast(builder, args[0]))

    return Mask(types.float32), emit


def _unary(name: str, doc: str):
    """An operation on one vector that LLVM has under this name."""

    def operation(context, value):
        def emit(context, builder, sig, args):
            call = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS]), f"llvm.{name}.v{LANES}f32")
            return builder.call(call, args)

        return Floats(Floats), emit

    operation.__name__, operation.__doc__ = name, doc
    return intrinsic(operation)


floor = _unary("floor", "Per lane the largest whole number not above.")
ceil = _unary("ceil", "Per lane the smallest whole number not below.")
square_root = _unary("sqrt", "Per lane the square root.")


@intrinsic
def log2(context, value):
    """Per lane the logarithm to base 2 of a positive, normal number, to float's own accuracy.

    The exponent bits give the whole part. The rest is a mantissa m in [sqrt(1/2), sqrt(2)), and with s = (m - 1) / (m + 1) its
    logarithm is 2 (s + s^3/3 + s^5/5 + ...), of which five terms are enough.
    """

    def emit(context, builder, sig, args):
        bits = builder.bitcast(args[0], _INTS)
        # Subtracting sqrt(1/2)'s bits makes the exponent field step at sqrt(1/2), not at 1.
        whole = builder.ashr(builder.sub(bits, ir.Constant(_INTS, [0x3F3504F3] * LANES)), ir.Constant(_INTS, [23] * LANES))
        mantissa = builder.bitcast(builder.sub(bits, builder.shl(whole, ir.Constant(_INTS, [23] * LANES))), _FLOATS)
        s = builder.fdiv(builder.fsub(mantissa, _constant(1.0)), builder.fadd(mantissa, _constant(1.0)))
        square = builder.fmul(s, s)
        series = _constant(2.8853900817779268 / 9)
        for odd in (7, 5, 3, 1):
            series = builder.fadd(builder.fmul(series, square, flags=FAST), _constant(2.8853900817779268 / odd), flags=FAST)
        return builder.fadd(builder.sitofp(whole, _FLOATS), builder.fmul(series, s, flags=FAST), flags=FAST)

    return Floats(Floats), emit
