"""The third return of `rasterization`: gsplat's dictionary of what happened between splats and pixels.

Densification strategies read it: the gradient of `means2d` says where a splat should be split, `radii` which splats were seen.
With R = nnz visible pairs (packed) or all [..., C, N] pairs (not packed), in which culled ones have radius 0:

    means2d [R,2], radii [R,2] int32, depths [R], conics [R,3], opacities [R] (after antialiasing), batch_ids, camera_ids,
    gaussian_ids [nnz] or None, width, height, tile_size, tile_width, tile_height, n_batches, n_cameras,
    tiles_per_gauss [R], isect_ids [M] int64, flatten_ids [M] int32, isect_offsets [..., C, th, tw] int32

The last four are computed when they are first read: the fast compositor has tighter lists of its own and hardly anyone looks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nsw.kernels.projection_reference import Projected, View
from nsw.kernels.tiles_reference import isect_offset_encode, isect_tiles

_LISTS = ("tiles_per_gauss", "isect_ids", "flatten_ids", "isect_offsets")


def rows_of_pairs(values: Tensor, ids: tuple[Tensor, Tensor, Tensor] | None, n_cameras: int) -> Tensor:
    """Give every (camera, splat) pair its row: values is [B, C or 1, N, ...]; ids picks pairs, None takes all in order."""
    if ids is None:
        return values.expand((-1, n_cameras) + values.shape[2:]).flatten(0, 2)
    batch_ids, camera_ids, gaussian_ids = ids
    return values[batch_ids, camera_ids if values.shape[1] > 1 else torch.zeros_like(camera_ids), gaussian_ids]


class Meta(dict):
    """A dict whose tile lists appear on first reading.

    `means2d` is the very tensor inside the graph: `.retain_grad()` before backward, `.grad` (and `.absgrad`) after it.
    """

    @classmethod
    def build(cls, projected: Projected, opacities, ids, batch, sizes, tile_size: int, view: View) -> Meta:
        B, C, N = sizes
        lead = (-1,) if ids is not None else tuple(batch) + (C, N)

        def shaped(rows: Tensor) -> Tensor:
            return rows if ids is not None else rows.view(lead + rows.shape[1:])

        batch_ids, camera_ids, gaussian_ids = ids if ids is not None else (None, None, None)
        meta = cls(
            batch_ids=batch_ids, camera_ids=camera_ids, gaussian_ids=gaussian_ids,
            radii=shaped(projected.radii), means2d=shaped(projected.means2d), depths=shaped(projected.depths),
            conics=shaped(projected.conics), opacities=shaped(opacities),
            tile_width=-(-view.width // tile_size), tile_height=-(-view.height // tile_size), tile_size=tile_size,
            **dict.fromkeys(_LISTS),
            width=view.width, height=view.height, n_batches=B, n_cameras=C,
        )  # fmt: skip
        meta._image_dims = tuple(batch) + (C,)
        return meta

    def rows(self, key: str) -> Tensor:
        """An entry with its leading dimensions flattened to rows."""
        value = dict.__getitem__(self, key)
        return value if self["gaussian_ids"] is not None else value.flatten(0, len(self._image_dims))

    def image_ids(self) -> Tensor:
        """The image (batch * C + camera) of every row, int64."""
        if self["gaussian_ids"] is not None:
            return self["batch_ids"] * self["n_cameras"] + self["camera_ids"]
        n_images = self["n_batches"] * self["n_cameras"]
        n_rows = self.rows("depths").shape[0]
        return torch.arange(n_images, device=self["depths"].device).repeat_interleave(n_rows // max(n_images, 1))

    def _compute_lists(self) -> None:
        tiles = (self["tile_width"], self["tile_height"])
        counts, isect_ids, flatten_ids = isect_tiles(
            self.rows("means2d"), self.rows("radii"), self.rows("depths"), self.image_ids(), self["tile_size"], *tiles
        )
        offsets = isect_offset_encode(isect_ids, self["n_batches"] * self["n_cameras"], *tiles)
        self["tiles_per_gauss"] = counts.view(self["depths"].shape)
        self["isect_ids"], self["flatten_ids"] = isect_ids, flatten_ids
        self["isect_offsets"] = offsets.view(self._image_dims + offsets.shape[1:])

    def __getitem__(self, key):
        if key in _LISTS and dict.__getitem__(self, key) is None:
            self._compute_lists()
        return dict.__getitem__(self, key)

    def get(self, key, default=None):
        return self[key] if key in self else default  # noqa: SIM401 - this is what `get` is made of

    def items(self):
        return [(key, self[key]) for key in self]

    def values(self):
        return [self[key] for key in self]
