r"""What S3IM is compared with: the same size of gradient, the same normalisation, the same formula on real patches.

For small errors e of a group (see exercise 1 of the notebook)

$$1 - \mathrm{SSIM} \approx \frac{\overline{e^2} - \bar e^2}{2\sigma_y^2 + c_2} + \frac{\bar e^2}{2\mu_y^2 + c_1}$$

so S3IM is a squared error with another size and other weights, and something besides. Each term here keeps one part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import conv2d

from nsw.cameras import Rays
from nsw.losses import SSIM_CONSTANTS, ExtraLoss, loss_mse, ssim_terms
from nsw.methods.dvgo_stages import RayBank
from nsw.methods.s3im import draw_groups, group_moments, patch_shape, shuffled_orders, window_index, window_weights
from nsw.scenes.scene import Scene


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


def loss_official_layout(
    rgb: Float[Tensor, "R 3"], truth: Float[Tensor, "R 3"], generator: torch.Generator, kernel: int = 4, repeats: int = 10
) -> Float[Tensor, ""]:
    r"""Return 1 - SSIM with colours laid out as in the authors' release: the same mean as `loss_s3im`, but for its border.

    M shuffles stand one after the other as [M R, 3] and are read as one picture [3, H, M W], so that the rows of a window come
    from places H W M / H apart: of other shuffles. Windows have their peak at index `kernel` // 2 and begin in a border of zeros.
    """
    height, width = patch_shape(len(rgb), kernel)
    order = shuffled_orders(len(rgb), generator, repeats)[:, : height * width].reshape(-1)
    x, y = (v[order].T.reshape(1, 3, height, width * repeats) for v in (rgb, truth))
    line = torch.exp(-(torch.arange(kernel, device=rgb.device) - kernel // 2).to(rgb).square() / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, kernel, kernel)
    mu_x, mu_y, xx, yy, xy = (
        conv2d(v, window, stride=kernel, padding=(kernel - 1) // 2, groups=3) for v in (x, y, x * x, y * y, x * y)
    )
    luminance, structure = ssim_terms(mu_x, mu_y, xx - mu_x**2, yy - mu_y**2, xy - mu_x * mu_y)
    return 1 - (luminance * structure).mean()


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


@dataclass(frozen=True)
class AlikeBank(RayBank):
    """Rays that are drawn in groups with one label, of any pictures, in the order in which `loss_s3im` makes windows of them.

    A group is chosen by one of its rays, so that every ray is drawn equally often on average.

    Attributes:
        labels: of each ray, whole numbers from 0.
        size: a group has `size` * `size` rays, with repetitions where a label has few.
    """

    labels: Int[Tensor, "R"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    size: int = 4

    def draw(self, n_rays: int, generator: torch.Generator) -> tuple[Rays, Float[Tensor, "n_rays 3"]]:
        """Return random groups laid out as one patch."""
        places = window_index(*patch_shape(n_rays, self.size), self.size, self.size, self.colours.device)
        first = torch.randint(len(self), (len(places), 1), generator=generator, device=places.device)
        chosen, counts = self.labels[first], self.labels.bincount()
        share = torch.rand(places.shape, generator=generator, device=places.device)
        member = (counts.cumsum(0) - counts)[chosen] + (share * counts[chosen]).long()
        index = places.new_empty(places.numel())
        index[places.reshape(-1)] = self.labels.argsort()[member].reshape(-1)
        return self.rays[index], self.colours[index]


def in_squares(scene: Scene, bank: RayBank) -> PatchBank:
    """Return all rays of a scene's training pictures, to be drawn as squares of neighbours."""
    return PatchBank(bank.rays, bank.colours, *scene.images.shape[1:3])


def by_object(scene: Scene, bank: RayBank) -> AlikeBank:
    """Return all rays of a scene's training pictures, to be drawn in groups of one object, which its true `ids` tell."""
    labels = scene.ids[scene.frames("train")].reshape(-1).unique(return_inverse=True)[1]
    return AlikeBank(bank.rays, bank.colours, labels.to(bank.colours.device))
