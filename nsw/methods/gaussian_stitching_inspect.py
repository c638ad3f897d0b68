"""Measure a stitched object: the jump of colour at the seam, how far the tone is off, and how much texture is left."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.errors import InputError
from nsw.methods.gaussian_stitching import Boundary, find_drivers, gaps, sobel
from nsw.models.gaussians import Gaussians
from nsw.models.parts import joined
from nsw.models.sh import sh_basis
from nsw.renderers.splat_marks import threads
from nsw.renderers.splat_probe import recoloured
from nsw.renderers.splats import render_view


@torch.no_grad()
def shares(source: Gaussians, target: Gaussians, camera: Cameras) -> tuple[Bool[Tensor, "H W"], Bool[Tensor, "H W"]]:
    """Return the pixels that show the source, and those that show the target: the union drawn in black and white."""
    painted = [recoloured(part, torch.full_like(part.means, grey)) for part, grey in ((source, 0.0), (target, 1.0))]
    render = render_view(joined(*painted), camera, background=0.0, depth=False)
    solid, light = render.alpha[0] > 0.9, render.rgb[0, :, :, 0]
    return solid & (light < 0.3), solid & (light > 0.7)


def jump(image: Float[Tensor, "H W 3"], source: Bool[Tensor, "H W"], target: Bool[Tensor, "H W"], reach: int = 2) -> float:
    """Return the mean distance in RGB between both sides of the seam, each a mean over a window of 2 reach + 1 pixels.

    Windows count that hold at least a row of pixels of either side. 0 where no seam is seen.
    """

    def local(mask: Tensor) -> tuple[Tensor, Tensor]:
        m = mask.to(image)[None, None]
        window = image.new_ones(1, 1, 2 * reach + 1, 2 * reach + 1)
        count = F.conv2d(m, window, padding=reach)
        colours = F.conv2d((image.permute(2, 0, 1)[:, None] * m), window, padding=reach)
        return (colours / count.clamp_min(1))[:, 0], count[0, 0]

    (one, n_one), (other, n_other) = local(source), local(target)
    at = (n_one > 2 * reach) & (n_other > 2 * reach)
    return float((one - other).norm(dim=0)[at].mean()) if bool(at.any()) else 0.0


@torch.no_grad()
def seam_contrast(model: Gaussians, source: Gaussians, target: Gaussians, truth: Gaussians, cameras: Cameras) -> float:
    """Return the mean jump at the seam, less what the whole object shows at the same pixels, in RGB units."""
    excess = []
    for i in range(len(cameras)):
        masks = shares(source, target, cameras[i])
        ours, whole = (render_view(m, cameras[i], depth=False).rgb[0].clamp(0, 1) for m in (model, truth))
        excess.append(jump(ours, *masks) - jump(whole, *masks))
    return sum(excess) / len(excess)


@torch.no_grad()
def mean_jump(model: Gaussians, source: Gaussians, target: Gaussians, cameras: Cameras) -> float:
    """Return the mean jump at the seam in RGB units, whatever the object should look like: for parts without a truth."""
    jumps = [jump(render_view(model, c, depth=False).rgb[0].clamp(0, 1), *shares(source, target, c)) for c in cameras_of(cameras)]
    return sum(jumps) / len(jumps)


def cameras_of(cameras: Cameras) -> list[Cameras]:
    """Return the cameras one by one."""
    return [cameras[i] for i in range(len(cameras))]


@torch.no_grad()
def far_step(
    model: Gaussians, source: Gaussians, target: Gaussians, truth: Gaussians, cameras: Cameras, beta: float = 0.05, k: int = 8
) -> float:
    r"""Return the step of tone that is left two boundary widths from the border, in RGB units.

    $$\Big\|\overline{I(p)} - \overline{I^{true}(p)}\Big\| \quad \text{over pixels p of splats with } 2\beta < g(a) < 3\beta$$

    g are the `gaps` to the source, and pixels count that show nothing else; those of all views make one mean, so that veins, which
    differ between looks, average out and the tone is left.

    Raises:
        InputError: when no view shows the band.
    """
    gap = gaps(source, target, k)[0]
    band = ((gap > 2 * beta) & (gap < 3 * beta)).float()[:, None].expand(-1, 3)
    painted = joined(recoloured(source, torch.zeros_like(source.means)), recoloured(target, band))
    ours, whole = [], []
    for camera in cameras_of(cameras):
        render = render_view(painted, camera, background=0.0, depth=False)
        at = (render.alpha[0] > 0.9) & (render.rgb[0, :, :, 0] > 0.7)
        for pixels, shown in ((ours, model), (whole, truth)):
            pixels.append(render_view(shown, camera, depth=False).rgb[0].clamp(0, 1)[at])
    if not sum(map(len, ours)):
        raise InputError(f"No view shows splats between {2 * beta:.3g} and {3 * beta:.3g} sizes of the object from the source.")
    return float((torch.cat(ours).mean(dim=0) - torch.cat(whole).mean(dim=0)).norm())


@torch.no_grad()
def target_psnr(model: Gaussians, source: Gaussians, target: Gaussians, truth: Gaussians, cameras: Cameras) -> float:
    """Return the PSNR in dB of the pixels that show the target, all views together, against the whole object."""
    errors = []
    for camera in cameras_of(cameras):
        mask = shares(source, target, camera)[1]
        ours, whole = (render_view(m, camera, depth=False).rgb[0].clamp(0, 1)[mask] for m in (model, truth))
        errors.append((ours - whole).square())
    return float(-10 * torch.cat(errors).mean().log10())


@torch.no_grad()
def flicker(part: Gaussians, cameras: Cameras) -> float:
    r"""Return how much a splat's colour changes from view to view, in RGB units: $\sqrt{\overline{\mathrm{Var}_v\,c_a(d_v)}}$.

    The mean is over splats, weighted by opacity, and channels. 0 where colours are the same from all sides.
    """
    directions = F.normalize(part.means[None] - cameras.to(part.means.device).origins[:, None], dim=-1)
    basis = sh_basis(part.settings.sh_degree, directions)
    colours = (0.5 + torch.einsum("vnk,nkc->vnc", basis, part.sh)).clamp_min(0)
    w = part.activated_opacities / part.activated_opacities.sum()
    return float((w[:, None] * colours.var(dim=0, unbiased=False)).sum(dim=0).mean().sqrt())


@torch.no_grad()
def tone_distance(model: Gaussians, source: Gaussians, target: Gaussians, truth: Gaussians, cameras: Cameras) -> float:
    r"""Return how far the target's colours are from the whole object's at the same pixels, whatever their places.

    The mean over channels of the Wasserstein distance between histograms, $\int |Q_1(u) - Q_2(u)|\,du$ of the quantiles.
    """
    pixels: list[tuple[Tensor, Tensor]] = []
    for i in range(len(cameras)):
        mask = shares(source, target, cameras[i])[1]
        pixels.append(tuple(render_view(m, cameras[i], depth=False).rgb[0].clamp(0, 1)[mask] for m in (model, truth)))
    ours, whole = (torch.cat(side).sort(dim=0).values for side in zip(*pixels, strict=True))
    return float((ours - whole).abs().mean())


@torch.no_grad()
def texture_kept(before: Gaussians, after: Gaussians, cameras: Cameras) -> float:
    """Return the correlation of Sobel magnitudes of the target alone, before and after, over the pixels that it covers."""
    strengths = []
    for i in range(len(cameras)):
        renders = [render_view(model, cameras[i], depth=False) for model in (before, after)]
        inside = -F.max_pool2d(-(renders[0].alpha > 0.95).float()[:, None], 3, 1, 1)[:, 0] > 0.5  # no outline: it always correlates
        strengths.append(torch.stack([sobel(render.rgb).norm(dim=-1)[inside] for render in renders]))
    return float(torch.corrcoef(torch.cat(strengths, dim=1))[0, 1])


@torch.no_grad()
def driven(target: Gaussians, boundary: Boundary, gamma: float, n_threads: int = 12, solid: float = 0.2) -> Gaussians:
    """Return the target coloured by who drives each splat, and threads from a few splats to their nearest driver.

    Boundary splats and what they drive go from orange to blue along x; the target is see-through, so that threads show.

    Args:
        n_threads: splats that have one: opaque ones, evenly spread over the height.
        solid: factor on opacities.
    """
    drivers = find_drivers(target, boundary, gamma)
    orange, blue = target.means.new_tensor([[0.84, 0.37, 0.0], [0.0, 0.45, 0.70]])
    x, first = target.means[boundary.rows, 0], drivers.driving[:, 0]
    sides = torch.lerp(orange, blue, ((x - x.min()) / (x.max() - x.min()).clamp_min(1e-9))[:, None])
    rgb = torch.empty_like(target.means).index_copy(0, boundary.rows, sides).index_copy(0, drivers.rows, sides[first])
    shapes = target.means, target.activated_scales, target.quats, solid * target.activated_opacities
    opaque = (target.activated_opacities[drivers.rows] > 0.5).nonzero()[:, 0]
    opaque = opaque[target.means[drivers.rows[opaque], 2].argsort()]
    few = opaque[torch.linspace(0, max(len(opaque) - 1, 0), min(n_threads, len(opaque))).round().long()]
    ends = target.means[drivers.rows[few]], target.means[boundary.rows[first[few]]]
    size = float((target.means.amax(dim=0) - target.means.amin(dim=0)).norm())
    return joined(Gaussians.from_values(*shapes, rgb).to(rgb.device), threads(*ends, (0.0, 0.0, 0.0), 0.004 * size))
