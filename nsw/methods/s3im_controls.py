r"""What S3IM is compared with: the same size of gradient, the same normalisation, the same formula on real patches.

For small errors e of a group (see exercise 1 of the notebook)

$$1 - \mathrm{SSIM} \approx \frac{\overline{e^2} - \bar e^2}{2\sigma_y^2 + c_2} + \frac{\bar e^2}{2\mu_y^2 + c_1}$$

so S3IM is a squared error with another size and other weights, and something besides. Each term here keeps one part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Rays
from nsw.losses import SSIM_CONSTANTS, ExtraLoss, loss_mse
from nsw.methods.dvgo_stages import RayBank
from nsw.methods.s3im import draw_groups, group_moments, patch_shape, window_index, window_weights


def colour_gradient(loss: ExtraLoss, rgb: Float[Tensor, "R 3"], truth: Float[Tensor, "R 3"], generator: torch.Generator) -> Tensor:
    """Return the gradient of a term at the colours, [R, 3]."""
    with torch.enable_grad():
        colours = rgb.detach().requires_grad_()
        return torch.autograd.grad(loss(colours, truth, generator), colours)[0]


def matched_mse(loss: ExtraLoss) -> ExtraLoss:
    r"""Return MSE times what gives it, in every step, a gradient as long as that of `loss` at the colours.

    $$L = \mathrm{sg}\Big(\frac{\lVert\nabla L_{\rm extra}\rVert}{\lVert\nabla L_{\rm MSE}\rVert}\Big)\, L_{\rm MSE}$$
    """

    def matched(rgb: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
        wanted = colour_gradient(loss, rgb, truth, generator).norm()
        own = colour_gradient(lambda x, y, _: loss_mse(x, y), rgb, truth, generator).norm()
        return loss_mse(rgb, truth) * (wanted / own.clamp_min(1e-12))

    return matched


def loss_normalised(
    rgb: Float[Tensor, "R 3"], truth: Float[Tensor, "R 3"], generator: torch.Generator, kernel: int = 4, repeats: int = 10
) -> Float[Tensor, ""]:
    r"""Return squared errors over the contrast of their groups, which are drawn as S3IM draws them, without correlations.

    $$\frac1G \sum_g \frac{\overline{e^2}}{2\sigma_y^2 + c_2}$$
    """
    groups, weights = draw_groups(len(rgb), generator, kernel, kernel, repeats), window_weights(kernel, device=rgb.device).to(rgb)
    x, y = rgb[groups], truth[groups]
    contrast = group_moments(y, y, weights)[2]
    return ((weights * (x - y).square()).sum(1) / (2 * contrast + SSIM_CONSTANTS[1])).mean()


@dataclass(frozen=True)
class PatchBank(RayBank):
    """Rays that are drawn as squares of neighbours, `size` pixels wide, in the order in which `loss_s3im` makes windows of them.

    Attributes:
        height, width: of the pictures, whose rays follow each other row by row.
        size: pixels along an edge of a square.
    """

    height: int = 0
    width: int = 0
    size: int = 4

    def draw(self, n_rays: int, generator: torch.Generator) -> tuple[Rays, Float[Tensor, "n_rays 3"]]:
        """Return random squares of random pictures laid out as one patch."""
        rows, columns = patch_shape(n_rays, self.size)
        places = window_index(rows, columns, self.size, self.size, self.colours.device)
        pictures = len(self) // (self.height * self.width)
        bounds = (pictures, self.height - self.size + 1, self.width - self.size + 1)
        picture, row, column = (torch.randint(n, (len(places),), generator=generator, device=places.device) for n in bounds)
        corner = (picture * self.height + row) * self.width + column
        inside = torch.arange(self.size, device=places.device)
        index = places.new_empty(rows * columns)
        index[places.reshape(-1)] = (corner[:, None] + (inside[:, None] * self.width + inside).reshape(-1)).reshape(-1)
        return self.rays[index], self.colours[index]
