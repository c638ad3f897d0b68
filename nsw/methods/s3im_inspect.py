"""Looking at S3IM: the picture nobody took, one group of pixels, who is pulled how hard, and how much of it is squared error."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import pixel_rays
from nsw.losses import SSIM_CONSTANTS, ExtraLoss, loss_mse, ssim_terms
from nsw.methods import dvgo
from nsw.methods.s3im import draw_groups, group_moments, loss_s3im, patch_shape, window_weights
from nsw.methods.s3im_controls import colour_gradient
from nsw.metrics import clock
from nsw.models.dense_grid import DenseGrid
from nsw.scenes.scene import Scene


@torch.no_grad()
def seen_and_true(model: DenseGrid, scene: Scene, n_rays: int, seed: int = 0) -> tuple[Float[Tensor, "R 3"], Float[Tensor, "R 3"]]:
    """Return what a grid shows on random rays of all training pictures, and their true colours."""
    cameras, pixels = scene.views("train"), scene.pixels("train")
    truth = pixels.reshape(-1, 3)
    index = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed))[:n_rays]
    rays = pixel_rays(cameras, *torch.unravel_index(index, pixels.shape[:3]))
    return dvgo.render(model, rays.to(model.aabb.device), scene.near).rgb.cpu(), truth[index]


def theatre(
    rgb: Float[Tensor, "R 3"], truth: Float[Tensor, "R 3"], shuffle: int = 0, kernel: int = 4
) -> dict[str, Float[Tensor, "H W 3"]]:
    """Return a virtual patch of the truth, the same of the prediction, and SSIM of each window: dark is unlike.

    Args:
        shuffle: 0 takes the rays in their order, other numbers another order each.
    """
    height, width = patch_shape(len(rgb), kernel)
    order = torch.arange(len(rgb)) if shuffle == 0 else torch.randperm(len(rgb), generator=torch.Generator().manual_seed(shuffle))
    patches = [v[order][: height * width].view(height, width, 3) for v in (truth, rgb)]
    groups = order[draw_groups(len(rgb), torch.Generator(), kernel, kernel, repeats=1)]
    luminance, structure = ssim_terms(*group_moments(rgb[groups], truth[groups], window_weights(kernel).to(rgb)))
    similar = (luminance * structure).mean(-1).clamp(0, 1).view(height // kernel, width // kernel)
    similar = similar.repeat_interleave(kernel, 0).repeat_interleave(kernel, 1)[..., None].expand(-1, -1, 3)
    words = f"SSIM of each window, mean {float((luminance * structure).mean()):.2f}"
    return {"true colours": patches[0], "what the field shows": patches[1], words: similar}


def changed_group(
    truth: Float[Tensor, "n 3"], shift: float = 0.0, scale: float = 1.0, noise: float = 0.0
) -> tuple[Float[Tensor, "n 3"], float, float]:
    """Return a prediction of one group, which misses the truth in a known way, and its two terms of SSIM: brightness, structure.

    Args:
        truth: colours of the group's pixels, as many as a square has.
        shift, scale: brightness added to, and contrast multiplied into, the prediction.
        noise: standard deviation of what is added to it.
    """
    grain = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    middle = truth.mean(0)
    rgb = middle + scale * (truth - middle) + shift + noise * grain
    moments = group_moments(rgb[None], truth[None], window_weights(round(len(truth) ** 0.5)).to(rgb))
    luminance, structure = (float(term[0, 0]) for term in ssim_terms(*moments))
    return rgb, luminance, structure


def pull_map(
    model: DenseGrid, scene: Scene, loss: ExtraLoss, view: int = 0, n_others: int = 8192, seed: int = 0
) -> Float[Tensor, "H W"]:
    """Return how hard a loss pulls at each pixel of a training picture, grouped with pixels of all pictures; 1 on average.

    Args:
        n_others: random pixels of the training set that join the picture's own in one batch.
    """
    frame = scene.frames("train")[view : view + 1]
    shot = dvgo.render_view(model, scene.views(frame).to(model.aabb.device), scene.near).rgb.cpu()
    own = shot.reshape(-1, 3), scene.pixels(frame).reshape(-1, 3)
    others = seen_and_true(model, scene, n_others, seed)
    rgb, truth = (torch.cat([a, b]) for a, b in zip(own, others, strict=True))
    pull = colour_gradient(loss, rgb, truth, torch.Generator().manual_seed(seed))[: len(own[0])].norm(dim=-1)
    return (pull / pull.mean().clamp_min(1e-12)).view(shot.shape[1:3])


def alignment(model: DenseGrid, scene: Scene, loss: ExtraLoss, n_rays: int = 4096, seed: int = 0) -> dict[str, float]:
    """Return a loss's gradient at the colours beside that of MSE: how many times as long, and the cosine between them.

    A cosine of 1 is a re-weighting that Adam does not even notice; what is missing to 1 is the rest.
    """
    rgb, truth = seen_and_true(model, scene, n_rays, seed)
    own = colour_gradient(lambda x, y, _: loss_mse(x, y), rgb, truth, torch.Generator().manual_seed(seed))
    other = colour_gradient(loss, rgb, truth, torch.Generator().manual_seed(seed))
    return {"times as long": float(other.norm() / own.norm()), "cosine": float((own * other).sum() / (own.norm() * other.norm()))}


def seconds_of(loss: ExtraLoss, n_rays: int, device: torch.device | str = "cpu", n: int = 15) -> float:
    """Return the median seconds of a term with its gradient on so many rays."""
    generator = torch.Generator(device).manual_seed(0)
    rgb, truth = (torch.rand(n_rays, 3, generator=generator, device=device) for _ in range(2))
    spent = []
    for _ in range(n):
        began = clock()
        float(colour_gradient(loss, rgb, truth, generator).sum())  # to the host: a GPU has finished when it is there
        spent.append(clock() - began)
    return sorted(spent)[n // 2]


def expansion(
    rgb: Float[Tensor, "G n 3"], truth: Float[Tensor, "G n 3"], weights: Float[Tensor, "n 1"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return 1 - SSIM of groups, and what remains of it for small errors: squares over contrast, and over brightness."""
    c1, c2 = SSIM_CONSTANTS
    mu_x, mu_y, *rest = group_moments(rgb, truth, weights)
    luminance, structure = ssim_terms(mu_x, mu_y, *rest)
    e = rgb - truth
    mean = (e * weights).sum(1)
    spread = (e.square() * weights).sum(1) - mean.square()
    near = spread / (2 * rest[1] + c2) + mean.square() / (2 * mu_y.square() + c1)
    return (1 - luminance * structure).mean(), near.mean()


def expansion_curves(
    truth: Float[Tensor, "G n 3"], weights: Float[Tensor, "n 1"], generator: torch.Generator
) -> dict[str, tuple[list[float], list[float]]]:
    """Return both numbers of `expansion` over the size of normal noise on the truth, as curves {name: (sizes, losses)}."""
    grain = torch.randn(truth.shape, generator=generator)
    sizes = [10**k for k in torch.linspace(-3, -0.2, 15).tolist()]
    found = [[float(value) for value in expansion(truth + size * grain, truth, weights)] for size in sizes]
    whole, small = zip(*found, strict=True)
    return {"1 - SSIM": (sizes, list(whole)), "small-error form": (sizes, list(small))}


def white_corner(n: int = 1024, share: float = 0.9, seed: int = 0) -> tuple[Float[Tensor, "R 3"], Float[Tensor, "R 3"]]:
    """Return a prediction and its truth where most pixels are a white background that is missed by 2 %."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.rand(n, 3, generator=g)
    truth[torch.rand(n, generator=g) < share] = 1.0
    return (truth - 0.02 * torch.rand(n, 3, generator=g)).clamp(0, 1), truth


def weighted(weight: float, **options) -> ExtraLoss:
    """Return S3IM times a weight, with options of `loss_s3im`."""
    return lambda rgb, truth, generator: weight * loss_s3im(rgb, truth, generator, **options)


def warmed(loss: ExtraLoss, n_steps: int) -> ExtraLoss:
    """Return a term that rises from nothing to all of itself over its first `n_steps` calls."""
    calls = iter(range(1, 1 << 62))
    return lambda rgb, truth, generator: min(1.0, next(calls) / n_steps) * loss(rgb, truth, generator)
