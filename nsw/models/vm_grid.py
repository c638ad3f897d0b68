"""A radiance field in a factored grid with a small colour network (TensoRF, Chen et al. 2022).

What is stored is a choice: `VMSizes` (planes times lines), `CPSizes` (lines) or, to compare with, `VoxelSizes` (every voxel).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from nsw.errors import InputError
from nsw.kernels.occupancy import OccGridEstimator
from nsw.kernels.packed_rays import sampler_for
from nsw.models.dense_grid import grid_shape
from nsw.models.encodings import encoded_size, frequency_encoding
from nsw.models.factors import CPSizes, VMSizes, VoxelSizes, resampled
from nsw.models.field import FieldOutput, host_box

OPTICAL_EDGE = (
    75.0  # the official code's distance_scale of 25, in a box with edges of 3: here a box's mean edge counts as that many
)


@dataclass(frozen=True)
class VMGridSettings:
    """Sizes of a `VMGrid`.

    Attributes:
        box: minimum and maximum corner in world units, six numbers.
        n_voxels: voxels at the start; they are cubes, so the box's shape decides how many along each axis.
        factors: what is stored, and how many components.
        n_features: colour features that the network reads, 27 in the paper.
        mlp_width: units of its two hidden layers.
        n_frequencies: octaves in which the features, and the direction, are encoded; both are read as they are, too.
        shift: added to the raw density before its softplus, so that the field starts nearly empty. The paper's -10 is so empty that
            a run of a few hundred steps is over before anything appears.
        step_ratio: length of a sample in voxels; the paper takes 0.5.
        basis_start: scales the first basis. Products of two small random factors begin a tenth as large as a factor; a larger
            basis lets the network see them from the start, which a run of a few hundred steps notices.
        n_cells: cells of the alpha mask along an axis.
    """

    box: tuple[float, ...] = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    n_voxels: int = 32**3
    factors: VMSizes | CPSizes | VoxelSizes = field(default_factory=VMSizes)
    n_features: int = 27
    mlp_width: int = 64
    n_frequencies: tuple[int, int] = (2, 2)
    shift: float = -6.0
    step_ratio: float = 1.0
    basis_start: float = 1.0
    n_cells: int = 64


class VMGrid(nn.Module):
    """Density and colour from a factored grid; zero outside of its box.

    Attributes:
        aabb: [2, 3], which `shrink` makes smaller.
        factors: planes and lines, see `nsw.models.factors`.
        basis: B, from products of factors to colour features, without a bias.
        occupancy: the alpha mask, which cells may hold density; it starts full. Part of the state.
    """

    def __init__(self, settings: VMGridSettings):
        super().__init__()
        self.settings = s = settings
        aabb = torch.tensor(s.box, dtype=torch.float32).reshape(2, 3)
        if not bool((aabb[1] > aabb[0]).all()) or s.n_voxels < 8:
            raise InputError(f"A factored grid needs a box with a volume and at least 8 voxels, not {s.box} with {s.n_voxels}.")
        self.register_buffer("aabb", aabb)
        self.register_buffer("per_unit", OPTICAL_EDGE / (aabb[1] - aabb[0]).mean())  # keeps its value when the box shrinks
        self.factors = s.factors.build(grid_shape(aabb, s.n_voxels), s.n_features)
        n = self.factors.n_products
        self.basis = nn.Linear(n, s.n_features, bias=False) if n else nn.Identity()
        if n:
            self.basis.weight.data.mul_(s.basis_start)
        self.mlp = _colour_network(s)
        self.occupancy = OccGridEstimator(s.box, s.n_cells)
        self.occupancy.binaries.fill_(True)
        self.gradients_in_place = False  # an optimiser that empties `.grad` itself may set this: see `vm_lookup`

    @property
    def shape(self) -> tuple[int, int, int]:
        """Vertices along each axis."""
        return self.factors.shape

    @property
    def n_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(p.numel() * p.element_size() for p in self.parameters())

    def encode(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N 1"]:
        """Return the raw density, before shift and softplus."""
        return self.factors.sum(points_world, self.aabb, self.gradients_in_place, None)

    def density(self, points_world: Float[Tensor, "N 3"], known: Float[Tensor, "N 1"] | None = None) -> Float[Tensor, "N"]:
        r"""Return density in 1 / world unit, $\sigma = k\,\mathrm{softplus}(\sigma_f + b)$, with 75 / k the box's mean edge.

        Args:
            known: `encode`'s result for the same points, from an earlier call without gradients; spares the lookup.
        """
        raw = self.factors.sum(points_world, self.aabb, self.gradients_in_place, known).squeeze(1)
        inside = ((points_world >= self.aabb[0]) & (points_world <= self.aabb[1])).all(-1)
        return self.per_unit * softplus(raw + self.settings.shift) * inside

    def features(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N F"]:
        r"""Return colour features, $a(x) = B\,[v^m_r M^m_r]_{m,r}$."""
        return self.basis(self.factors.products(points_world, self.aabb, self.gradients_in_place))

    def geometry(
        self, points_world: Float[Tensor, "N 3"], known: Float[Tensor, "N 1"] | None = None
    ) -> tuple[Float[Tensor, "N"], Float[Tensor, "N F"]]:
        """Return density in 1 / world unit and colour features."""
        return self.density(points_world, known), self.features(points_world)

    def colour(
        self, features: Float[Tensor, "N F"], directions: Float[Tensor, "R 3"], ray_indices: Int[Tensor, "N"] | None = None
    ) -> Float[Tensor, "N 3"]:
        """Return rgb in [0, 1].

        Args:
            directions: unit vectors, one for each point, or one for each ray where `ray_indices` names the points' rays:
                the directions' share of the first layer is then worked out once a ray.
        """
        of_features, of_direction = self.settings.n_frequencies
        first, encoded = self.mlp[0], frequency_encoding(features, of_features)
        n = encoded.shape[1]
        seen = linear(frequency_encoding(directions, of_direction), first.weight[:, n:], first.bias)
        seen = seen if ray_indices is None else seen.index_select(0, ray_indices)
        return self.mlp[1:](torch.addmm(seen, encoded, first.weight[:, :n].T)).sigmoid()

    def query(self, points_world: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> FieldOutput:
        """Return density in 1 / world unit, colour, and what the colour network reads."""
        density, features = self.geometry(points_world)
        return FieldOutput(density, self.colour(features, directions), features)

    @property
    def sample_length(self) -> float:
        """Length of a sample in world units: `step_ratio` mean voxels of the present grid."""
        box = host_box(self)
        cells = box.new_tensor(self.shape) - 1
        return self.settings.step_ratio * float(((box[1] - box[0]) / cells).mean())

    @property
    def render_defaults(self) -> dict:
        """Options of `nsw.renderers.volume.render_rays` that belong to this model."""
        return {"occupancy": self.sampler(), "step": self.sample_length, "early_stop": 1e-4}

    def sampler(self) -> nn.Module:
        """Return the estimator that packed sampling asks: `occupancy` itself, or nerfacc's with the same cells on CUDA."""
        return sampler_for(self.occupancy)

    @torch.no_grad()
    def resize(self, n_voxels: int) -> None:
        """Interpolate all factors at another number of voxels of the present box.

        With twice as many cells along each axis nothing changes, because a product of straight lines that get more vertices on
        the way is the same product. The parameters are new objects: `nsw.models.rebuilding.rebuild` tells the optimiser.
        """
        shape = grid_shape(host_box(self), n_voxels)
        self.factors.change(lambda factor, dimension, axis: resampled(factor, dimension, shape[axis]))

    @torch.no_grad()
    def shrink(self, aabb: Float[Tensor, "2 3"]) -> None:
        """Crop box and factors to the smallest part of the grid that holds a box.

        The new box comes from the vertices that were kept: taking the given one would shift the scene by up to a voxel. The mask
        is full again, because its cells have another size. The parameters are new objects, as after `resize`.
        """
        n = self.aabb.new_tensor(self.shape)
        place = (aabb.to(self.aabb) - self.aabb[0]) / (self.aabb[1] - self.aabb[0]) * (n - 1)
        first = (place[0] + 1e-4).floor().clamp_min(0).minimum(n - 2)
        last = torch.maximum((place[1] - 1e-4).ceil(), first + 1).minimum(n - 1)
        cut = [slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)]
        self.factors.change(lambda factor, dimension, axis: factor.movedim(dimension, 0)[cut[axis]].movedim(0, dimension))
        self.aabb.copy_(self.aabb[0] + torch.stack([first, last]) / (n - 1) * (self.aabb[1] - self.aabb[0]))
        self.occupancy = OccGridEstimator(self.aabb.flatten().tolist(), self.settings.n_cells).to(self.aabb.device)
        self.occupancy.binaries.fill_(True)

    def energies(self) -> tuple[Float[Tensor, "m R"], Float[Tensor, "m S"]]:
        """Return the energy of each density and colour component, mode by mode; voxels have none."""
        return self.factors.energies(self.basis.weight.detach().square().sum(0))

    @torch.no_grad()
    def truncated(self, n_density: int, n_colour: int) -> VMGrid:
        """Return a smaller copy with the components of most energy of each mode, without training anything."""
        density, colour = self.energies()
        kept = [e.argsort(dim=1, descending=True)[:, :n].sort(1).values for e, n in ((density, n_density), (colour, n_colour))]
        small = copy.deepcopy(self)
        small.gradients_in_place = False
        small.basis.weight = nn.Parameter(self.basis.weight.detach()[:, small.factors.only(*kept)].contiguous())
        small.basis.in_features = small.basis.weight.shape[1]
        return small

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Take over the sizes found in the state before its values: a grid may have grown or been truncated since it was built."""
        for name, own in self.named_parameters():
            stored = state_dict.get(prefix + name)
            if (name.startswith("factors.") or name == "basis.weight") and stored is not None and stored.ndim == own.ndim:
                own.data, own.grad = torch.empty(stored.shape, dtype=own.dtype, device=own.device), None
        super()._load_from_state_dict(state_dict, prefix, *args)


def _colour_network(s: VMGridSettings) -> nn.Sequential:
    """Return [features, direction], both encoded -> colour before its sigmoid; the last bias starts at 0, which is grey."""
    n_in = encoded_size(s.n_features, s.n_frequencies[0]) + encoded_size(3, s.n_frequencies[1])
    sizes = [n_in, s.mlp_width, s.mlp_width]
    layers = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.ReLU(inplace=True))]
    last = nn.Linear(s.mlp_width, 3)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
