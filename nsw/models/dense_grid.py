"""A radiance field in two dense voxel grids: raw density, and colour features read by a small network or as harmonics.

What a grid can show depends on where its activation stands (DVGO, Sun et al. 2022, section 3): `post_activation`
interpolates raw values and activates the result, so one cell can hold a sharp surface; `in_activation` interpolates
densities and `pre_activation` opacities, which stay as blurred as the voxels are large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, softplus

from nsw.errors import InputError
from nsw.kernels.grid_lookup import grid_lookup
from nsw.models.encodings import encoded_size, frequency_encoding
from nsw.models.field import FieldOutput, host_box
from nsw.models.sh import sh_basis

Lookup = Callable[[Tensor], Tensor]
HALF_VOXEL = 0.5


def shift_for_alpha(alpha_init: float) -> float:
    r"""Return the shift b that gives a raw density of 0 the opacity `alpha_init` over one voxel.

    $$b = \log\big((1 - \alpha_{\rm init})^{-1} - 1\big)$$  (DVGO, section 4.1)

    >>> round(torch.nn.functional.softplus(torch.tensor(shift_for_alpha(0.25))).neg().exp().item(), 4)
    0.75
    """
    if not 0.0 < alpha_init < 1.0:
        raise InputError(f"alpha_init is {alpha_init:g}, expected a number between 0 and 1: try 1e-6 for a first stage.")
    return math.log(math.expm1(-math.log1p(-alpha_init)))


def alpha_from_raw(raw: Float[Tensor, "*n"], shift: float | Tensor, delta: float = 1.0) -> Float[Tensor, "*n"]:
    r"""Return the opacity of a sample of length `delta` voxels, in closed form.

    $$\alpha = 1 - \big(1 + e^{\ddot\sigma + b}\big)^{-\delta}$$  (Improved DVGO, section 2)

    The same as 1 - exp(-softplus(raw + shift) delta), written so that thin samples keep their digits.

    >>> alpha_from_raw(torch.zeros(1), 0.0).item()
    0.5
    """
    return -torch.expm1(-delta * softplus(raw + shift))


def post_activation(lookup: Lookup, raw: Float[Tensor, "X Y Z 1"], shift: float | Tensor) -> Float[Tensor, "N 1"]:
    r"""Interpolate, then activate: $\sigma = \mathrm{softplus}(\mathrm{interp}(V, x) + b)$."""
    return softplus(lookup(raw) + shift)


def in_activation(lookup: Lookup, raw: Float[Tensor, "X Y Z 1"], shift: float | Tensor) -> Float[Tensor, "N 1"]:
    r"""Activate to density, then interpolate: $\sigma = \mathrm{interp}(\mathrm{softplus}(V + b), x)$."""
    return lookup(softplus(raw + shift))


def pre_activation(lookup: Lookup, raw: Float[Tensor, "X Y Z 1"], shift: float | Tensor) -> Float[Tensor, "N 1"]:
    r"""Activate to opacity, then interpolate: $\alpha = \mathrm{interp}(\alpha(V), x)$ for a sample half a voxel long.

    Returned as the density $-\log(1 - \alpha) / \tfrac12$, so that all three answer in the same unit.
    """
    alpha = lookup(alpha_from_raw(raw, shift, HALF_VOXEL))
    return -torch.log1p(-alpha.clamp(max=1.0 - 1e-6)) / HALF_VOXEL


ACTIVATIONS = (post_activation, in_activation, pre_activation)


@dataclass(frozen=True)
class DenseGridSettings:
    """Sizes of a `DenseGrid`.

    Attributes:
        box: minimum and maximum corner in world units, six numbers.
        n_voxels: voxels of the full grid; they are cubes, so the box's shape decides how many along each axis.
        n_start: voxels to start with, 0 for `n_voxels`; `DenseGrid.resize` goes on from there.
        alpha_init: opacity of a full-size voxel at the start.
        n_features: colour features of a voxel; 0 stores colour itself, as spherical harmonics.
        mlp_width: units of the two hidden layers that turn features and direction into a colour.
        n_frequencies: octaves of the encoded direction.
        sh_degree: degree of the harmonics where `n_features` is 0; degree 0 is one colour for all directions.
    """

    box: tuple[float, ...] = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    n_voxels: int = 64**3
    n_start: int = 0
    alpha_init: float = 1e-6
    n_features: int = 0
    mlp_width: int = 64
    n_frequencies: int = 4
    sh_degree: int = 0


class DenseGrid(nn.Module):
    """Density and colour in voxels; outside of its box, and where its mask says free, the density is zero.

    Buffers: `aabb` [2, 3]; `voxel`, the edge of a full-size voxel in world units, in which optical depth is counted however
    large the voxels are at the moment; `shift`, the bias b; `occupied` [x, y, z], cells that are not free space.
    """

    def __init__(self, settings: DenseGridSettings, activation: Callable = post_activation):
        super().__init__()
        self.settings = s = settings
        aabb = torch.tensor(s.box, dtype=torch.float32).reshape(2, 3)
        if not bool((aabb[1] > aabb[0]).all()) or s.n_voxels < 8:
            raise InputError(f"A voxel grid needs a box with a volume and at least 8 voxels, not {s.box} with {s.n_voxels}.")
        voxel = float((aabb[1] - aabb[0]).prod() / s.n_voxels) ** (1 / 3)
        self.register_buffer("aabb", aabb)
        self.register_buffer("voxel", torch.tensor(voxel))
        self.register_buffer("shift", torch.tensor(shift_for_alpha(s.alpha_init)))
        self.register_buffer("occupied", torch.ones(1, 1, 1, dtype=torch.bool))
        self.register_buffer("activation_code", torch.tensor(0))
        self.use_activation(activation)
        shape = grid_shape(aabb, s.n_start or s.n_voxels)
        n_colour = s.n_features or 3 * (s.sh_degree + 1) ** 2
        self.raw_density = nn.Parameter(torch.zeros(*shape, 1))
        self.features = nn.Parameter(torch.zeros(*shape, n_colour))
        self.mlp = _colour_network(s) if s.n_features else None
        self._estimator = None
        self.gradients_in_place = False  # an optimiser that empties `.grad` itself may set this: see `grid_lookup`

    def use_activation(self, activation: Callable) -> None:
        """Choose how raw values become density: one of `ACTIVATIONS`, or any function with their arguments."""
        self.activation = activation
        known = ACTIVATIONS.index(activation) if activation in ACTIVATIONS else -1
        self.activation_code.fill_(known)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Vertices along each axis."""
        return tuple(self.raw_density.shape[:3])

    def interpolate(self, grid: Float[Tensor, "X Y Z C"], points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N C"]:
        """Return a grid of this model, or one of its shape, at world points."""
        into = grid.grad if self.gradients_in_place and grid.is_leaf and grid.requires_grad else None
        return grid_lookup(grid, points_world, self.aabb, into)

    def sigma(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Return density in 1 / full-size voxel, without asking the mask."""
        return self.activation(lambda grid: self.interpolate(grid, points_world), self.raw_density, self.shift).squeeze(1)

    def geometry(self, points_world: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N C"] | None]:
        """Return density in 1 / world unit, without asking the mask, and what the colour network reads, if there is one."""
        features = None if self.mlp is None else self.interpolate(self.features, points_world)
        return self.sigma(points_world) / self.voxel, features

    def colour_at(
        self, points_world: Float[Tensor, "N 3"], directions: Float[Tensor, "R 3"], ray_indices: Int[Tensor, "N"] | None = None
    ) -> Float[Tensor, "N 3"]:
        """Return rgb in [0, 1] at points; the rest as for `colour`."""
        return self.colour(self.interpolate(self.features, points_world), directions, ray_indices)

    def colour(
        self, features: Float[Tensor, "N C"], directions: Float[Tensor, "R 3"], ray_indices: Int[Tensor, "N"] | None = None
    ) -> Float[Tensor, "N 3"]:
        """Return rgb in [0, 1] from interpolated features.

        Args:
            directions: unit vectors, one for each point, or one for each ray where `ray_indices` names the points' rays:
                whatever depends on the direction alone is then worked out once a ray.
        """
        if self.mlp is not None:
            first, n = self.mlp[0], self.settings.n_features
            seen = linear(frequency_encoding(directions, self.settings.n_frequencies), first.weight[:, n:], first.bias)
            seen = seen if ray_indices is None else seen.index_select(0, ray_indices)
            return self.mlp[1:](seen + linear(features, first.weight[:, :n])).sigmoid()
        if self.settings.sh_degree == 0:
            return features.sigmoid()
        basis = sh_basis(self.settings.sh_degree, directions)
        basis = basis if ray_indices is None else basis.index_select(0, ray_indices)
        return torch.einsum("nk,nkc->nc", basis, features.view(len(features), -1, 3)).sigmoid()

    def is_occupied(self, points_world: Float[Tensor, "N 3"]) -> Bool[Tensor, "N"]:
        """Return False outside of the box and in cells known to be free."""
        unit = (points_world - self.aabb[0]) / (self.aabb[1] - self.aabb[0])
        inside = ((unit >= 0) & (unit <= 1)).all(-1)
        size = torch.tensor(self.occupied.shape, device=unit.device)
        i, j, k = (unit * size).long().clamp_min(0).minimum(size - 1).unbind(-1)
        return inside & self.occupied[i, j, k]

    def density(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Return density in 1 / world unit."""
        return self.sigma(points_world) / self.voxel * self.is_occupied(points_world)

    def query(self, points_world: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> FieldOutput:
        """Return density in 1 / world unit, colour, and what the colour network reads, if there is one."""
        density, features = self.density(points_world), self.interpolate(self.features, points_world)
        return FieldOutput(density, self.colour(features, directions), features if self.mlp is not None else None)

    @property
    def sample_length(self) -> float:
        """Half a voxel of the present grid in world units: the step that sampling takes."""
        box = host_box(self)
        cells = box.new_tensor(self.shape).sub(1).clamp_min(1)
        return HALF_VOXEL * float(((box[1] - box[0]) / cells).amin())

    @property
    def render_defaults(self) -> dict:
        """Options of `nsw.renderers.volume.render_rays` that belong to this model."""
        return {"occupancy": self.occupancy(), "step": self.sample_length, "early_stop": 1e-3}

    def occupancy(self) -> nn.Module:
        """Return the mask as the estimator that packed sampling asks: nerfacc's on CUDA, its twin elsewhere."""
        key = (self.occupied.data_ptr(), self.occupied._version, self.aabb._version)
        if self._estimator is not None and self._estimator[0] == key:
            return self._estimator[1]
        if self.aabb.is_cuda:
            from nerfacc import OccGridEstimator
        else:
            from nsw.kernels.occupancy import OccGridEstimator
        estimator = OccGridEstimator(host_box(self).reshape(6).tolist(), 1).to(self.aabb.device)  # at full size it lists all cells
        estimator.binaries = self.occupied[None].clone()
        estimator.occs = self.occupied.reshape(-1).float()
        object.__setattr__(self, "_estimator", (key, estimator))  # not a submodule: it is derived from `occupied`
        return estimator

    def vertices(self) -> Float[Tensor, "X Y Z 3"]:
        """Return where the voxels' values sit, in world coordinates."""
        return lattice(self.aabb, self.shape)

    def alpha(self) -> Float[Tensor, "X Y Z"]:
        """Return the opacity at each vertex over one full-size voxel."""
        return alpha_from_raw(self.raw_density.detach()[..., 0], self.shift)

    @torch.no_grad()
    def resize(self, n_voxels: int, shift_change: float = 0.0) -> None:
        """Interpolate both grids at another number of voxels; what rays see stays the same up to interpolation.

        The parameters are new objects, because a graph still held by an old picture remembers the old ones' shape:
        `nsw.models.rebuilding.rebuild` tells the optimiser.

        Args:
            n_voxels: of the box; use factors of 8 to halve the voxels' edges.
            shift_change: added to the shift. DVGO takes -1, which removes haze and a little of everything else.
        """
        shape = grid_shape(host_box(self), n_voxels)
        for name in ("raw_density", "features"):
            old = getattr(self, name).detach().permute(3, 0, 1, 2)[None]
            new = interpolate(old, size=shape, mode="trilinear", align_corners=True)
            setattr(self, name, nn.Parameter(new[0].permute(1, 2, 3, 0).contiguous()))
        self.shift += shift_change

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Take over the sizes found in the state before its values: a grid may have grown since it was built."""
        for name in ("raw_density", "features", "occupied"):
            stored, own = state_dict.get(prefix + name), getattr(self, name)
            if stored is None or stored.shape == own.shape or stored.ndim != own.ndim:
                continue
            if own.ndim == 4 and stored.shape[3] != own.shape[3]:
                continue  # another number of features is another model: let torch say so
            own.data = torch.empty(stored.shape, dtype=own.dtype, device=own.device)
            own.grad = None
        super()._load_from_state_dict(state_dict, prefix, *args)
        code = int(self.activation_code)
        if code < 0 and self.activation in ACTIVATIONS:
            raise InputError(
                "This grid was saved with an activation of its own: build DenseGrid with that function and load its state."
            )
        if code >= 0:
            self.activation = ACTIVATIONS[code]


def grid_shape(aabb: Float[Tensor, "2 3"], n_voxels: int) -> tuple[int, int, int]:
    """Return vertices along each axis for about `n_voxels` cubes in the box.

    >>> grid_shape(torch.tensor([[0.0, 0, 0], [2, 1, 1]]), 2 * 10**3)
    (20, 10, 10)
    """
    extent = (aabb[1] - aabb[0]).double()
    edge = (extent.prod() / n_voxels) ** (1 / 3)
    return tuple(max(2, round(n)) for n in (extent / edge).tolist())


def lattice(aabb: Float[Tensor, "2 3"], shape: tuple[int, ...], centres: bool = False) -> Float[Tensor, "X Y Z 3"]:
    """Return world positions of a grid's vertices (first and last on the box), or of the centres of as many cells."""
    axes = []
    for a, n in enumerate(shape):
        place = (torch.arange(n, device=aabb.device) + 0.5) / n if centres else torch.linspace(0, 1, n, device=aabb.device)
        axes.append(aabb[0, a] + place * (aabb[1, a] - aabb[0, a]))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _colour_network(s: DenseGridSettings) -> nn.Sequential:
    """Return [features, encoded direction] -> colour before its sigmoid; the last bias starts at 0, which is grey."""
    sizes = [s.n_features + encoded_size(3, s.n_frequencies), s.mlp_width, s.mlp_width]
    layers = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.ReLU(inplace=True))]
    last = nn.Linear(s.mlp_width, 3)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
