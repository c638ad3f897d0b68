"""Vectors of floats as numba values: one instruction works on LANES pixels, and no compiler is needed beyond numba's own.

LLVM knows vectors of any width; numba does not show them. The few operations below hand them through: `a * b + 1.0` on two
`Floats` becomes one fused instruction on AVX2 and AVX-512, two on NEON. A comparison gives a `Mask`, and since lanes
cannot branch apart, `select(mask, x, y)` chooses per lane.

Fast-math is limited to reordering and contraction. Flags that promise "no NaN, no infinity" stay off: the kernels rely on a
comparison with NaN being false to skip a broken splat.
"""

from __future__ import annotations

import operator
import os

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

# Sixteen floats fill an AVX-512 register, eight one of AVX2; the variable exists to test that nothing depends on it (4, 8 or 16).
LANES = int(os.environ.get("NSW_SIMD_LANES") or (16 if get_host_cpu_features().get("avx512f") else 8))
# A vector's pixels form a block, as square as can be: a small splat then touches fewer vectors than if they were rows.
BLOCK_W, BLOCK_H = {4: (2, 2), 8: (4, 2), 16: (4, 4)}[LANES]
FAST = ("reassoc", "nsz", "arcp", "contract")

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)


class Vector(types.Type):
    """The numba type of LANES floats, or of LANES truth values."""

    def __init__(self, kind: str):
        self.kind = kind
        super().__init__(name=f"{kind}x{LANES}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector: Vector):
        element = _FLOAT if vector.kind == "float32" else ir.IntType(1)
        super().__init__(manager, vector, ir.VectorType(element, LANES))


Floats, Mask = Vector("float32"), Vector("mask")


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [ir.Constant(_FLOAT, value)] * LANES)


def _broadcast(builder, scalar):
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * LANES))


def _pointer(context, builder, array_type, array, index, to):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), to.as_pointer())


def _define_operator(symbol, cases, emit) -> None:
    """Teach numba `symbol` on vectors: typing by `cases`, code by `emit(builder, left, right)` after scalars are broadcast."""

    class Template(AbstractTemplate):
        def generic(self, args, kws):
            kinds = tuple(args)
            return signature(cases[kinds], *kinds) if kinds in cases else None

    infer_global(symbol)(Template)
    for left, right in cases:

        def lower(context, builder, sig, args):
            both = [
                value if isinstance(kind, Vector) else _broadcast(builder, value)
                for kind, value in zip(sig.args, args, strict=True)
            ]
            return emit(builder, *both)

        lower_builtin(symbol, left, right)(lower)


def _define_all_operators() -> None:
    mixed = ((Floats, Floats), (Floats, types.float32), (types.float32, Floats))
    for symbol, name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
        _define_operator(symbol, dict.fromkeys(mixed, Floats), lambda b, x, y, name=name: getattr(b, name)(x, y, flags=FAST))
    for symbol, sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">="), (operator.eq, "==")):
        _define_operator(symbol, dict.fromkeys(mixed, Mask), lambda b, x, y, sign=sign: b.fcmp_ordered(sign, x, y))
    _define_operator(operator.and_, {(Mask, Mask): Mask}, lambda b, x, y: b.and_(x, y))


_define_all_operators()


@infer_global(operator.neg)
class _Negation(AbstractTemplate):
    def generic(self, args, kws):
        return signature(Floats, Floats) if tuple(args) == (Floats,) else None


@lower_builtin(operator.neg, Floats)
def _negate(context, builder, sig, args):
    return builder.fneg(args[0], flags=FAST)


@intrinsic
def load(context, array, index):
    """LANES floats of a one-dimensional array, from `index` on."""

    def emit(context, builder, sig, args):
        return builder.load(_pointer(context, builder, sig.args[0], *args, _FLOATS), align=4)

    return Floats(array, types.intp), emit


@intrinsic
def store(context, array, index, value):
    """Write LANES floats into a one-dimensional array, from `index` on."""

    def emit(context, builder, sig, args):
        builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1], _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, Floats), emit


@intrinsic
def broadcast(context, scalar):
    """The same float in every lane."""
    return Floats(types.float32), lambda context, builder, sig, args: _broadcast(builder, args[0])


@intrinsic
def select(context, mask, yes, no):
    """Per lane, `yes` where the mask holds, else `no`."""
    return Floats(Mask, Floats, Floats), lambda context, builder, sig, args: builder.select(*args)


@intrinsic
def minimum(context, left, right):
    """Per lane the smaller; the right one if the left is NaN."""

    def emit(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return Floats(Floats, Floats), emit


@intrinsic
def maximum(context, left, right):
    """Per lane the larger; the right one if the left is NaN."""

    def emit(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return Floats(Floats, Floats), emit


@intrinsic
def absolute(context, value):
    """Per lane |value|, by clearing the sign bit."""

    def emit(context, builder, sig, args):
        bits = builder.and_(builder.bitcast(args[0], _INTS), ir.Constant(_INTS, [0x7FFFFFFF] * LANES))
        return builder.bitcast(bits, _FLOATS)

    return Floats(Floats), emit


@intrinsic
def any_lane(context, mask):
    """Whether the mask holds in any lane."""

    def emit(context, builder, sig, args):
        bits = ir.IntType(LANES)
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], bits), ir.Constant(bits, 0))

    return types.boolean(Mask), emit


def _sum_lanes(builder, value):
    reduce = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOAT, [_FLOAT, _FLOATS]), f"llvm.vector.reduce.fadd.v{LANES}f32"
    )
    return builder.call(reduce, [ir.Constant(_FLOAT, 0.0), value], fastmath=FAST)


@intrinsic
def sum_lanes(context, value):
    """The sum over lanes, in a fixed order."""
    return types.float32(Floats), lambda context, builder, sig, args: _sum_lanes(builder, args[0])


# 2^f on [0, 1] by a polynomial of degree 5 (minimax, relative error 2e-7), highest power first.
_EXP2 = (1.8775767e-3, 8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1)


def _exp2(builder, x):
    floor = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS]), f"llvm.floor.v{LANES}f32")
    whole = builder.call(floor, [x])
    rest = builder.fsub(x, whole, flags=FAST)

    def line(value, slope, offset):
        return builder.fadd(builder.fmul(value, slope, flags=FAST), offset, flags=FAST)

    # Three short sums that do not wait for each other (Estrin), instead of one long one: the loop is bound by waiting.
    pairs = [line(rest, _constant(_EXP2[i]), _constant(_EXP2[i + 1])) for i in (0, 2, 4)]
    square = builder.fmul(rest, rest, flags=FAST)
    power = line(square, line(square, pairs[0], pairs[1]), pairs[2])
    exponent = builder.shl(builder.fptosi(whole, _INTS), ir.Constant(_INTS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(power, _INTS), exponent), _FLOATS)


@intrinsic
def exp2(context, value):
    """Per lane 2^value for values up to 127: the integer part goes into the exponent bits, a polynomial does the rest."""

    def emit(context, builder, sig, args):
        lowest = _constant(-126.0)  # below, the exponent bits would wrap around
        return _exp2(builder, builder.select(builder.fcmp_ordered(">", args[0], lowest), args[0], lowest))

    return Floats(Floats), emit


@intrinsic
def exp2_within(context, value):
    """`exp2` for values known to lie between -126 and 127."""
    return Floats(Floats), lambda context, builder, sig, args: _exp2(builder, args[0])


# The number of colour channels is known when a kernel is compiled but differs between calls: a tuple carries it in its type, and
# the loops over channels below run while code is generated, so that the kernel itself has none.


@intrinsic
def channel_zeros(context, like):
    """One zero vector a channel."""
    out = types.UniTuple(Floats, like.count)

    def emit(context, builder, sig, args):
        return context.make_tuple(builder, out, [_constant(0.0)] * like.count)

    return out(like), emit


@intrinsic
def channel_read(context, array, index, like):
    """One float a channel, side by side in the array."""
    out = types.UniTuple(types.float32, like.count)

    def emit(context, builder, sig, args):
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        at = [builder.gep(base, [builder.add(args[1], ir.Constant(args[1].type, c))]) for c in range(like.count)]
        return context.make_tuple(builder, out, [builder.load(pointer) for pointer in at])

    return out(array, types.intp, like), emit


def _channel_pointers(context, builder, array_type, array, index, stride, count):
    for c in range(count):
        offset = builder.add(index, builder.mul(stride, ir.Constant(stride.type, c)))
        yield _pointer(context, builder, array_type, array, offset, _FLOATS)


@intrinsic
def channel_load(context, array, index, stride, like):
    """One vector a channel, `stride` floats apart."""
    out = types.UniTuple(Floats, like.count)

    def emit(context, builder, sig, args):
        pointers = _channel_pointers(context, builder, sig.args[0], *args[:3], like.count)
        return context.make_tuple(builder, out, [builder.load(pointer, align=4) for pointer in pointers])

    return out(array, types.intp, types.intp, like), emit


@intrinsic
def channel_accumulate(context, array, index, stride, weight, scalars):
    """Add weight * scalar of each channel to the vectors that lie `stride` floats apart."""

    def emit(context, builder, sig, args):
        values = cgutils.unpack_tuple(builder, args[4], scalars.count)
        for pointer, value in zip(_channel_pointers(context, builder, sig.args[0], *args[:3], scalars.count), values, strict=True):
            product = builder.fmul(args[3], _broadcast(builder, value), flags=FAST)
            builder.store(builder.fadd(builder.load(pointer, align=4), product, flags=FAST), pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, Floats, scalars), emit


@intrinsic
def channel_dot(context, vectors, scalars):
    """The sum over channels of vector * scalar."""

    def emit(context, builder, sig, args):
        total = None
        pairs = (cgutils.unpack_tuple(builder, arg, vectors.count) for arg in args)
        for vector, value in zip(*pairs, strict=True):
            product = builder.fmul(vector, _broadcast(builder, value), flags=FAST)
            total = product if total is None else builder.fadd(total, product, flags=FAST)
        return total

    return Floats(vectors, scalars), emit


@intrinsic
def channel_add(context, totals, weight, vectors):
    """totals + weight * vectors, channel by channel."""

    def emit(context, builder, sig, args):
        sums, values = (cgutils.unpack_tuple(builder, args[i], totals.count) for i in (0, 2))
        new = [builder.fadd(s, builder.fmul(args[1], v, flags=FAST), flags=FAST) for s, v in zip(sums, values, strict=True)]
        return context.make_tuple(builder, sig.return_type, new)

    return totals(totals, Floats, vectors), emit


@intrinsic
def channel_store_sums(context, array, index, vectors):
    """Write each channel's sum over lanes side by side into the array."""

    def emit(context, builder, sig, args):
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        for c, vector in enumerate(cgutils.unpack_tuple(builder, args[2], vectors.count)):
            pointer = builder.gep(base, [builder.add(args[1], ir.Constant(args[1].type, c))])
            builder.store(_sum_lanes(builder, vector), pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, vectors), emit
