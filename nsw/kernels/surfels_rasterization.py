"""`rasterization_2dgs` and `rasterize_to_pixels_2dgs`: gsplat's calls for flat splats on the CPU, with gradients.

project -> shade -> list per tile -> composite, as in `splatting.py`; colours and normals are blended alike, as channels side by
side. Float32 with tiles of 16 pixels runs compiled, everything else in plain torch (`surfels_reference.py`: the formulas).

>>> one = torch.ones(1, 3)
>>> picture, alpha, normals, *_ = rasterization_2dgs(
...     torch.tensor([[0.0, 0.0, 2.0]]), torch.eye(4)[:1], 0.1 * one, torch.tensor([0.9]), one, torch.eye(4)[None],
...     torch.tensor([[[32.0, 0, 16], [0, 32, 16], [0, 0, 1]]]), 32, 32)
>>> picture.shape, round(normals[0, 16, 16, 2].item(), 2)  # faces the camera, as long as alpha
(torch.Size([1, 32, 32, 3]), -0.82)
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.errors import CallError
from nsw.kernels import engines
from nsw.kernels.meta import Meta, rows_of_pairs
from nsw.kernels.pixel_lists import check_lists, compiled_applies, without_masked
from nsw.kernels.projecting import check_splats
from nsw.kernels.projection_reference import View
from nsw.kernels.settled_gradient import settle_gradient
from nsw.kernels.surfels_projection import fully_fused_projection_2dgs
from nsw.kernels.surfels_reference import LOW_PASS, RayRules, composite_surfels

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")


def rasterization_2dgs(
    means: Float[Tensor, "*b n 3"], quats: Float[Tensor, "*b n 4"], scales: Float[Tensor, "*b n 3"],
    opacities: Float[Tensor, "*b n"], colors: Tensor, viewmats: Float[Tensor, "*b c 4 4"], Ks: Float[Tensor, "*b c 3 3"],
    width: int, height: int, near_plane: float = 0.01, far_plane: float = 1e10, radius_clip: float = 0.0, eps2d: float = 0.3,
    sh_degree: int | None = None, packed: bool = False, tile_size: int = 16, backgrounds: Float[Tensor, "*b c d"] | None = None,
    render_mode: Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"] = "RGB", sparse_grad: bool = False, absgrad: bool = False,
    distloss: bool = False, depth_mode: Literal["expected", "median"] = "expected", *, ray_depth: bool = False,
    distortion_range: tuple[float, float] = (0.2, 100.0), low_pass: float = LOW_PASS, n_trained: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, dict]:  # fmt: skip
    """Draw N surfels as C cameras see them (Huang et al. 2024), with the call and the returns of gsplat 1.5.3.

    Args:
        means ... sparse_grad: as in `rasterization`; the third scale is not used, eps2d neither.
        absgrad: sets `meta["means2d"].absgrad`, in which only pixels count where the screen-space blob was larger than the disk.
        distloss: compute the distortion; needs a render mode with depth.
        depth_mode: from which depth the normals from depth are taken.
        ray_depth: take the depth where a ray meets the disk, and the distortion of squared differences, as the paper does. False
            is gsplat: the centre's depth, and absolute differences.
        distortion_range: near and far of the paper's distortion.
        low_pass: standard deviation in pixels, up to gsplat's, of the blob that stands in for discs seen from their edge.
        n_trained: only the first so many surfels get gradients, through all that they do to the picture; the others are drawn with
            them and their gradients are 0, which saves up to half of the way back. None is all; not with packed.

    Returns:
        colours [..., C, H, W, X], alphas [..., C, H, W, 1], normals in the world [..., C, H, W, 3] (as long as alpha), normals
        from depth [..., C, H, W, 3] (one camera: [H, W, 3], as gsplat has it; None unless render_mode is "RGB+D" or "RGB+ED"),
        distortion and median depth [..., C, H, W, 1], meta.
        `meta["gradient_2dgs"]` is a zero tensor whose `.grad` steers densification. In mode "RGB" gsplat returns the blue channel
        as median depth; here it is the depth in every mode.

    Raises:
        CallError: when shapes or modes do not fit together.
    """
    batch, N, C = check_splats(means, quats, scales, viewmats, Ks)
    _check(opacities, colors, backgrounds, batch, N, C, sh_degree, render_mode, distloss, depth_mode)
    viewmats = settle_gradient(viewmats)
    _check_low_pass(low_pass)
    if n_trained is not None and (packed or not 0 <= n_trained <= N):
        raise CallError(f"rasterization_2dgs: n_trained must be between 0 and N={N} and packed False, got {n_trained}.")
    rules = RayRules(ray_depth, near_plane, distloss, tuple(distortion_range), low_pass)
    out = fully_fused_projection_2dgs(
        means, quats, scales, viewmats, Ks, width, height, eps2d, near_plane, far_plane, radius_clip, packed, sparse_grad
    )
    ids = out[:3] if packed else None
    radii, means2d, _, transforms, normals = out[-5:]
    B = math.prod(batch)
    seen = rows_of_pairs(opacities.reshape(B, 1, N), ids, C)
    values = _shade(means, colors, viewmats, radii, ids, sh_degree, (batch, B, C, N))
    view = View(int(width), int(height), near_plane, far_plane, radius_clip, eps2d)
    shown = seen.view((len(radii),) if packed else batch + (C, N))
    meta = _meta(out[-5:], shown, ids, (batch, B, C, N), tile_size, view)
    if absgrad:
        means2d.absgrad = torch.zeros_like(means2d)
    colored = render_mode.startswith("RGB")
    behind = F.pad(backgrounds.reshape(B * C, -1), (0, 3)) if backgrounds is not None and colored else None
    channels = torch.cat([values, normals.reshape(-1, 3)], -1) if colored else normals.reshape(-1, 3)
    followed = _follow(transforms.reshape(-1, 3, 3), meta["gradient_2dgs"].view(-1, 2))
    pixels = _composite(meta, followed, channels, seen, behind, rules, absgrad, n_trained)
    return _pictures(pixels, meta, batch + (C,), viewmats, Ks, render_mode, depth_mode)


def _pictures(pixels, meta: Meta, lead, viewmats, Ks, render_mode: str, depth_mode: str):
    """From blended channels to the seven returns: depth beside or for the colours, normals in the world and from depth."""
    pictures, alphas, summed, distortion, median = pixels
    shape, colored = lead + (meta["height"], meta["width"]), render_mode.startswith("RGB")
    renders = pictures[..., :-3]
    if render_mode.endswith("D"):
        shown = summed / alphas.clamp(min=1e-10) if render_mode.endswith("ED") else summed
        renders = torch.cat([renders, shown], dim=-1) if colored else shown
    else:
        renders = renders.contiguous()
    renders = renders.view(shape + (-1,))
    alphas, distortion, median = (x.view(shape + (1,)) for x in (alphas, distortion, median))
    cam_to_world = torch.linalg.inv(viewmats)
    world = torch.einsum("...ij,...hwj->...hwi", cam_to_world[..., :3, :3], pictures[..., -3:].reshape(shape + (3,)))
    from_depth = None
    if render_mode in ("RGB+D", "RGB+ED"):
        surface = renders[..., -1:] if depth_mode == "expected" else median
        from_depth = normals_of_depth(surface, cam_to_world, Ks).squeeze(0)
    meta["render_distort"] = distortion
    return renders, alphas, world, from_depth, distortion, median, meta


def _check(opacities, colors, backgrounds, batch, N, C, sh_degree, render_mode, distloss, depth_mode) -> None:
    def require(condition: bool, message: str) -> None:
        if not condition:
            raise CallError(f"rasterization_2dgs: {message}")

    require(tuple(opacities.shape) == batch + (N,), f"opacities must be {list(batch + (N,))}, got {list(opacities.shape)}.")
    require(render_mode in RENDER_MODES, f"render_mode must be one of {', '.join(RENDER_MODES)}, got {render_mode!r}.")
    require(not distloss or render_mode != "RGB", "distloss requires depth rendering: render_mode D, ED, RGB+D or RGB+ED.")
    require(depth_mode in ("expected", "median"), f'depth_mode must be "expected" or "median", got {depth_mode!r}.')
    tail = tuple(colors.shape[-1:]) if sh_degree is None else tuple(colors.shape[-2:])
    lead = tuple(colors.shape[: -len(tail)])
    require(lead in (batch + (N,), batch + (C, N)), f"colors must be [..., (C,) N, D] or, with sh_degree, [..., (C,) N, K, 3], got"
            f" {list(colors.shape)} for N={N}, C={C}.")  # fmt: skip
    if sh_degree is not None:
        require(
            tail[1] == 3 and (sh_degree + 1) ** 2 <= tail[0], f"sh_degree={sh_degree} does not fit colors {list(colors.shape)}."
        )
    if backgrounds is not None and render_mode.startswith("RGB"):
        require(tuple(backgrounds.shape) == batch + (C, tail[-1]), f"backgrounds must be {list(batch + (C, tail[-1]))}, got"
                f" {list(backgrounds.shape)}.")  # fmt: skip


def _check_low_pass(low_pass: float) -> None:
    if not 0 < low_pass <= LOW_PASS:
        raise CallError(f"rasterization_2dgs: low_pass must be above 0 and at most {LOW_PASS:.4f} pixels, got {low_pass}.")


def _shade(means, colors, viewmats, radii, ids, sh_degree, sizes) -> Float[Tensor, "r d"]:
    """Colours of every row: as given, or from spherical harmonics."""
    batch, B, C, N = sizes
    n_tail = 1 if sh_degree is None else 2
    per_camera = colors.dim() - len(batch) == 2 + n_tail
    colors = colors.reshape((B, C if per_camera else 1, N) + colors.shape[-n_tail:])
    if sh_degree is None:
        return rows_of_pairs(colors, ids, C)
    splats = (means, None, None, None, colors, viewmats)
    engine = engines.choose(splats, View(1, 1), 16)
    flat = (means.reshape(B, N, 3), colors, viewmats.reshape(B, C, 4, 4), radii.reshape(-1, 2))
    return engine.shade(sh_degree, *flat, ids)


def _meta(projected, opacities, ids, sizes, tile_size: int, view: View) -> Meta:
    """gsplat's dictionary; the tile lists appear when they are first read."""
    radii, means2d, depths, transforms, normals = projected
    batch, B, C, _ = sizes
    batch_ids, camera_ids, gaussian_ids = ids if ids is not None else (None, None, None)
    meta = Meta(
        camera_ids=camera_ids, gaussian_ids=gaussian_ids, radii=radii, means2d=means2d, depths=depths, ray_transforms=transforms,
        opacities=opacities, normals=normals, tile_width=-(-view.width // tile_size), tile_height=-(-view.height // tile_size),
        tiles_per_gauss=None, isect_ids=None, flatten_ids=None, isect_offsets=None, width=view.width, height=view.height,
        tile_size=tile_size, n_cameras=C, n_batches=B, batch_ids=batch_ids, render_distort=None,
        gradient_2dgs=torch.zeros_like(means2d, requires_grad=True),
    )  # fmt: skip
    meta._image_dims = tuple(batch) + (C,)
    return meta


def _follow(transforms: Float[Tensor, "r 3 3"], densify: Float[Tensor, "r 2"]) -> Float[Tensor, "r 3 3"]:
    """Let `densify` receive depth times the gradient of T_u2 and T_v2, which is how far a disk wants to move on the picture."""
    shift = (densify - densify.detach()) * transforms.detach()[:, 2, 2:]
    return transforms + F.pad(shift[..., None], (2, 0, 0, 1))


def _composite(meta: Meta, transforms, channels, opacities, behind, rules: RayRules, absgrad: bool, n_trained: int | None):
    """Blend the rows of all pictures: [I,H,W,C], then alphas, depths, distortions, medians [I,H,W,1]."""
    n_images, width, height = meta["n_batches"] * meta["n_cameras"], meta["width"], meta["height"]
    rows = (meta.rows("means2d"), transforms, channels, opacities, meta.rows("depths"))
    absolute = meta["means2d"].absgrad.view(-1, 2) if absgrad else None
    grid = torch.empty(n_images, meta["tile_height"], meta["tile_width"], device="meta")
    if compiled_applies((*rows, behind), meta["tile_size"], grid, width, height):
        from nsw.kernels.surfels_autograd import composite_own_lists

        n_rows = len(channels) // max(n_images, 1)
        bounds = [image * n_rows for image in range(n_images + 1)]
        if meta["gaussian_ids"] is not None:
            bounds = [0, *torch.bincount(meta.image_ids(), minlength=n_images).cumsum(0).tolist()]
        return composite_own_lists(*rows, meta.rows("radii"), bounds, width, height, behind, rules, absolute, n_trained)
    if n_trained is not None:
        rows = tuple(_frozen_from(x, n_trained, n_images) for x in rows)
    offsets = meta["isect_offsets"].reshape(n_images, meta["tile_height"], meta["tile_width"])
    return composite_surfels(*rows, width, height, meta["tile_size"], offsets, meta["flatten_ids"], behind, rules, absolute)


def _frozen_from(rows: Tensor, n_trained: int, n_images: int) -> Tensor:
    """Stop the gradient of every picture's rows from `n_trained` on."""
    of_pictures = rows.view(n_images, -1, *rows.shape[1:])
    return torch.cat([of_pictures[:, :n_trained], of_pictures[:, n_trained:].detach()], dim=1).view_as(rows)


def rasterize_to_pixels_2dgs(
    means2d: Float[Tensor, "*i n 2"],
    ray_transforms: Float[Tensor, "*i n 3 3"],
    colors: Float[Tensor, "*i n d"],
    opacities: Float[Tensor, "*i n"],
    normals: Float[Tensor, "*i n 3"],
    densify: Float[Tensor, "*i n 2"],
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Int[Tensor, "*i th tw"],
    flatten_ids: Int[Tensor, "m"],
    backgrounds: Float[Tensor, "*i d"] | None = None,
    masks: Bool[Tensor, "*i th tw"] | None = None,
    packed: bool = False,
    absgrad: bool = False,
    distloss: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Composite projected surfels by the lists given; arguments as in `rasterize_to_pixels`.

    Args:
        ray_transforms, normals: from `fully_fused_projection_2dgs`. colors: the last channel is taken for the depth of the centres.
        densify: a tensor of zeros, whose gradient steers densification.

    Returns:
        colours [..., H, W, D], alphas [..., H, W, 1], normals [..., H, W, 3] in camera axes, and of the last channel distortion
        and median [..., H, W, 1].
    """
    lead = (means2d.shape[0],) if packed else tuple(means2d.shape[:-1])
    images = tuple(isect_offsets.shape[:-2])
    expected = {"means2d": (means2d, lead + (2,)), "ray_transforms": (ray_transforms, lead + (3, 3)),
                "normals": (normals, lead + (3,)), "opacities": (opacities, lead), "colors": (colors, lead + (colors.shape[-1],)),
                "densify": (densify, lead + (2,))}  # fmt: skip
    if backgrounds is not None:
        expected["backgrounds"] = (backgrounds, images + (colors.shape[-1],))
    check_lists(expected, image_width, image_height, tile_size, isect_offsets, masks)
    offsets, flatten_ids = without_masked(isect_offsets, flatten_ids, masks)
    if absgrad:
        means2d.absgrad = torch.zeros_like(means2d)
    transforms = _follow(ray_transforms.reshape(-1, 3, 3), densify.reshape(-1, 2))
    channels = torch.cat([colors, normals], dim=-1).reshape(-1, colors.shape[-1] + 3)
    rows = (means2d.reshape(-1, 2), transforms, channels, opacities.reshape(-1), colors[..., -1].reshape(-1))
    behind = None if backgrounds is None else F.pad(backgrounds.reshape(-1, colors.shape[-1]), (0, 3))
    absolute = means2d.absgrad.view(-1, 2) if absgrad else None
    if compiled_applies((*rows, behind), tile_size, offsets, image_width, image_height):
        from nsw.kernels.surfels_autograd import composite_given_lists as composite
    else:
        composite = composite_surfels
    rules = RayRules(distortion=distloss)
    lists = (image_width, image_height, tile_size, offsets, flatten_ids)
    picture, alphas, _, distortion, median = composite(*rows, *lists, behind, rules, absolute)
    shape = images + (image_height, image_width)
    parts = (picture[..., :-3], alphas, picture[..., -3:], distortion, median)
    return tuple(part.reshape(shape + (part.shape[-1],)) for part in parts)


def normals_of_depth(depths: Float[Tensor, "*c h w 1"], world_from_cam: Float[Tensor, "*c 4 4"], Ks: Float[Tensor, "*c 3 3"]):
    """Normals in the world of the surface a depth map (camera z) shows: central differences of its points, 0 on the border."""
    height, width = depths.shape[-3:-1]
    y, x = torch.meshgrid(
        torch.arange(height, device=depths.device) + 0.5, torch.arange(width, device=depths.device) + 0.5, indexing="ij"
    )
    fx, fy, cx, cy = (Ks[..., i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    rays = torch.stack([(x - cx) / fx, (y - cy) / fy, torch.ones_like(x).expand((x - cx).shape)], dim=-1).to(depths.dtype)
    points = torch.einsum("...ij,...hwj->...hwi", world_from_cam[..., :3, :3], rays * depths)  # the origin cancels below
    down = points[..., 2:, 1:-1, :] - points[..., :-2, 1:-1, :]
    right = points[..., 1:-1, 2:, :] - points[..., 1:-1, :-2, :]
    return F.pad(F.normalize(torch.linalg.cross(down, right), dim=-1), (0, 0, 1, 1, 1, 1))
