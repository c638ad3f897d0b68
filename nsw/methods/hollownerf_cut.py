"""A field cut open: what stands before a plane is taken away, and the plane itself shows what is in use where it cuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import Cameras, Rays, camera_rays
from nsw.kernels.grid_lookup import grid_lookup
from nsw.methods import instant_ngp as ngp
from nsw.methods.hollownerf_inspect import saliencies
from nsw.models.hollow_grid import HollowGrid
from nsw.renderers.heat_colours import coloured
from nsw.renderers.render import Render

AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Cut:
    """A field cut open by a plane: what lies on the camera's side of it is taken away. It draws itself, so every viewer takes it.

    Attributes:
        field: the whole field.
        axis: 0, 1 or 2, across which the plane stands.
        share: where, from 0 at the lower face of the field's box to 1 at the upper one.
        sheet: [T, T, T] in [0, 1], seen on the plane: yellow is 1, and 0 is clear. None for a plane that shows nothing.
        near: see `ngp.render_view`.
        above: whether the part above the plane is gone or the one below; `render_view` takes
            the one where its first camera is, as seen from the middle of the box.
    """

    field: HollowGrid
    axis: int
    share: float
    sheet: Tensor | None = None
    near: float = 0.0
    above: bool = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.field, name)

    @property
    def place(self) -> Float[Tensor, ""]:
        """World coordinate of the plane along its axis."""
        low, high = self.field.aabb[:, self.axis]
        return low + self.share * (high - low)

    def left(self, points_world: Float[Tensor, "N 3"]) -> Bool[Tensor, "N"]:
        """Return which points are still there."""
        return (points_world[:, self.axis] <= self.place) == self.above

    def density(self, points_world: Float[Tensor, "N 3"], known: Tensor | None = None) -> Float[Tensor, "N"]:
        """Return the field's density in 1 / world unit, 0 in what was taken away."""
        return self.field.density(points_world, known) * self.left(points_world)

    def geometry(self, points_world: Float[Tensor, "N 3"], known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return `density` and what the colour network needs to know."""
        density, geometry = self.field.geometry(points_world, known)
        return density * self.left(points_world), geometry

    @torch.no_grad()
    def render_view(self, cameras: Cameras, *, background: float | Tensor | None = None, **options) -> Render:
        """Return pictures of what is left, with the sheet over it."""
        facing = replace(self, above=bool(cameras.origins[0, self.axis] > self.field.aabb[:, self.axis].mean()))
        out = ngp.render_view(facing, cameras, self.near, background, **options)
        if self.sheet is None:
            return out
        colour, opacity, z = (x.view(*out.alpha.shape, -1) for x in facing.sheet_on(camera_rays(cameras)))
        rgb, opacity = out.rgb * (1 - opacity) + colour * opacity, opacity[..., 0]
        depth = torch.where(opacity > 0.5, z[..., 0], out.depth)
        return replace(out, rgb=rgb, alpha=opacity + (1 - opacity) * out.alpha, depth=depth)

    def sheet_on(self, rays: Rays) -> tuple[Float[Tensor, "R 3"], Float[Tensor, "R"], Float[Tensor, "R"]]:
        """Return the sheet's colour and opacity where rays cross the plane inside the box, and camera z of that place."""
        along = rays.directions[:, self.axis]
        t = (self.place - rays.origins[:, self.axis]) / torch.where(along.abs() < 1e-6, 1e-6, along)
        points = rays.origins + t[:, None] * rays.directions
        low, high = self.field.aabb
        points[:, self.axis] = self.place  # rounding must not put it outside of a box whose face it is
        inside = ((points >= low) & (points <= high)).all(-1) & (t > self.near)
        values = grid_lookup(self.sheet[..., None].to(points), points, self.field.aabb)[:, 0]
        colour = torch.as_tensor(coloured(values.cpu()[None], 0.0, 1.0)[0]).to(points) / 255
        return colour, values * inside, t * rays.z_per_t


def cut_open(
    field: HollowGrid, cameras: Cameras, near: float, axis: str, share: float, sheet: Tensor | None = None, width: int = 96
) -> Float[Tensor, "H W 3"]:
    """Return the first camera's picture, `width` pixels wide, of a field that is cut open across x, y or z, see `Cut`."""
    small = cameras.resized(width, width * cameras.height // cameras.width)
    return Cut(field, AXES.index(axis), share, sheet, near).render_view(small).rgb[0]


def sheets(field: HollowGrid, shell: Bool[Tensor, "T T T"] | None = None) -> dict[str, Tensor | None]:
    """Return what a plane may show: the field's saliency, the true shell where it is known, or nothing."""
    known = {} if shell is None else {"true shell": shell.float()}
    return {"saliency": saliencies(field), **known, "nothing": None}


def cut_pair(
    fields: Mapping[str, HollowGrid],
    cameras: Cameras,
    near: float,
    shell: Bool[Tensor, "T T T"] | None,
    share: float,
    across: str,
    plane: str,
) -> dict[str, Float[Tensor, "H W 3"]]:
    """Return pictures of fields by their names, cut open at one place, the sheet of that name on the plane, see `sheets`."""
    cut = lambda field: cut_open(field, cameras, near, across, share, sheets(field, shell)[plane])  # noqa: E731
    return {name: cut(field) for name, field in fields.items()}


def cut_by_name(field: HollowGrid, shell: Bool[Tensor, "T T T"] | None, near: float, share: float, across: str, plane: str) -> Cut:
    """Return a field cut open across "x", "y" or "z", with the sheet of that name on the plane, see `sheets`."""
    return Cut(field, AXES.index(across), share, sheets(field, shell)[plane], near)
