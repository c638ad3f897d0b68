"""Gaussians and cameras to pictures: gsplat on CUDA, `nsw.kernels` elsewhere, one call contract for both.

The forward model is 3D Gaussian Splatting (Kerbl et al. 2023): project each Gaussian to the picture by a first-order
approximation (EWA), sort by the depth of its centre, and composite front to back,
C = sum_i c_i alpha_i prod_{j<i} (1 - alpha_j) + T background.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.errors import InputError
from nsw.models.gaussians import RESIZING, Gaussians
from nsw.renderers.parts import in_order
from nsw.renderers.render import Render, backdrop


def rasterizer(backend: str, device: torch.device) -> Callable:
    """Return the rasterization function for a device: gsplat's own on CUDA, its CPU twin elsewhere.

    Args:
        backend: "auto", "kernels" (CPU) or "gsplat" (CUDA).
    """
    if backend == "auto":
        backend = "gsplat" if device.type == "cuda" else "kernels"
    if backend == "kernels":
        if device.type != "cpu":
            raise InputError(f'Splat backend "kernels" needs CPU tensors, the Gaussians are on {device}: use "gsplat".')
        from nsw.kernels import rasterization

        return rasterization
    if backend != "gsplat":
        raise InputError(f'Unknown splat backend "{backend}": expected "auto", "kernels" or "gsplat".')
    if device.type != "cuda":
        raise InputError('Splat backend "gsplat" needs CUDA, the Gaussians are on the CPU: use "auto" or "kernels".')
    from gsplat import rasterization

    return rasterization


def render_view(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    background: float | Float[Tensor, "3"] | None = None,
    sh_degree: int | None = None,
    antialiased: bool = False,
    eps2d: float = 0.3,
    absgrad: bool = False,
    depth: bool = True,
    backend: str = "auto",
) -> Render:
    """Render Gaussians from C cameras; differentiable in every raw parameter.

    Args:
        gaussians: the splats; their device chooses the backend.
        cameras: C cameras of one picture size.
        background: grey level or RGB behind the splats; the cameras' own by default.
        sh_degree: bands of harmonics to use, 0 to the stored degree; None uses all.
        antialiased: scale opacity by what the dilation `eps2d` added in area (Mip-Splatting's 2D filter).
        eps2d: dilation in squared pixels, added to the projected covariance.
        absgrad: also keep sums of absolute screen gradients, `meta["means2d"].absgrad` (AbsGS).
        depth: False leaves Render.depth at 0 and saves a channel; training uses that.
        backend: see `rasterizer`.

    Returns:
        Render; extras["meta"] is gsplat's dictionary (means2d, radii, conics, depths, tile lists, ...).
    """
    top = gaussians.settings.sh_degree
    degree = top if sh_degree is None else min(sh_degree, top)
    with RESIZING:
        means = gaussians.means
        shapes = gaussians.quats, gaussians.activated_scales, gaussians.activated_opacities
        splats = (means, *shapes, gaussians.sh if degree > 0 else gaussians.sh0)
    cameras = cameras.to(means.device)
    background = cameras.background if background is None else background
    n = len(cameras)
    renders, alphas, meta = rasterizer(backend, means.device)(
        *splats,
        cameras.cam_from_world,
        cameras.Ks,
        cameras.width,
        cameras.height,
        sh_degree=degree,
        backgrounds=backdrop(background, means).expand(n, 3).contiguous(),
        eps2d=eps2d,
        packed=False,
        absgrad=absgrad,
        render_mode="RGB+ED" if depth else "RGB",
        rasterize_mode="antialiased" if antialiased else "classic",
    )
    if meta["means2d"].requires_grad:
        meta["means2d"].retain_grad()  # density control reads it after backward
    z = renders[..., 3] if depth else renders.new_zeros(()).expand(renders.shape[:3])
    return Render(renders[..., :3], alphas[..., 0], z, {"meta": meta})


def render_each(draw: Callable, cameras: Cameras) -> Render:
    """Return the pictures of C cameras, drawn one by one by `draw(camera)`: for splats that look different to each."""
    return in_order([draw(cameras[i]) for i in range(len(cameras))])
