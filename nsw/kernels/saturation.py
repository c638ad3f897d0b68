"""What kernels answer where float32 ends: no finite input, however large, makes a NaN.

A NaN is born where an overflow meets its opposite (inf - inf) or a zero (0 * inf), and one of them spoils a training for good. So
what may overflow is cut to a finite number before it meets anything else. The rule is the same everywhere:

- values: a sum or product that float32 cannot hold saturates, or comes back as inf where nothing is done with it any more (a sum of
  products of factors, as in `vm_lookup`, whose terms overflow with both signs, is 0);
- gradients: one that float32 cannot hold is cut to +-1e37, and one that is not known any more (inf - inf on the way) is 0, so that
  whatever it belongs to stays where it is. Numbers as large as that make neighbours' gradients 0 too, where light passes both.

Below these limits nothing changes, not even the rounding.
"""

from __future__ import annotations

import numpy as np

from nsw.kernels.compiling import helper

LARGEST = np.float32(3.4028235e38)
STEEPEST = np.float32(1e37)  # for gradients: a few of them may still be added and weighted in float32
HUGE = 1e300  # for what runs in float64
LARGEST_STEP = np.float32(1e19)  # of a gradient whose square is wanted
ZERO = np.float32(0)


@helper
def cut(x, most):
    """Cut a number to [-most, most]; a NaN stays what it is, so that whoever put it in finds it again."""
    return most if x > most else (-most if x < -most else x)


@helper
def settled(x, most):
    """Cut a number to [-most, most]; a NaN is 0."""
    return x if abs(x) <= most else (most if x > ZERO else (-most if x < ZERO else ZERO))


@helper
def settled3(x, y, z, most):
    return settled(x, most), settled(y, most), settled(z, most)


def settle(array: np.ndarray, most: float = STEEPEST) -> np.ndarray:
    """Do to all numbers of an array, in place, what `settled` does to one.

    >>> settle(np.array([np.inf, np.nan, 2.0], np.float32)).tolist() == [float(STEEPEST), 0.0, 2.0]
    True
    """
    np.nan_to_num(array, copy=False, nan=0.0, posinf=np.inf, neginf=-np.inf)
    return np.clip(array, -most, most, out=array)
