"""How short a training of splats is, beside the 30,000 steps that papers train."""

from __future__ import annotations

import math


def shortness(n_steps: int) -> float:
    r"""Return 0 for 30,000 steps and more, 1 for 1,000 and fewer, $\log(30{,}000 / n) / \log 30$ between.

    >>> [round(shortness(n), 2) for n in (100_000, 30_000, 5_000, 1_000, 0)]
    [0.0, 0.0, 0.53, 1.0, 1.0]
    """
    return min(max(math.log(30_000 / max(n_steps, 1)) / math.log(30), 0.0), 1.0)
