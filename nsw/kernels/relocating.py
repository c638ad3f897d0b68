r"""`compute_relocation`: how opaque and how large splats must be so that N of them look like one.

3DGS-MCMC (Kheradmand et al. 2024) moves dead splats onto live ones. N copies of a splat of opacity o, stacked in one place, must
leave the picture unchanged. At the centre that asks for $1-(1-o')^N=o$. Off the centre the stack is fatter than the one splat was,
so its size shrinks by the ratio of the two line integrals (eq. 9):

$$o'=1-(1-o)^{1/N},\quad s'=s\,\frac{o}{D},\quad D=\sum_{i=1}^{N}\sum_{k=0}^{i-1}\binom{i-1}{k}\frac{(-1)^k}{\sqrt{k+1}}\,o'^{k+1}$$

The sums alternate in sign and lose three digits in float32 near o = 1 and N = 50; they are taken in float64.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.errors import CallError


@torch.no_grad()
def compute_relocation(
    opacities: Float[Tensor, "n"], scales: Float[Tensor, "n 3"], ratios: Int[Tensor, "n"], binoms: Float[Tensor, "m m"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]:
    """Return opacity and scales of each of `ratios` splats that replace one.

    Args:
        opacities, scales: after sigmoid and exp; an opacity outside of [0, 1] is moved there.
        ratios: N, clamped in place to [1, m] (gsplat's call does so too).
        binoms: binomial coefficients, row n column k.

    >>> table = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> o, s = compute_relocation(torch.tensor([0.5]), torch.ones(1, 3), torch.tensor([2]), table)
    >>> round(o.item(), 6), round(s[0, 0].item(), 6)
    (0.292893, 0.952152)
    """
    n, n_max = opacities.shape[0], binoms.shape[0]
    if scales.shape != (n, 3) or ratios.shape != (n,) or opacities.shape != (n,):
        raise CallError(f"opacities must be [N], scales [N, 3], ratios [N], got {list(opacities.shape)}, {list(scales.shape)}, "
                         f"{list(ratios.shape)}.")  # fmt: skip
    ratios.clamp_(min=1, max=n_max)
    o, N = opacities.double().clamp(0, 1), ratios.long()
    new = 1 - (1 - o) ** (1 / N)
    k = torch.arange(n_max, dtype=torch.float64, device=opacities.device)
    # Row N-1 of the running sum over i holds what multiplies o'^(k+1).
    weights = torch.cumsum(binoms.double(), dim=0) * (1 - 2 * (k % 2)) / (k + 1).sqrt()
    D = (weights[N - 1] * new[:, None] ** (k + 1)).sum(dim=-1)
    shrink = torch.where((o > 0) & (D > 0), o / torch.where(D > 0, D, torch.ones_like(D)), torch.ones_like(D))
    return new.to(opacities.dtype), (shrink[:, None] * scales).to(scales.dtype)
