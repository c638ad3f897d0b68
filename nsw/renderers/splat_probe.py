"""Look inside a picture made of splats: what one pixel blends, what EWA leaves out, and splats in other colours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.cameras import Cameras, camera_rays
from nsw.errors import InputError
from nsw.kernels.harmonics import spherical_harmonics
from nsw.kernels.projection_reference import rotation_from_quaternion
from nsw.kernels.rasterize_reference import TRANSMITTANCE_MIN, splat_alphas
from nsw.metrics import left_out
from nsw.models.gaussians import Gaussians
from nsw.renderers.splats import render_view


@dataclass(frozen=True)
class PixelSplats:
    """The K splats that one pixel blends, front to back.

    Attributes:
        index: [K] which splats.
        alpha: [K] opacity of each at the pixel's centre.
        transmittance: [K] share of light that reaches each: 1 for the first.
        weight: [K] alpha * transmittance.
        rgb: [K, 3] colour of each towards the camera.
        depth: [K] camera z of the centres.
        left: transmittance behind the last.
        total: the pixel's colour [3], background included.
    """

    index: Int[Tensor, "K"]
    alpha: Float[Tensor, "K"]
    transmittance: Float[Tensor, "K"]
    weight: Float[Tensor, "K"]
    rgb: Float[Tensor, "K 3"]
    depth: Float[Tensor, "K"]
    left: float
    total: Float[Tensor, "3"]

    def __len__(self) -> int:
        return len(self.index)

    def strip(self, stop_after: int | None = None, cell: int = 24) -> Float[Tensor, "H W 3"]:
        """Return a picture of three rows, one column a splat: its colour, its weight as grey, and the pixel so far.

        Args:
            stop_after: splats blended in the last row; the columns behind stay as after that one.
            cell: side of a cell in pixels.
        """
        if len(self) == 0:
            return self.total.clamp(0, 1).expand(3 * cell, cell, 3)
        stop = len(self) if stop_after is None else max(0, min(stop_after, len(self)))
        used = (torch.arange(len(self)) < stop).to(self.weight)
        so_far = torch.cumsum((self.weight * used)[:, None] * self.rgb, dim=0)
        grey = (self.weight / self.weight.amax().clamp_min(1e-6))[:, None].expand(-1, 3)
        rows = torch.stack([self.rgb, grey, so_far]).clamp(0, 1)
        return rows.repeat_interleave(cell, 0).repeat_interleave(cell, 1)


@torch.no_grad()
def pixel_splats(
    gaussians: Gaussians, cameras: Cameras, row: int, column: int, *, background: float | Tensor | None = None, **options
) -> PixelSplats:
    r"""Return what the pixel (row, column) of the first camera blends, by the rules of the rasterizer.

    $$C = \sum_i c_i\,\alpha_i\,T_i + T_{\rm end}\,b, \qquad T_i = \prod_{j<i}(1-\alpha_j)$$  (Kerbl et al. 2023, eq. 3)
    """
    camera = cameras[0].to(gaussians.means.device)
    if not (0 <= row < camera.height and 0 <= column < camera.width):
        raise InputError(f"Pixel ({row}, {column}) lies outside a picture of {camera.height} rows and {camera.width} columns.")
    meta = render_view(gaussians, camera, **options).extras["meta"]
    background = camera.background if background is None else background
    pixel = gaussians.means.new_tensor([[column + 0.5, row + 0.5]])
    alphas = splat_alphas(pixel, meta["means2d"][0], meta["conics"][0], meta["opacities"][0])[0]
    touched = ((alphas > 0) & (meta["radii"][0] > 0).all(-1)).nonzero()[:, 0]
    order = touched[meta["depths"][0][touched].argsort(stable=True)]
    after = torch.cumprod(1 - alphas[order], dim=0)
    order = order[after > TRANSMITTANCE_MIN]
    alpha = alphas[order]
    after = torch.cumprod(1 - alpha, dim=0)
    transmittance = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    weight = alpha * transmittance
    degree = options.get("sh_degree")
    degree = gaussians.settings.sh_degree if degree is None else min(degree, gaussians.settings.sh_degree)
    rgb = (0.5 + spherical_harmonics(degree, gaussians.means[order] - camera.origins, gaussians.sh[order])).clamp_min(0)
    left = float(after[-1]) if len(after) else 1.0
    total = (weight[:, None] * rgb).sum(0) + left * background
    values = [value.cpu() for value in (order, alpha, transmittance, weight, rgb, meta["depths"][0][order])]
    return PixelSplats(*values, left, total.cpu())


def exact_alphas(gaussians: Gaussians, cameras: Cameras) -> Float[Tensor, "C N H W"]:
    r"""Return the opacity of each splat alone, in exact perspective: its peak along the ray of every pixel.

    $$\alpha(r) = o\,\exp\!\big(-\tfrac12\,\|o_g \times d_g\|^2 / \|d_g\|^2\big), \quad
    o_g = S^{-1}R^\top(o_r-\mu),\ d_g = S^{-1}R^\top d_r$$  (distance of a line from the origin)

    The level sets are the silhouettes of the ellipsoids. EWA replaces perspective by its tangent at the centre, so its
    ellipses agree there and drift towards the border of wide pictures. Nothing is dilated here: compare with eps2d=0.
    """
    rays = camera_rays(cameras.to(gaussians.means.device))
    to_unit = rotation_from_quaternion(gaussians.quats).transpose(1, 2) / gaussians.activated_scales[:, :, None]
    origins = torch.einsum("nij,nrj->nri", to_unit, rays.origins[None] - gaussians.means[:, None])
    directions = torch.einsum("nij,rj->nri", to_unit, rays.directions)
    squared = torch.linalg.cross(origins, directions).square().sum(-1) / directions.square().sum(-1)
    ahead = (origins * directions).sum(-1) < 0  # the peak of a splat behind the camera is not seen
    alphas = gaussians.activated_opacities[:, None] * torch.exp(-0.5 * squared) * ahead
    return alphas.view(len(gaussians), len(cameras), cameras.height, cameras.width).transpose(0, 1)


@torch.no_grad()
def recoloured(gaussians: Gaussians, rgb: Float[Tensor, "N 3"]) -> Gaussians:
    """Return a copy with other colours, the same from all sides."""
    raw = gaussians
    values = (raw.means, raw.activated_scales, raw.quats, raw.activated_opacities, rgb.to(raw.means))
    return Gaussians.from_values(*values).to(raw.means.device)


def origin_colours(origin: Int[Tensor, "N"]) -> Float[Tensor, "N 3"]:
    """Return grey for splats of the start, orange for clones and blue for children of splits (`rows["origin"]`)."""
    palette = torch.tensor([[0.6, 0.6, 0.6], [0.90, 0.62, 0.0], [0.0, 0.45, 0.70]])
    return palette[origin.long().cpu()]


class Film:
    """Frames collected during a run, as 8-bit pictures; give it to `run.steps(save=...)` and they outlive a restart."""

    def __init__(self) -> None:
        self.frames: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Float[Tensor, "H W 3"]:
        return self.frames[index].float() / 255

    def add(self, picture: Float[Tensor, "H W 3"]) -> None:
        """Append a picture with values in [0, 1]."""
        self.frames.append((picture.detach().clamp(0, 1) * 255).round().byte().cpu())

    def watching(self, steps: Iterable[int], every: int, picture: Callable[[], Tensor]) -> Iterator[int]:
        """Yield the steps of a training, and append `picture()` after every `every`-th; the clock stands still then."""
        for step in steps:
            yield step
            if step % every == 0:
                with left_out(wait=True):
                    self.add(picture())

    def state_dict(self) -> dict:
        return {"frames": list(self.frames)}

    def load_state_dict(self, state: dict) -> None:
        self.frames = list(state["frames"])
