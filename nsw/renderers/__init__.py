"""Renderers: a model and cameras in, a `Render` out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsw.cameras import Cameras
    from nsw.renderers.render import Render

__all__ = ["beside", "can_draw", "render_view"]


def can_draw(model) -> bool:
    """Return whether `render_view` takes the model."""
    from nsw.models.gaussians import Gaussians

    return isinstance(model, Gaussians) or any(hasattr(model, name) for name in ("render_view", "query", "network"))


def beside(model, seen: Any) -> Any:
    """Return cameras, rays or a colour on the device of a model's parameters; as they are where it has none, or for a number."""
    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    return seen if parameter is None or not hasattr(seen, "to") else seen.to(parameter.device)


def render_view(model, cameras: Cameras, *, background=None, **options) -> Render:
    """Render pictures of any model.

    By its own `render_view` where it has one; voxel grids by the march made for them; other fields by volume rendering;
    networks that are asked once a ray answer for themselves; Gaussians are splatted, surfels as discs.

    Args:
        model: something that draws itself, a field, which answers `.query`, a `RayDistribution` or `LightField`, or
            `nsw.models.gaussians.Gaussians`.
        cameras: on any device; they are taken to the model's.
        background: grey level or colour [3]; the cameras' own by default.
        options: passed on to `render_view` of `nsw.renderers.volume`, `whole_rays`, `splats` or `surfels`.
    """
    cameras = beside(model, cameras)
    background = cameras.background if background is None else beside(model, background)
    if hasattr(model, "render_view"):
        return model.render_view(cameras, background=background, **options)
    own = _made_for(model)
    if own is not None and not options:
        return own(model, cameras, background=background)
    if hasattr(model, "query"):
        from nsw.renderers import volume

        return volume.render_view(model, cameras, background=background, **options)
    if hasattr(model, "network"):
        from nsw.renderers import whole_rays

        return whole_rays.render_view(model, cameras, background=background, **options)
    from nsw.models.surfels import Surfels
    from nsw.renderers import splats, surfels

    renderer = surfels if isinstance(model, Surfels) else splats
    return renderer.render_view(model, cameras, background=background, **options)


def _made_for(model):
    """Return the renderer that is made for one kind of field: the same picture as by its `query`, several times as fast."""
    from nsw.models.dense_grid import DenseGrid
    from nsw.models.plenoxel_grid import PlenoxelGrid

    if isinstance(model, PlenoxelGrid):
        from nsw.renderers import voxels

        return voxels.render_view
    if isinstance(model, DenseGrid):
        from nsw.renderers import grids

        return grids.render_view
    return None
