"""`rasterization`: gsplat's call on the CPU, from 3D Gaussians to pictures, with gradients.

project -> shade (spherical harmonics) -> list per tile -> composite. `rasterization` runs the compiled float32 kernels where they
apply and plain torch elsewhere (float64, unusual lenses); `rasterization_reference` is plain torch always. Same maths, same rules.

>>> one = torch.ones(1, 3)
>>> picture, alpha, meta = rasterization(
...     means=one * torch.tensor([0.0, 0.0, 2.0]), quats=torch.eye(4)[:1], scales=0.1 * one, opacities=torch.tensor([0.9]),
...     colors=one, viewmats=torch.eye(4)[None], Ks=torch.tensor([[[32.0, 0, 16], [0, 32, 16], [0, 0, 1]]]),
...     width=32, height=32)
>>> picture.shape, meta["radii"].tolist()
(torch.Size([1, 32, 32, 3]), [[6, 6]])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.errors import CallError
from nsw.kernels import engines
from nsw.kernels.meta import Meta, rows_of_pairs
from nsw.kernels.projecting import project_sparse
from nsw.kernels.projection_reference import View

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")


def rasterization(
    means: Float[Tensor, "*b n 3"], quats: Float[Tensor, "*b n 4"] | None, scales: Float[Tensor, "*b n 3"] | None,
    opacities: Float[Tensor, "*b n"], colors: Tensor, viewmats: Float[Tensor, "*b c 4 4"], Ks: Float[Tensor, "*b c 3 3"],
    width: int, height: int, near_plane: float = 0.01, far_plane: float = 1e10, radius_clip: float = 0.0, eps2d: float = 0.3,
    sh_degree: int | None = None, packed: bool = True, tile_size: int = 16, backgrounds: Float[Tensor, "*b c d"] | None = None,
    render_mode: Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"] = "RGB", sparse_grad: bool = False, absgrad: bool = False,
    rasterize_mode: Literal["classic", "antialiased"] = "classic", channel_chunk: int = 32, distributed: bool = False,
    camera_model: Literal["pinhole", "ortho", "fisheye", "ftheta"] = "pinhole", segmented: bool = False,
    covars: Float[Tensor, "*b n 3 3"] | None = None, with_ut: bool = False, with_eval3d: bool = False,
    radial_coeffs: Tensor | None = None, tangential_coeffs: Tensor | None = None, thin_prism_coeffs: Tensor | None = None,
    ftheta_coeffs: object | None = None, rolling_shutter: object | None = None, viewmats_rs: Tensor | None = None,
) -> tuple[Float[Tensor, "*b c h w x"], Float[Tensor, "*b c h w 1"], dict]:  # fmt: skip
    """Draw N Gaussians as C cameras see them (Kerbl et al. 2023), with the call and the returns of gsplat 1.5.3.

    Args:
        means, quats (w,x,y,z of any length), scales (after exp), opacities (after sigmoid): the splats; `*b` batch dimensions.
        colors: [..., (C,) N, D], or with `sh_degree` coefficients [..., (C,) N, K, 3] of which (sh_degree+1)^2 are used.
        viewmats: world to camera, x right, y down, z forward. Ks: intrinsics in pixels, pixel (0,0) centred at (0.5, 0.5).
        near_plane, far_plane: cull on camera z. radius_clip: drop splats no larger than this, in pixels.
        eps2d: variance in px^2 added to every projected splat, so that none falls between the pixels.
        packed: keep only visible (camera, splat) pairs in the meta: its entries are [nnz, ...] beside their ids.
        backgrounds: [..., C, D], added where transmittance is left. None is black.
        render_mode: "D" accumulates the depth (camera z) of the centres, "ED" divides it by alpha; "RGB+..." puts it last.
        sparse_grad: gradients of means, quats, scales and covars come as sparse COO tensors; needs `packed`.
        absgrad: backward also sets `meta["means2d"].absgrad`, sums over pixels of absolute gradients (AbsGS).
        rasterize_mode: "antialiased" dims splats by what `eps2d` enlarged them.
        channel_chunk: more channels than this are drawn in several passes.
        segmented: another sorting algorithm on CUDA, nothing here. covars: covariances that replace quats and scales.

    Returns:
        Pictures [..., C, H, W, X], alphas [..., C, H, W, 1], and the meta dict (see `nsw.kernels.meta`).

    Raises:
        CallError: when shapes, modes or sizes do not fit together.
        NotImplementedError: for `distributed`, the unscented transform, distortion, rolling shutter.
    """
    unsupported = {
        "distributed": distributed, "with_ut": with_ut,
        "with_eval3d": with_eval3d, "radial_coeffs": radial_coeffs, "tangential_coeffs": tangential_coeffs,
        "thin_prism_coeffs": thin_prism_coeffs, "ftheta_coeffs": ftheta_coeffs, "viewmats_rs": viewmats_rs,
        "rolling_shutter": rolling_shutter if getattr(rolling_shutter, "name", "GLOBAL") != "GLOBAL" else None,
    }  # fmt: skip
    _refuse_unsupported(unsupported, camera_model)
    view = View(int(width), int(height), near_plane, far_plane, radius_clip, eps2d, rasterize_mode == "antialiased", camera_model)
    splats = (means, quats, scales, covars, opacities, colors, viewmats, Ks, backgrounds)
    _check(*splats, view, sh_degree, tile_size, render_mode, rasterize_mode, channel_chunk)
    _require(not sparse_grad or (packed and means.dim() == 2), "sparse_grad needs packed=True and no batch dimensions.")
    engine = engines.choose(splats, view, tile_size)
    return _rasterize(engine, splats, view, sh_degree, packed, tile_size, render_mode, absgrad, channel_chunk, sparse_grad)


def rasterization_reference(*args, **kwargs):
    """Do what `rasterization` does, same arguments, in plain torch whatever the inputs are."""
    with engines.forced("reference"):
        return rasterization(*args, **kwargs)


def _refuse_unsupported(options: dict, camera_model: str) -> None:
    asked = [name for name, value in options.items() if value is not None and value is not False]
    if camera_model == "ftheta":
        asked.append('camera_model="ftheta"')
    if asked:
        raise NotImplementedError(
            f"The CPU rasterizer does not know {', '.join(asked)}; leave it at its default, or render on a CUDA GPU with gsplat."
        )


def _require(condition: bool, message: str | Callable[[], str]) -> None:
    """Messages with values in them are functions: putting twelve into words takes as long as projecting a thousand splats."""
    if not condition:
        raise CallError(f"rasterization: {message if isinstance(message, str) else message()}")


def _check(
    means, quats, scales, covars, opacities, colors, viewmats, Ks, backgrounds,
    view: View, sh_degree, tile_size, render_mode, rasterize_mode, channel_chunk,
) -> None:  # fmt: skip
    """Say which argument does not fit before anything is computed."""
    _require(means.dim() >= 2 and means.shape[-1] == 3, lambda: f"means must be [..., N, 3], got {tuple(means.shape)}.")
    _require(viewmats.dim() >= 3, lambda: f"viewmats must be [..., C, 4, 4], got {tuple(viewmats.shape)}.")
    batch, (N, C) = tuple(means.shape[:-2]), (means.shape[-2], viewmats.shape[-3])
    if covars is None:
        _require(quats is not None and scales is not None, "give quats and scales, or covars.")
        expected = {"quats": (quats, (N, 4)), "scales": (scales, (N, 3))}
    else:
        expected = {"covars": (covars, (N, 3, 3))}
    expected |= {"opacities": (opacities, (N,)), "viewmats": (viewmats, (C, 4, 4)), "Ks": (Ks, (C, 3, 3))}
    for name, (tensor, tail) in expected.items():
        if tensor.shape != batch + tail:
            _require(False, f"{name} must be {list(batch + tail)}, got {list(tensor.shape)}.")
    tail = tuple(colors.shape[-1:]) if sh_degree is None else tuple(colors.shape[-2:])
    lead = tuple(colors.shape[: -len(tail)])
    _require(
        lead in (batch + (N,), batch + (C, N)),
        lambda: (
            f"colors must be [..., (C,) N, D] or, with sh_degree, [..., (C,) N, K, 3], got {list(colors.shape)} for N={N}, C={C}."
        ),
    )
    if sh_degree is not None:
        _require(0 <= sh_degree <= 4, lambda: f"sh_degree must be 0 to 4, got {sh_degree}.")
        _require(tail[1] == 3, lambda: f"with sh_degree, colors must end in [K, 3], got {list(colors.shape)}.")
        _require(
            (sh_degree + 1) ** 2 <= tail[0],
            lambda: f"sh_degree={sh_degree} needs {(sh_degree + 1) ** 2} coefficients, got {tail[0]}.",
        )
    if backgrounds is not None and render_mode.startswith("RGB"):
        _require(tuple(backgrounds.shape) == batch + (C, tail[-1]), lambda: f"backgrounds must be {list(batch + (C, tail[-1]))},"
                 f" got {list(backgrounds.shape)}.")  # fmt: skip
    _require(render_mode in RENDER_MODES, lambda: f"render_mode must be one of {', '.join(RENDER_MODES)}, got {render_mode!r}.")
    _require(
        rasterize_mode in ("classic", "antialiased"),
        lambda: f'rasterize_mode must be "classic" or "antialiased", got {rasterize_mode!r}.',
    )
    _require(view.camera_model in ("pinhole", "ortho", "fisheye"), lambda: f"unknown camera_model {view.camera_model!r}.")
    _require(view.width > 0 and view.height > 0, lambda: f"width and height must be positive, got {view.width} x {view.height}.")
    _require(tile_size > 0 and channel_chunk > 0, "tile_size and channel_chunk must be positive.")


def _rasterize(engine, splats, view: View, sh_degree, packed, tile_size, render_mode, absgrad, channel_chunk, sparse_grad=False):
    """Flatten the batch dimensions, run the steps on rows of (camera, splat) pairs, and give the dimensions back."""
    means, quats, scales, covars, opacities, colors, viewmats, Ks, backgrounds = splats
    batch, N, C = means.shape[:-2], means.shape[-2], viewmats.shape[-3]
    B = math.prod(batch)
    # A sparse gradient cannot pass through a reshape: these rows are taken from the very tensors that were given.
    sparse = project_sparse(means, covars, quats, scales, opacities, viewmats, Ks, view) if sparse_grad else None
    per_camera = colors.dim() - len(batch) == (3 if sh_degree is None else 4)
    # One picture of one scene with all its splats: what was given are the rows, and no view of them need enter autograd's graph.
    as_given = (opacities, colors) if not batch and C == 1 and not packed and not per_camera else None
    colors = colors.reshape((B, C if per_camera else 1, N) + colors.shape[len(batch) + 1 + per_camera :])
    if batch:
        means, covars, quats, scales, opacities, viewmats, Ks = (
            None if t is None else t.reshape((B,) + t.shape[len(batch) :])
            for t in (means, covars, quats, scales, opacities, viewmats, Ks)
        )
    projected, ids = sparse or engine.project(means, covars, quats, scales, opacities, viewmats, Ks, view, packed)
    opacities_seen = as_given[0] if as_given else rows_of_pairs(opacities.view(B, 1, N), ids, C)
    if projected.compensations is not None:
        opacities_seen = opacities_seen * projected.compensations
    if sh_degree is None:
        channels = as_given[1] if as_given else rows_of_pairs(colors, ids, C)
    else:
        channels = engine.shade(sh_degree, means, colors, viewmats, projected.radii, ids)
    if backgrounds is not None and batch:
        backgrounds = backgrounds.reshape(B * C, -1)
    channels, backgrounds = _with_depth(render_mode, channels, projected.depths, backgrounds)
    meta = Meta.build(projected, opacities_seen, ids, batch, (B, C, N), tile_size, view)
    renders, alphas = engine.composite(meta, channels, backgrounds, absgrad, channel_chunk)
    if render_mode.endswith("ED"):
        renders = torch.cat([renders[..., :-1], renders[..., -1:] / alphas.clamp(min=1e-10)], dim=-1)
    shape = batch + (C, view.height, view.width)
    return renders.view(shape + renders.shape[-1:]), alphas.view(shape + (1,)), meta


def _with_depth(render_mode: str, channels, depths, backgrounds):
    """Append the centres' depth as the last channel, or put it in place of the colours; behind it, the background is 0."""
    if render_mode == "RGB":
        return channels, backgrounds
    depth, nothing = depths[:, None], None if backgrounds is None else torch.zeros_like(backgrounds[:, :1])
    if render_mode in ("D", "ED"):
        return depth, nothing
    return torch.cat([channels, depth], dim=-1), None if backgrounds is None else torch.cat([backgrounds, nothing], dim=-1)
