"""How short a training of splats is, beside the 30,000 steps that papers train."""

from __future__ import annotations

import math
from dataclasses import replace


def shortness(n_steps: int) -> float:
    r"""Return 0 for 30,000 steps and more, 1 for 1,000 and fewer, $\log(30{,}000 / n) / \log 30$ between.

    >>> [round(shortness(n), 2) for n in (100_000, 30_000, 5_000, 1_000, 0)]
    [0.0, 0.0, 0.53, 1.0, 1.0]
    """
    return min(max(math.log(30_000 / max(n_steps, 1)) / math.log(30), 0.0), 1.0)


def scaled(rates, **factors: float):
    """Return a dataclass of rates with the named ones multiplied by their factors.

    >>> from nsw.methods.gaussian_splatting import LearningRates
    >>> f"{scaled(LearningRates(), quats=4).quats:.0e}"
    '4e-03'
    """
    return replace(rates, **{name: getattr(rates, name) * factor for name, factor in factors.items()})
