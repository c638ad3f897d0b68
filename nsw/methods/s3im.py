r"""S3IM (Xie et al., ICCV 2023): structural similarity of random groups of rays, as one more term of any field's loss.

A batch of rays is laid out as a picture that nobody took, compared with its truth by SSIM, shuffled, and compared again:

$$L_{\rm S3IM} = 1 - \frac1M \sum_{m=1}^M \overline{\mathrm{SSIM}}\big(\mathcal P_{\pi_m}(\hat C), \mathcal P_{\pi_m}(C)\big)$$

Written from the paper. Windows do not overlap and are symmetric here; those of the official code sit off centre and reach into
a border of zeros, over all shuffles in one picture (`nsw.methods.s3im_controls.loss_official_layout`). The terms that tell
re-weighting from structure are there too.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.errors import InputError
from nsw.losses import ssim_terms


def patch_shape(n_rays: int, kernel: int = 4) -> tuple[int, int]:
    """Return height and width of the largest virtual patch that is about square and made of whole kernels.

    Rays that do not fit stay out of one shuffle, and others out of the next.

    >>> patch_shape(4096), patch_shape(768), patch_shape(1000)
    ((64, 64), (24, 32), (28, 32))
    """
    height = int(n_rays**0.5) // kernel * kernel
    if height < kernel:
        raise InputError(
            f"A virtual patch needs at least {kernel * kernel} rays, not {n_rays}: draw more, or take a smaller kernel."
        )
    return height, n_rays // height // kernel * kernel


@lru_cache(maxsize=16)
def window_index(
    height: int, width: int, kernel: int = 4, stride: int = 4, device: torch.device | str = "cpu"
) -> Int[Tensor, "G kernel_squared"]:
    """Return the places in a patch, counted row by row, of the pixels of each window that lies in it.

    >>> window_index(2, 4, 2, 2).tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    rows, columns = (torch.arange(0, n - kernel + 1, stride, device=device) for n in (height, width))
    corner = (rows[:, None] * width + columns).reshape(-1, 1)
    inside = torch.arange(kernel, device=device)
    return corner + (inside[:, None] * width + inside).reshape(-1)


@lru_cache(maxsize=16)
def window_weights(kernel: int = 4, sigma: float = 1.5, device: torch.device | str = "cpu") -> Float[Tensor, "kernel_squared 1"]:
    """Return a Gaussian window about the middle of its pixels, with the sum 1."""
    line = torch.exp(-(torch.arange(kernel, device=device, dtype=torch.double) - (kernel - 1) / 2).square() / (2 * sigma**2))
    window = line[:, None] * line
    return (window / window.sum()).reshape(-1, 1)


def shuffled_orders(n_rays: int, generator: torch.Generator, repeats: int = 10) -> Int[Tensor, "M R"]:
    r"""Return $\pi_1$, the order as drawn, and M - 1 random ones."""
    shuffled = [torch.randperm(n_rays, generator=generator, device=generator.device) for _ in range(repeats - 1)]
    return torch.stack([torch.arange(n_rays, device=generator.device), *shuffled])


def draw_groups(
    n_rays: int, generator: torch.Generator, kernel: int = 4, stride: int = 4, repeats: int = 10
) -> Int[Tensor, "MG kernel_squared"]:
    r"""Return the rays of every window of all shuffled patches: $\pi_m$ read at the windows' places, $\pi_1$ the order as drawn."""
    height, width = patch_shape(n_rays, kernel)
    places = window_index(height, width, kernel, stride, generator.device)
    return shuffled_orders(n_rays, generator, repeats)[:, places].reshape(-1, kernel * kernel)


def group_moments(
    x: Float[Tensor, "G n 3"], y: Float[Tensor, "G n 3"], weights: Float[Tensor, "n 1"]
) -> tuple[Float[Tensor, "G 3"], ...]:
    r"""Return $\mu_x, \mu_y, \sigma_x^2, \sigma_y^2, \sigma_{xy}$ of each group and colour, under weights of sum 1."""
    mu_x, mu_y = (x * weights).sum(1), (y * weights).sum(1)
    a, b = x - mu_x[:, None], y - mu_y[:, None]
    weighted = a * weights
    return mu_x, mu_y, (weighted * a).sum(1), (weights * b * b).sum(1), (weighted * b).sum(1)


def loss_s3im(
    rgb: Float[Tensor, "R 3"],
    truth: Float[Tensor, "R 3"],
    generator: torch.Generator,
    kernel: int = 4,
    stride: int = 4,
    repeats: int = 10,
    min_contrast: float = 0.0,
) -> Float[Tensor, ""]:
    r"""Return 1 - SSIM over the windows of random virtual patches (S3IM, eq. 8).

    Args:
        rgb, truth: colours of random rays of all pictures, in [0, 1]; gradients flow through `rgb` alone.
        kernel, stride: of the windows, in pixels of the patch.
        repeats: M, patches made of the same rays; the first takes them in their order.
        min_contrast: standard deviation of a group's truth below which it does not count. Flat groups pull very hard.
    """
    groups = draw_groups(len(rgb), generator, kernel, stride, repeats)
    moments = group_moments(rgb[groups], truth[groups], window_weights(kernel, device=rgb.device).to(rgb))
    luminance, structure = ssim_terms(*moments)
    counts = (moments[3] >= min_contrast**2).to(rgb)
    return ((1.0 - luminance * structure) * counts).sum() / counts.sum().clamp_min(1)
