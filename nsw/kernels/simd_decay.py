"""exp(-x) and 1 - exp(-x) of LANES floats at once: the light that a sample lets through, and what it takes.

    exp(-x) = 2^n (1 + q),  n the integer nearest to -x / ln 2,  q a polynomial without a constant term

so that 1 - exp(-x) = (1 - 2^n) - 2^n q keeps all digits of thin samples, and exp(0) is exactly 1. numba's own exp works on one
number at a time, which made it most of the time of compositing. NaN stays NaN; beyond x = 87 nothing gets through.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from nsw.kernels.compiling import kernel  # noqa: F401  (marks this file as one whose change makes kernels compile anew)
from nsw.kernels.simd import LANES, Floats, _constant

_EXACT = ("contract",)  # no reordering: it could turn (1 - s) - s q back into 1 - (s + s q)
_FLOATS, _INTS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)
# 2^f - 1 = f (c_1 + f (c_2 + ...)) on [-1/2, 1/2]: Taylor's series, relative error 1e-8, highest power first
_SERIES = [math.log(2) ** k / math.factorial(k) for k in range(7, 0, -1)]


def _parts(builder, x):
    """Return 2^n, q and the mask of lanes where exp(-x) is below the smallest float."""
    floor = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS]), f"llvm.floor.v{LANES}f32")
    power = builder.fmul(x, _constant(-1 / math.log(2)), flags=_EXACT)
    vanished = builder.fcmp_ordered("<", power, _constant(-126.0))
    power = builder.select(vanished, _constant(-126.0), power)
    power = builder.select(builder.fcmp_ordered(">", power, _constant(127.0)), _constant(127.0), power)
    whole = builder.call(floor, [builder.fadd(power, _constant(0.5), flags=_EXACT)])
    rest = builder.fsub(power, whole, flags=_EXACT)
    q = _constant(_SERIES[0])
    for coefficient in _SERIES[1:]:
        q = builder.fadd(builder.fmul(q, rest, flags=_EXACT), _constant(coefficient), flags=_EXACT)
    q = builder.fmul(q, rest, flags=_EXACT)
    bits = builder.add(builder.fptosi(whole, _INTS), ir.Constant(_INTS, [127] * LANES))
    scale = builder.bitcast(builder.shl(bits, ir.Constant(_INTS, [23] * LANES)), _FLOATS)
    return scale, q, vanished


@intrinsic
def let_through(context, depth):
    """Per lane exp(-depth)."""

    def emit(context, builder, sig, args):
        scale, q, vanished = _parts(builder, args[0])
        found = builder.fadd(scale, builder.fmul(scale, q, flags=_EXACT), flags=_EXACT)
        return builder.select(vanished, _constant(0.0), found)

    return Floats(Floats), emit


@intrinsic
def taken(context, depth):
    """Per lane 1 - exp(-depth)."""

    def emit(context, builder, sig, args):
        scale, q, _ = _parts(builder, args[0])
        return builder.fsub(builder.fsub(_constant(1.0), scale, flags=_EXACT), builder.fmul(scale, q, flags=_EXACT), flags=_EXACT)

    return Floats(Floats), emit
