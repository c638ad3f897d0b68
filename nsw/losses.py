"""Loss terms as free functions; each returns a scalar to be minimised."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

ExtraLoss = Callable[[Tensor, Tensor, torch.Generator], Tensor]  # of colours [R, 3], their truth [R, 3] and random numbers
SSIM_CONSTANTS = (0.01**2, 0.03**2)  # c1 and c2 for colours in [0, 1]


def loss_l1(predicted: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the mean absolute difference; a target that is NaN, a pixel that must not be used, adds 0."""
    return (predicted - known(target, predicted)).abs().mean()


def loss_mse(predicted: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the mean squared difference; a target that is NaN, a pixel that must not be used, adds 0."""
    return (predicted - known(target, predicted)).square().mean()


def known(target: Float[Tensor, "*shape"], predicted: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return a target with the prediction, as a constant, where it is NaN: nothing is known there and nothing is to be learned.

    >>> known(torch.tensor([1.0, torch.nan]), torch.tensor([2.0, 3.0])).tolist()
    [1.0, 3.0]
    """
    unknown = target.isnan()
    if unknown.device.type == "cpu" and not unknown.any():  # a GPU would be waited for
        return target
    return torch.where(unknown, predicted.detach(), target)


def loss_ssim(predicted: Float[Tensor, "n H W 3"], target: Float[Tensor, "n H W 3"], compiled: bool = True) -> Float[Tensor, ""]:
    """Return 1 - SSIM with an 11x11 Gaussian window of sigma 1.5 and zero padding, as 3D Gaussian splatting trains with.

    SSIM = (2 mu_x mu_y + C1)(2 s_xy + C2) / ((mu_x^2 + mu_y^2 + C1)(s_x^2 + s_y^2 + C2)), C1 = 0.01^2, C2 = 0.03^2
    (Wang et al. 2004, eq. 13). The zero padding differs from the metric of `nsw.metrics`, which mirrors the border.

    Args:
        predicted, target: pictures in [0, 1]; the target NaN where a pixel must not be used.
        compiled: let `nsw.kernels.ssim` do the same in one pass where it can: float32 in the CPU's memory.
    """
    target = known(target, predicted)
    if compiled and (fused := _fused(predicted, target)):
        return 1.0 - fused[0]
    x, y = predicted.permute(0, 3, 1, 2), target.permute(0, 3, 1, 2)
    n = x.shape[0]
    mu_x, xx, xy = _gaussian_blur(torch.cat([x, x * x, x * y])).split(n)
    mu_y, yy = _gaussian_blur(torch.cat([y, y * y])).split(n)  # apart from the rest: the target needs no gradient
    luminance, structure = ssim_terms(mu_x, mu_y, xx - mu_x * mu_x, yy - mu_y * mu_y, xy - mu_x * mu_y)
    return 1.0 - (luminance * structure).mean()


def ssim_terms(
    mu_x: Float[Tensor, "*n"],
    mu_y: Float[Tensor, "*n"],
    var_x: Float[Tensor, "*n"],
    var_y: Float[Tensor, "*n"],
    cov: Float[Tensor, "*n"],
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    r"""Return the two factors of SSIM from means, variances and covariance (Wang et al. 2004, eq. 13).

    $$\frac{2\mu_x\mu_y + c_1}{\mu_x^2 + \mu_y^2 + c_1}, \qquad
    \frac{2\sigma_{xy} + c_2}{\sigma_x^2 + \sigma_y^2 + c_2}, \qquad c_1 = 0.01^2,\ c_2 = 0.03^2$$

    The first compares brightness, the second contrast and correlation at once.
    """
    c1, c2 = SSIM_CONSTANTS
    return (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1), (2 * cov + c2) / (var_x + var_y + c2)


def loss_photometric(predicted: Float[Tensor, "n H W 3"], target: Float[Tensor, "n H W 3"], ssim: float = 0.2) -> Float[Tensor, ""]:
    """Return (1 - ssim) L1 + ssim (1 - SSIM), the loss of 3D Gaussian splatting (Kerbl et al. 2023, eq. 7), both terms at once.

    Args:
        predicted, target: pictures in [0, 1]; the target NaN where a pixel must not be used.
        ssim: weight of the structural term.

    >>> picture = torch.rand(1, 16, 16, 3)
    >>> abs(round(loss_photometric(picture, picture).item(), 5))
    0.0
    """
    target = known(target, predicted)
    if fused := _fused(predicted, target):
        return (1 - ssim) * fused[1] + ssim * (1.0 - fused[0])
    return (1 - ssim) * loss_l1(predicted, target) + ssim * loss_ssim(predicted, target)


def _fused(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return mean SSIM and L1 of the compiled kernel, or None where it does not serve; numba loads on first use only."""
    if predicted.device.type != "cpu" or predicted.dtype != torch.float32:
        return None
    from nsw.kernels.ssim import serves, ssim_l1

    return ssim_l1(predicted, target) if serves(predicted, target) else None


def _gaussian_blur(x: Float[Tensor, "n c H W"]) -> Float[Tensor, "n c H W"]:
    """Blur each channel by a Gaussian window with zero padding, as a product with one banded matrix per axis.

    Two small matrix products beat the convolution seven times on a CPU at the sizes that are trained there.
    """
    h, w = x.shape[2:]
    return _blur_matrix(h, x.dtype, x.device) @ x @ _blur_matrix(w, x.dtype, x.device)


@lru_cache(maxsize=16)
def _blur_matrix(n: int, dtype: torch.dtype, device: torch.device, size: int = 11, sigma: float = 1.5) -> Float[Tensor, "n n"]:
    """Return the symmetric matrix whose rows are the window, normalised before the border cuts it."""
    offsets = torch.arange(n, dtype=dtype, device=device)
    distance = offsets[:, None] - offsets[None, :]
    window = torch.exp(-(torch.arange(size, dtype=dtype, device=device) - (size - 1) / 2).square() / (2 * sigma**2))
    return torch.exp(-distance.square() / (2 * sigma**2)) * (distance.abs() <= size // 2) / window.sum()


def loss_entropy(probability: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the mean binary entropy H(p) = -p log p - (1-p) log(1-p), which pushes p to 0 or 1.

    Args:
        probability: in [0, 1]; clamped to [1e-6, 1 - 1e-6] so that the gradient stays finite.

    >>> loss_entropy(torch.tensor([0.0, 1.0])).item() < 1e-4
    True
    """
    p = probability.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def loss_tv(grids: Iterable[Float[Tensor, "*n channels"]]) -> Float[Tensor, ""]:
    """Return the total variation of grids: mean squared differences of neighbours, summed over all grids and their dimensions.

    >>> ramp = torch.arange(5.0)[:, None, None].expand(5, 4, 1)
    >>> loss_tv([ramp]).item(), loss_tv([ramp, 2 * ramp]).item()
    (1.0, 5.0)
    """
    return sum(grid.diff(dim=k).square().mean() for grid in grids for k in range(grid.ndim - 1))


def loss_size(parameters: Iterable[Float[Tensor, "*shape"]]) -> Float[Tensor, ""]:
    r"""Return the L1 norm of parameters, the sum of their mean absolute values: $\sum_m \overline{|\theta_m|}$.

    >>> loss_size([torch.tensor([-1.0, 3.0]), torch.ones(5)]).item()
    3.0
    """
    return sum(p.abs().mean() for p in parameters)
