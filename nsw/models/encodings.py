"""Fixed encodings of coordinates, without parameters."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


def frequency_encoding(x: Float[Tensor, "*n d"], levels: int) -> Float[Tensor, "*n d_out"]:
    r"""Return the coordinates and their sines and cosines at `levels` octaves: d (1 + 2 L) numbers for d.

    $$\gamma_L(p) = \big[p,\ \sin(2^k p),\ \cos(2^k p)\big]_{k=0}^{L-1}$$  (NeRF, eq. 4, as the official code has it)

    The paper writes 2^k pi p and leaves p out; its code drops the pi and keeps p. This follows the code.

    Args:
        x: coordinates, about in [-1, 1].
        levels: L; 0 returns x itself.

    >>> frequency_encoding(torch.zeros(5, 3), 10).shape
    torch.Size([5, 63])
    """
    if levels == 0:
        return x
    angles = (x[..., None, :] * _octaves(levels, x.dtype, x.device)).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


@lru_cache(maxsize=64)
def _octaves(levels: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "L 1"]:
    return 2.0 ** torch.arange(levels, device=device, dtype=dtype)[:, None]


def encoded_size(d: int, levels: int) -> int:
    """Return how many numbers `frequency_encoding` makes of d coordinates.

    >>> encoded_size(3, 10)
    63
    """
    return d * (1 + 2 * levels)
