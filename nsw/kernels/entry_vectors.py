"""A table entry of a few floats as one numba value: loaded, weighted, added and stored by single instructions.

`nsw.kernels.simd` puts pixels side by side into a vector of fixed width; here it is an entry's own features, as many as it
has. A kernel learns their number from the type of a tuple with as many elements.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from nsw.kernels.simd import FAST

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)


class Entry(types.Type):
    """The numba type of `n` floats that lie side by side."""

    def __init__(self, n: int):
        self.n = n
        super().__init__(name=f"entry{n}")


@register_model(Entry)
class _EntryModel(models.PrimitiveModel):
    def __init__(self, manager, entry: Entry):
        super().__init__(manager, entry, ir.VectorType(_FLOAT, entry.n))


def _broadcast(builder, scalar, n: int):
    undefined = ir.Constant(ir.VectorType(_FLOAT, n), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT, n), [0] * n))


def _pointer(context, builder, array_type, array, index, n: int):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(_FLOAT, n).as_pointer())


@intrinsic
def entry_zero(context, like):
    """An entry of zeros, as long as the tuple `like`."""
    return Entry(like.count)(like), lambda *_: ir.Constant(
        ir.VectorType(_FLOAT, like.count), [ir.Constant(_FLOAT, 0.0)] * like.count
    )


@intrinsic
def entry_load(context, array, index, like):
    """The entry that begins at a place of a one-dimensional array."""

    def emit(context, builder, sig, args):
        return builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], like.count), align=4)

    return Entry(like.count)(array, index, like), emit


@intrinsic
def entry_store(context, array, index, entry):
    """Write an entry into a one-dimensional array."""

    def emit(context, builder, sig, args):
        builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1], entry.n), align=4)
        return context.get_dummy_value()

    return types.void(array, index, entry), emit


@intrinsic
def entry_add(context, total, weight, entry):
    """total + weight * entry."""

    def emit(context, builder, sig, args):
        return builder.fadd(args[0], builder.fmul(_broadcast(builder, args[1], entry.n), args[2], flags=FAST), flags=FAST)

    return entry(entry, types.float32, entry), emit


@intrinsic
def entry_mul(context, left, right):
    """The products of two entries' features."""
    return left(left, right), lambda context, builder, sig, args: builder.fmul(args[0], args[1], flags=FAST)


@intrinsic
def entry_settled(context, entry, most):
    """Every feature cut to [-most, most]; a NaN is 0."""

    def emit(context, builder, sig, args):
        kind = ir.VectorType(_FLOAT, entry.n)
        most, zero = _broadcast(builder, args[1], entry.n), ir.Constant(kind, [ir.Constant(_FLOAT, 0.0)] * entry.n)
        known = builder.select(builder.fcmp_ordered("ord", args[0], args[0]), args[0], zero)
        cut = builder.select(builder.fcmp_ordered("<", known, most), known, most)
        least = builder.fneg(most)
        return builder.select(builder.fcmp_ordered(">", cut, least), cut, least)

    return entry(entry, types.float32), emit


@intrinsic
def entry_fill(context, scalar, like):
    """An entry of equal features, as long as the tuple `like`."""
    return Entry(like.count)(scalar, like), lambda context, builder, sig, args: _broadcast(builder, args[0], like.count)


@intrinsic
def entry_dot(context, left, right):
    """The sum of the products of two entries' features, in a fixed order."""

    def emit(context, builder, sig, args):
        vector = ir.VectorType(_FLOAT, left.n)
        kind = ir.FunctionType(_FLOAT, [_FLOAT, vector])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{left.n}f32")
        product = builder.fmul(args[0], args[1], flags=FAST)
        return builder.call(reduce, [ir.Constant(_FLOAT, 0.0), product], fastmath=FAST)

    return types.float32(left, right), emit
