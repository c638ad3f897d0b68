r"""Composite surfels into pictures in plain torch: the readable form of `surfels_forward.py`, in any float type.

The ray of pixel (x, y) is the meeting of two planes. In the disk's coordinates they are $k=xT_w-T_u$ and $l=yT_w-T_v$, so the ray
meets the disk at $\zeta=k\times l$, $(u,v)=(\zeta_0/\zeta_2,\ \zeta_1/\zeta_2)$ (Huang et al. 2024, eq. 9-10). Seen from its edge a
disk would fall between the pixels; a screen-space blob, by default of standard deviation $\sqrt2/2$ px, takes over where it is
larger:

$$\alpha=\min(0.999,\ o\,e^{-\rho/2}),\qquad\rho=\min(u^2+v^2,\ 2\,\|(x,y)-c\|^2)$$

Skip and stop rules are those of `rasterize_reference.py`. Besides colours, a ray gives

* depth $\sum_iw_id_i$; gsplat takes the depth of the centre for $d_i$, the paper the depth where the ray meets the disk,
  $uT_{w0}+vT_{w1}+T_{w2}$ (and of the centre where the blob took over);
* median depth: $d$ of the last splat drawn while more than half of the light was left;
* distortion: how far apart along the ray its splats lie. gsplat sums $w_iw_j|d_i-d_j|$ over all pairs (for sorted depths), the
  paper $\sum_{i>j}w_iw_j(m_i-m_j)^2$ with $m=\frac{far}{far-near}(1-near/d)$.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.kernels.projection_reference import ALPHA_MIN
from nsw.kernels.rasterize_reference import ALPHA_MAX, TRANSMITTANCE_MIN, _follow_absolute_gradient, _tile_pixels

# Standard deviation of the screen-space blob in pixels, the paper's and gsplat's; the lists of tiles reckon with no larger one.
LOW_PASS = 0.5**0.5


@dataclass(frozen=True)
class RayRules:
    """What is taken for a splat's depth on a ray: its centre's (gsplat), or where the ray meets the disk (the paper).

    near: intersections nearer than this are skipped. distortion: whether it is computed; distortion_range: near and far of the
    paper's m; both only matter for `ray_depth`, except that the centre's distortion is computed by the same switch. low_pass:
    standard deviation of the screen-space blob in pixels.
    """

    ray_depth: bool = False
    near: float = 0.01
    distortion: bool = False
    distortion_range: tuple[float, float] = (0.2, 100.0)
    low_pass: float = LOW_PASS

    def mapped(self) -> tuple[float, float]:
        """a and b of m = a - b / d."""
        near, far = self.distortion_range
        return far / (far - near), far * near / (far - near)


def meet_disks(pixels, means2d, transforms, opacities, rules: RayRules) -> tuple[Float[Tensor, "p n"], Float[Tensor, "p n"]]:
    """Opacity (0 where the skip rules hold) and ray depth of N surfels at P pixel centres; means2d [N,2] or [P,N,2]."""
    Tu, Tv, Tw = transforms.unbind(-2)
    k, l = pixels[:, None, :1] * Tw - Tu, pixels[:, None, 1:] * Tw - Tv  # noqa: E741 - the paper's letters
    zeta = torch.linalg.cross(k, l)
    meets = zeta[..., 2] != 0
    uv = zeta[..., :2] / torch.where(meets, zeta[..., 2], torch.ones_like(zeta[..., 2]))[..., None]
    on_disk, in_blob = (uv * uv).sum(-1), ((means2d - pixels[:, None, :]) ** 2).sum(-1) / rules.low_pass**2
    disk = on_disk <= in_blob
    uv = torch.where(disk[..., None], uv, torch.zeros_like(uv))
    rho = torch.where(disk, (uv * uv).sum(-1), in_blob)
    alpha = torch.clamp(opacities * torch.exp(-0.5 * rho), max=ALPHA_MAX)
    depth = (uv * Tw[:, :2]).sum(-1) + Tw[:, 2]
    drawn = meets & (alpha >= ALPHA_MIN)
    if rules.ray_depth:
        drawn = drawn & (depth >= rules.near)
    return torch.where(drawn, alpha, torch.zeros_like(alpha)), depth


def composite_ray(alphas: Float[Tensor, "p n"], channels: Float[Tensor, "n c"], depth: Float[Tensor, "p n"], rules: RayRules):
    """Blend front to back: sums of channels [P,C], transmittance left [P], depth, distortion, median depth [P]."""
    with torch.no_grad():
        alive = torch.cumprod(1 - alphas, dim=1) > TRANSMITTANCE_MIN
    alphas = torch.where(alive, alphas, torch.zeros_like(alphas))
    after = torch.cumprod(1 - alphas, dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
    weights = alphas * before
    place = torch.arange(1, alphas.shape[1] + 1, device=alphas.device)
    last = (place * ((weights > 0) & (before > 0.5))).amax(dim=1, keepdim=True)
    median = torch.where(last > 0, depth.gather(1, (last - 1).clamp(min=0)), torch.zeros_like(before[:, :1]))
    distortion = distort(weights, depth, rules) if rules.distortion else torch.zeros_like(after[:, -1])
    return weights @ channels, after[:, -1], (weights * depth).sum(1), distortion, median[:, 0]


def distort(weights: Float[Tensor, "p n"], depth: Float[Tensor, "p n"], rules: RayRules) -> Float[Tensor, "p"]:
    """Distortion of each ray, from sums over the splats in front: linear in their number instead of quadratic."""

    def in_front(values):
        return torch.cumsum(values, dim=1) - values

    if not rules.ray_depth:
        return 2 * (weights * (depth * in_front(weights) - in_front(weights * depth))).sum(1)
    a, b = rules.mapped()
    m = a - b / torch.where(weights > 0, depth, torch.ones_like(depth))
    pairs = m * m * in_front(weights) + in_front(weights * m * m) - 2 * m * in_front(weights * m)
    return (weights * pairs).sum(1)


def composite_surfels(
    means2d: Float[Tensor, "r 2"],
    transforms: Float[Tensor, "r 3 3"],
    channels: Float[Tensor, "r c"],
    opacities: Float[Tensor, "r"],
    depths: Float[Tensor, "r"],
    width: int,
    height: int,
    tile_size: int,
    isect_offsets,
    flatten_ids,
    backgrounds: Float[Tensor, "i c"] | None,
    rules: RayRules,
    absgrad_out: Float[Tensor, "r 2"] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Composite rows of surfels, listed by tile, into I pictures; differentiable by autograd, one tile at a time.

    Returns:
        channels [I,H,W,C] with the background added, alphas, depths, distortions, median depths [I,H,W,1].
    """
    n_images, tiles_y, tiles_x = isect_offsets.shape
    bounds = [*isect_offsets.flatten().tolist(), len(flatten_ids)]
    # Empty pieces tie the picture to its inputs even when nothing is drawn, so that backward gives zeros instead of an error.
    tie = opacities[:0] + means2d[:0, 0] + transforms[:0, 0, 0] + depths[:0]
    pieces, places = [[channels[:0], tie, tie, tie, tie]], [flatten_ids[:0].long()]
    for index in range(n_images * tiles_y * tiles_x):
        begin, end = bounds[index], bounds[index + 1]
        image, tile = divmod(index, tiles_y * tiles_x)
        row, column, centres = _tile_pixels(tile, tiles_x, tile_size, width, height, means2d)
        if begin == end or len(row) == 0:
            continue
        rows = flatten_ids[begin:end].long()
        positions = means2d[rows]
        if absgrad_out is not None:
            positions = _follow_absolute_gradient(means2d, rows, len(centres), absgrad_out)
        alphas, depth = meet_disks(centres, positions, transforms[rows], opacities[rows], rules)
        if not rules.ray_depth:
            depth = depths[rows].expand(len(centres), -1)
        pieces.append(composite_ray(alphas, channels[rows], depth, rules))
        places.append((image * height + row) * width + column)
    place, n_pixels = (torch.cat(places),), n_images * height * width
    columns = [torch.cat(column) for column in zip(*pieces, strict=True)]
    picture = channels.new_zeros(n_pixels, channels.shape[-1]).index_put(place, columns[0])
    light = means2d.new_ones(n_pixels).index_put(place, columns[1])
    maps = [means2d.new_zeros(n_pixels).index_put(place, column) for column in columns[2:]]
    picture, light = picture.view(n_images, height, width, -1), light.view(n_images, height, width, 1)
    if backgrounds is not None:
        picture = picture + light * backgrounds[:, None, None, :]
    return (picture, 1 - light, *(values.view(n_images, height, width, 1) for values in maps))
