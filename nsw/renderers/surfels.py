r"""Surfels and cameras to pictures with depth, normals and distortion: `nsw.kernels` on the CPU, gsplat on CUDA.

A ray meets the plane of a disc in one point (u, v), in units of the disc's two scales; its weight is $e^{-(u^2+v^2)/2}$ and its
depth that of this very point (Huang et al. 2024, eq. 8-11). gsplat 1.5.3 draws the same colours but takes the depth of the
disc's centre, and measures distortion on it by absolute differences: on CUDA these two maps follow gsplat, and so does the
low-pass, whatever the settings say.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.kernels.surfels_rasterization import normals_of_depth
from nsw.models.gaussians import RESIZING
from nsw.models.surfels import Surfels
from nsw.renderers.render import Render, backdrop


def render_view(
    surfels: Surfels,
    cameras: Cameras,
    *,
    background: float | Float[Tensor, "3"] | None = None,
    sh_degree: int | None = None,
    depth: bool = True,
    distortion_range: tuple[float, float] | None = None,
    ray_depth: bool = True,
    near: float = 0.01,
    n_trained: int | None = None,
) -> Render:
    """Render surfels from C cameras; differentiable in every raw parameter.

    Args:
        background: grey level or RGB behind the surfels; the cameras' own by default.
        sh_degree: bands of harmonics to use, 0 to the stored degree; None uses all.
        depth: False leaves Render.depth at 0 and "surface_normals" out, which saves time.
        distortion_range: near and far of the mapping of depth; also compute the distortion. None leaves that map out.
        ray_depth: depth where the ray meets the disc; False takes the centre's, as gsplat does (CPU only).
        near: discs met nearer than this are skipped.
        n_trained: only the first so many discs get gradients, the same as without this and sooner (on CUDA, all do); None is all.

    Returns:
        Render with expected depth; extras: "normals" [C, H, W, 3] in the world, towards the camera, as long as alpha;
        "surface_normals" [C, H, W, 3], of the depth map (`normals_from_depth`); "median" [C, H, W], depth where half the light is
        left; "distortion" [C, H, W] when asked for; "meta", the rasterizer's dictionary.
    """
    depth = depth or distortion_range is not None
    top = surfels.settings.sh_degree
    degree = top if sh_degree is None else min(sh_degree, top)
    with RESIZING:
        means, shapes = surfels.means, (surfels.quats, surfels.activated_scales, surfels.activated_opacities)
        discs = (means, *shapes, surfels.sh if degree else surfels.sh0)
    cameras = cameras.to(means.device)
    background = cameras.background if background is None else background
    behind = backdrop(background, means).expand(len(cameras), 3).contiguous()
    options = dict(sh_degree=degree, backgrounds=behind, near_plane=near)
    options |= dict(render_mode="RGB+ED" if depth else "RGB", distloss=distortion_range is not None)
    if means.device.type == "cpu":
        from nsw.kernels import rasterization_2dgs

        options |= dict(ray_depth=ray_depth, distortion_range=distortion_range or (0.2, 100.0))
        options |= dict(low_pass=surfels.settings.low_pass, n_trained=n_trained)
    else:
        from gsplat import rasterization_2dgs
    where = (cameras.cam_from_world, cameras.Ks, cameras.width, cameras.height)
    renders, alphas, normals, from_depth, distortion, median, meta = rasterization_2dgs(*discs, *where, **options)
    maps = {"normals": normals, "median": median[..., 0], "meta": meta}
    if depth:
        maps["surface_normals"] = from_depth.view(normals.shape)
    if distortion_range is not None:
        maps["distortion"] = distortion[..., 0]
    z = renders[..., 3] if depth else renders.new_zeros(()).expand(renders.shape[:3])
    return Render(renders[..., :3], alphas[..., 0], z, maps)


def normals_from_depth(depth: Float[Tensor, "C H W"], cameras: Cameras) -> Float[Tensor, "C H W 3"]:
    r"""Return world normals of the surface that a depth map shows, towards the camera; 0 on the border.

    $$n_s = \frac{\nabla_x p \times \nabla_y p}{|\nabla_x p \times \nabla_y p|}$$  (Huang et al. 2024, eq. 15)

    with central differences of the back-projected points p. Pixels whose neighbours have no depth give nonsense: mask them.
    """
    cameras = cameras.to(depth.device)
    return normals_of_depth(depth[..., None], cameras.world_from_cam, cameras.Ks)
