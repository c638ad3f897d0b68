"""A TSDF to play with: voxels, truncation and which depth, each with the mesh that comes of it and what that is off."""

from __future__ import annotations

from typing import Any

ALT = "the mesh coloured by its error, its normals as colours, and grey"


def fusion_sliders(maps: Any, truth: tuple[Any, Any], camera: Any, voxel: float, truncation: float, alt: str = ALT) -> None:
    """Fuse drawn depth anew with every move of a slider: the mesh coloured by its error, its normals, and its scores.

    Args:
        maps: a `gaussian_splatting_2d.DepthMaps`.
        truth: points of the true surface [P, 3], and their normals [P, 3].
        camera: from where the mesh is seen; a batch of one.
        voxel, truncation: of the first mesh, world units; no smaller voxels are offered. Yellow is two first voxels off or more.
        alt: what the pictures show.
    """
    from nsw.methods.gaussian_splatting_2d_fusion import error_of_mesh
    from nsw.renderers import meshes
    from nsw.renderers.heat_colours import coloured
    from nsw.widgets.pictures import titled
    from nsw.widgets.slider_panel import sliders

    camera = camera.to("cpu")

    def fused(voxel: float, truncation: float, median: float, coarse: bool):
        mesh = maps.mesh(voxel, median, truncation)
        off, scores = error_of_mesh(mesh, truth, 3_000 if coarse else 30_000)
        drawn = meshes.render_view(mesh, camera, rgb=off.new_tensor(coloured(off[None], 0.0, high)[0] / 255))
        shown = {
            f"error, Chamfer {scores.chamfer:.4f}": drawn.rgb[0],
            f"its normals, {scores.normal_error:.1f} degrees off": meshes.colours_of(drawn.extras["normals"][0]),
            f"{len(mesh.faces):,} triangles": meshes.render_view(mesh, camera).rgb[0],
        }
        return titled(shown)

    high = 2 * voxel
    ranges = dict(
        voxel=(voxel, 4 * voxel, voxel), truncation=(min(voxel, truncation), 8 * voxel, truncation), median=(0.0, 1.0, 1.0, 0.25)
    )
    sliders(fused, alt=alt, **ranges)
