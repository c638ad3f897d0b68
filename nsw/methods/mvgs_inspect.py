"""Look at what several views say at once: the pull of each on a splat, signal against noise, windows and crossing rays."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.losses import loss_photometric
from nsw.methods.mvgs import corner_rays
from nsw.models.gaussians import Gaussians
from nsw.renderers.splats import render_view
from nsw.scenes.scene import Scene


def pulls(gaussians: Gaussians, scene: Scene, background: float = 1.0) -> Float[Tensor, "V N 3"]:
    """Return where each training view alone wants every splat's centre to go: minus the gradient of its loss."""
    frames = scene.splits["train"]
    cameras, targets = scene.views(frames).to(gaussians.means.device), scene.pixels(frames, background, gaussians.means.device)
    found = []
    for i in range(len(frames)):
        render = render_view(gaussians, cameras[i : i + 1], background=background, depth=False)
        (gradient,) = torch.autograd.grad(loss_photometric(render.rgb, targets[i : i + 1]), [gaussians.means])
        found.append(-gradient)
    return torch.stack(found)


def signal_to_noise(draws: Float[Tensor, "B P"]) -> float:
    r"""Return how far a gradient stands out of its own scatter, from B draws of it.

    $$\|\bar g\| \,\Big/ \sqrt{\tfrac1B \textstyle\sum_b \|g_b - \bar g\|^2}$$
    """
    mean = draws.mean(dim=0)
    return float(mean.norm() / (draws - mean).square().sum(dim=1).mean().sqrt())


def batch_sums(
    per_view: Float[Tensor, "V P"], n_views: int, n_batches: int, generator: torch.Generator | None = None
) -> Float[Tensor, "B P"]:
    """Return the gradients of random batches: sums over n_views of V, drawn with replacement as from a stream of views."""
    picked = torch.randint(len(per_view), (n_batches, n_views), generator=generator)
    return torch.stack([per_view[rows].sum(dim=0) for rows in picked])


def framed(
    picture: Float[Tensor, "H W 3"], corners: Float[Tensor, "4 2"], rgb: tuple = (0.84, 0.37, 0.0)
) -> Float[Tensor, "H W 3"]:
    """Return the picture with a window's outline drawn on it, one pixel wide."""
    marked, colour = picture.clone(), picture.new_tensor(rgb)
    (left, top), (right, bottom) = corners[0].int().tolist(), (corners[2].int() - 1).tolist()
    marked[[top, bottom], left : right + 1] = colour
    marked[top : bottom + 1, [left, right]] = colour
    return marked


def ray_ends(cameras: Cameras, corners: Float[Tensor, "M 4 2"], length: float) -> tuple[Tensor, Tensor]:
    """Return start and end [4M, 3] of the corner rays, for `splat_marks.threads`."""
    start = cameras.origins[:, None].expand(-1, 4, -1)
    return start.reshape(-1, 3), (start + length * corner_rays(cameras, corners)).reshape(-1, 3)


def apart(places: Float[Tensor, "M 3"], tau: float) -> tuple[Float[Tensor, "P 3"], Float[Tensor, "P 3"]]:
    """Return the pairs of places that are farther apart than tau: start and end of the line between them."""
    first, second = torch.combinations(torch.arange(len(places))).unbind(-1)
    far = (places[first] - places[second]).norm(dim=-1) > tau
    return places[first][far], places[second][far]
