r"""SSIM and L1 of pictures with the gradient of the first one, in one compiled pass each way.

With an 11x11 Gaussian window of sigma 1.5, zeros beyond the border, and E[.] the blur with it (Wang et al. 2004, eq. 13):

$$S = \frac{(2\mu_x\mu_y + C_1)(2\sigma_{xy} + C_2)}{(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)},\quad
\mu_x = E[x],\ \sigma_x^2 = E[x^2] - \mu_x^2,\ \sigma_{xy} = E[xy] - \mu_x\mu_y$$

S depends on x through three blurs, E[x], E[x^2] and E[xy]. A blur with a symmetric window is its own transpose, so with S's slopes
by the three

$$\frac{\partial}{\partial x} \sum S = E\Big[\frac{\partial S}{\partial E[x]}\Big]
+ 2x\,E\Big[\frac{\partial S}{\partial E[x^2]}\Big] + y\,E\Big[\frac{\partial S}{\partial E[xy]}\Big]$$

The plain form of the same is `nsw.losses.loss_ssim` with `compiled=False`.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nsw.kernels import ssim_loops
from nsw.kernels.chunks import compiled, n_shares
from nsw.kernels.threads import run_shares


def serves(predicted: Tensor, target: Tensor) -> bool:
    """Return whether `ssim_l1` can be asked: float32 on the CPU, [n, H, W, colours], and a target that is not being fitted."""
    return compiled(predicted, target) and predicted.shape == target.shape and predicted.ndim == 4 and not target.requires_grad


def ssim_l1(predicted: Float[Tensor, "n H W c"], target: Float[Tensor, "n H W c"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return mean SSIM and mean absolute difference of pictures in [0, 1], differentiable in the first.

    >>> picture = torch.linspace(0, 1, 300).reshape(1, 10, 10, 3)
    >>> [round(x.item(), 4) for x in ssim_l1(picture, picture)]
    [1.0, 0.0]
    """
    return _SsimL1.apply(predicted, target)


class _SsimL1(torch.autograd.Function):
    @staticmethod
    def forward(ctx, predicted: Tensor, target: Tensor):
        ctx.set_materialize_grads(False)
        n, height, width, colours = predicted.shape
        x, y = _rows(predicted), _rows(target)
        stride = -(-x.shape[1] // ssim_loops.LANES) * ssim_loops.LANES
        maps = [np.empty(len(x) * stride if ctx.needs_input_grad[0] else 0, np.float32) for _ in range(3)]
        sums = np.empty(len(x)), np.empty(len(x))  # a row each, so that threads change nothing
        run_shares(ssim_loops.ssim_forward, n_shares(x.size), x, y, len(x), height, colours, *maps, *sums)
        ctx.save_for_backward(predicted, target)
        ctx.maps = maps
        return tuple(torch.tensor(total.sum() / max(x.size, 1), dtype=torch.float32) for total in sums)

    @staticmethod
    def backward(ctx, g_ssim: Tensor | None, g_l1: Tensor | None):
        predicted, target = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            return _differentiable(predicted, target, g_ssim, g_l1), None
        x, y = _rows(predicted), _rows(target)
        out = np.empty_like(x)
        slopes = (np.float32(0.0 if g is None else g.item() / x.size) for g in (g_ssim, g_l1))
        options = (len(x), predicted.shape[1], predicted.shape[3], *ctx.maps, *slopes, out)
        run_shares(ssim_loops.ssim_backward, n_shares(x.size), x, y, *options)
        return torch.from_numpy(out).view(predicted.shape), None


def _rows(picture: Tensor) -> np.ndarray:
    """Return all rows of all pictures, [n H, W c]."""
    n, height, width, colours = picture.shape
    return picture.detach().contiguous().numpy().reshape(n * height, width * colours)


def _differentiable(predicted: Tensor, target: Tensor, g_ssim: Tensor | None, g_l1: Tensor | None) -> Tensor:
    from nsw.losses import loss_l1, loss_ssim

    pairs = [(1.0 - loss_ssim(predicted, target, compiled=False), g_ssim), (loss_l1(predicted, target), g_l1)]
    used = [(value, gradient) for value, gradient in pairs if gradient is not None]
    return torch.autograd.grad([v for v, _ in used], predicted, [g for _, g in used], create_graph=True)[0]
