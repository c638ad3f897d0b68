"""A radiance field without a network: a sparse grid of voxel corners, each with a density and spherical harmonics.

Plenoxels (Fridovich-Keil, Yu et al. 2022). `links` says which row of `values` belongs to a vertex; row 0 is all zeros and
belongs to every vertex that was pruned. Density passes through a ReLU after interpolation, colour through 0.5 + . and a ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool3d, interpolate, max_pool3d

from nsw.errors import InputError
from nsw.kernels.harmonics import sh_basis
from nsw.kernels.voxel_march import RowGradient, empty_cells, marks_rows
from nsw.kernels.voxel_march_reference import corners, n_channels, shade, sparse_lookup
from nsw.models.dense_grid import HALF_VOXEL, grid_shape, lattice
from nsw.models.field import FieldOutput, host_box


@dataclass(frozen=True)
class PlenoxelGridSettings:
    """Sizes of a `PlenoxelGrid`.

    Attributes:
        box: minimum and maximum corner in world units, six numbers.
        n_voxels: vertices at the start; voxels are cubes, so the box's shape decides how many along each axis.
        sh_degree: degree of the harmonics, 0 to 2.
        density_init: density at the start, in 1 / half the box's longest edge (the official code's scene has radius 1).
        nearest: take the nearest vertex's numbers instead of interpolating: the paper's ablation.
    """

    box: tuple[float, ...] = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    n_voxels: int = 64**3
    sh_degree: int = 2
    density_init: float = 0.1
    nearest: bool = False


class PlenoxelGrid(nn.Module):
    """Density and harmonics at voxel corners; zero outside of the box and where nothing is kept.

    `values` [K, C] is the only parameter. Buffers: `aabb` [2, 3]; `links` [X, Y, Z], rows of the vertices, ascending; `vertices`
    [K], its inverse; `empty` and `age`, the table of empty cells that training uses and how often it was asked.
    """

    def __init__(self, settings: PlenoxelGridSettings):
        super().__init__()
        self.settings = s = settings
        aabb = torch.tensor(s.box, dtype=torch.float32).reshape(2, 3)
        if not bool((aabb[1] > aabb[0]).all()) or s.n_voxels < 8:
            raise InputError(f"A voxel grid needs a box with a volume and at least 8 voxels, not {s.box} with {s.n_voxels}.")
        if s.sh_degree not in (0, 1, 2):
            raise InputError(f"sh_degree is {s.sh_degree}, expected 0, 1 or 2.")
        self.register_buffer("aabb", aabb)
        shape = grid_shape(aabb, s.n_voxels)
        self.register_buffer("links", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("vertices", torch.zeros(1, dtype=torch.long))
        self.register_buffer("empty", torch.zeros(0, 0, 0, dtype=torch.uint8))
        self.register_buffer("age", torch.zeros((), dtype=torch.long))
        dense = torch.zeros(*shape, n_channels(s.sh_degree))
        dense[..., 0] = s.density_init
        self._adopt(dense, torch.ones(shape, dtype=torch.bool))

    def _adopt(self, dense: Float[Tensor, "X Y Z C"], kept: Bool[Tensor, "X Y Z"]) -> None:
        """Take rows from a dense grid where `kept`; the parameter is a new object."""
        flat = kept.reshape(-1).nonzero()[:, 0]
        links = torch.zeros(kept.numel(), dtype=torch.int32, device=kept.device)
        links[flat] = torch.arange(1, len(flat) + 1, dtype=torch.int32, device=kept.device)
        self.links, self.vertices = links.view(kept.shape), torch.cat([flat.new_zeros(1), flat])
        rows = dense.reshape(-1, dense.shape[-1])[flat]
        self.values = nn.Parameter(torch.cat([rows.new_zeros(1, rows.shape[1]), rows]))
        self.empty, self._gradient = torch.zeros(0, 0, 0, dtype=torch.uint8, device=kept.device), None
        self.age.zero_()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Vertices along each axis."""
        return tuple(self.links.shape)

    @property
    def kept(self) -> Bool[Tensor, "X Y Z"]:
        """Which vertices have a row of their own."""
        return self.links > 0

    @property
    def unit(self) -> float:
        """The world length in which density counts: half the box's longest edge."""
        low, high = host_box(self)
        return 0.5 * float((high - low).amax())

    @property
    def voxel(self) -> float:
        """The edge of a voxel in world units, the shortest of the three axes'."""
        box = host_box(self)
        cells = box.new_tensor(self.shape) - 1
        return float(((box[1] - box[0]) / cells).amin())

    @property
    def sample_length(self) -> float:
        """Half a voxel in world units: the step that marching takes."""
        return HALF_VOXEL * self.voxel

    def dense(self) -> Float[Tensor, "X Y Z C"]:
        """Return all vertices' numbers, zeros where pruned."""
        return self.values.detach()[self.links.long()]

    def row_gradient(self) -> RowGradient:
        """Return the buffer to which kernels add this grid's gradient; `values.grad` is the same memory."""
        kept = self._gradient
        if kept is None or self.values.grad is not kept.values or kept.touched.device != self.values.device:
            object.__setattr__(self, "_gradient", RowGradient.like(self.values.detach()))
            self.values.grad = self._gradient.values
        return self._gradient

    @property
    def touched(self) -> UInt8[Tensor, "K"] | None:
        """Which rows the kernels have added a gradient to; None where autograd adds it, which marks none: look at the gradient."""
        return self.row_gradient().touched if marks_rows(self.values) else None

    def empty_space(self) -> Tensor | None:
        """Return the table that lets rays leap over empty cells as the grid is now, None off the CPU."""
        return empty_cells(self.values, self.links) if self.values.device.type == "cpu" else None

    def training_space(self, every: int = 16) -> Tensor | None:
        """Return the same for a training step, made anew at every 16th call.

        In between a cell that a neighbour has lifted above zero is not seen yet: it begins to learn a few steps late.
        Table and count are part of the state, so that a resumed training sees what the first one saw.
        """
        if self.values.device.type != "cpu":
            return None
        if int(self.age) % every == 0:
            self.empty = empty_cells(self.values, self.links)
        self.age += 1
        return self.empty

    def features(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N C"]:
        """Return interpolated rows."""
        return sparse_lookup(self.values, *corners(self.links, points_world, self.aabb, self.settings.nearest))

    def _density_of(self, raw: Float[Tensor, "N"], points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        inside = ((points_world >= self.aabb[0]) & (points_world <= self.aabb[1])).all(-1)
        return raw.clamp_min(0.0) / self.unit * inside

    def density(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Return density in 1 / world unit."""
        rows, weights = corners(self.links, points_world, self.aabb, self.settings.nearest)
        return self._density_of((self.values[:, 0][rows] * weights).sum(-1), points_world)

    def query(self, points_world: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> FieldOutput:
        """Return density in 1 / world unit, and colour; a colour may exceed 1 and is clamped for display only."""
        features = self.features(points_world)
        colour = shade(features, sh_basis(self.settings.sh_degree, directions))
        return FieldOutput(self._density_of(features[:, 0], points_world), colour)

    @property
    def render_defaults(self) -> dict:
        """Options of `nsw.renderers.volume.render_rays` that belong to this model."""
        return {"occupancy": self.occupancy(), "step": self.sample_length, "early_stop": 1e-3}

    def occupancy(self) -> nn.Module:
        """Return where density may be positive, as the estimator that packed sampling asks."""
        positive = torch.zeros(self.shape, device=self.values.device)
        positive[self.values.detach()[:, 0][self.links.long()] > 0] = 1
        near = max_pool3d(positive[None, None], 3, stride=1, padding=1)
        cells = tuple(max(1, (n - 1) // 2) for n in self.shape)
        occupied = adaptive_max_pool3d(near, cells)[0] > 0
        if self.aabb.is_cuda:
            from nerfacc import OccGridEstimator
        else:
            from nsw.kernels.occupancy import OccGridEstimator
        estimator = OccGridEstimator(host_box(self).reshape(6).tolist(), 1).to(self.aabb.device)  # at full size it lists all cells
        estimator.binaries, estimator.occs = occupied, occupied.reshape(-1).float()
        return estimator

    def positions(self) -> Float[Tensor, "X Y Z 3"]:
        """Return where the vertices are, in world coordinates."""
        return lattice(self.aabb, self.shape)

    def alpha(self) -> Float[Tensor, "X Y Z"]:
        """Return the opacity at each vertex over one voxel."""
        return -torch.expm1(-self.values.detach()[:, 0].clamp_min(0)[self.links.long()] * (self.voxel / self.unit))

    @torch.no_grad()
    def prune(self, keep: Bool[Tensor, "X Y Z"], dilate: int = 2) -> None:
        """Drop the rows of vertices outside of `keep`, which is spread by `dilate` voxels first, or edges are eaten.

        The parameter is a new object: `nsw.models.rebuilding.rebuild` tells the optimiser.
        """
        wide = max_pool3d(keep[None, None].float(), 2 * dilate + 1, stride=1, padding=dilate)[0, 0] > 0
        self._adopt(self.dense(), wide & self.kept)

    @torch.no_grad()
    def resize(self, n_voxels: int) -> None:
        """Interpolate at another number of vertices; a new one is kept where any corner of its old cell was.

        The parameter is a new object: `nsw.models.rebuilding.rebuild` tells the optimiser.
        """
        shape = grid_shape(host_box(self), n_voxels)
        volume = torch.cat([self.dense(), self.kept[..., None].float()], -1).permute(3, 0, 1, 2)[None]
        new = interpolate(volume, size=shape, mode="trilinear", align_corners=True)[0].permute(1, 2, 3, 0)
        self._adopt(new[..., :-1].contiguous(), new[..., -1] > 0)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Take over the sizes found in the state before its values: a grid may have been pruned and grown since it was built."""
        stored = state_dict.get(prefix + "values")
        if stored is not None and stored.ndim == 2 and stored.shape[1] == self.values.shape[1]:
            for name in ("links", "vertices", "empty"):
                if prefix + name in state_dict:
                    setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.aabb.device))
            self.values.data = torch.empty(stored.shape, dtype=self.values.dtype, device=self.values.device)
            self.values.grad = None
        self._gradient = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __deepcopy__(self, memo) -> PlenoxelGrid:
        """Return an equal grid without the buffers that are derived from it."""
        twin = type(self)(self.settings).to(self.aabb.device)
        twin.load_state_dict(self.state_dict())
        return twin
