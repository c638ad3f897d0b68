"""Three ways to store a grid of densities and colour features: planes times lines (VM), lines only (CP), or every voxel.

Each is a module with the same calls, so that one field, `nsw.models.vm_grid`, can stand on any of them, and each is built by the
settings that name its sizes. Vertices have aligned corners: the first sits on the box's lower corner, the last on the upper one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from nsw.kernels.cp_lookup import cp_lookup
from nsw.kernels.grid_lookup import grid_lookup
from nsw.kernels.vm_lookup import FIRST, LINE, SECOND, vm_lookup

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class VMSizes:
    """Components of each of three modes: R_sigma of density and R_c of colour. Multiples of 8 or 16 are looked up fastest."""

    n_density: int = 16
    n_colour: int = 48

    def build(self, shape: Shape, n_features: int) -> VMFactors:
        """Return untrained factors for so many vertices along each axis."""
        return VMFactors(self, shape)


@dataclass(frozen=True)
class CPSizes:
    """Components of density and of colour."""

    n_density: int = 96
    n_colour: int = 288

    def build(self, shape: Shape, n_features: int) -> CPFactors:
        """Return untrained factors for so many vertices along each axis."""
        return CPFactors(self, shape)


@dataclass(frozen=True)
class VoxelSizes:
    """Every voxel stores its density and all of its colour features: no factors at all, for comparison."""

    def build(self, shape: Shape, n_features: int) -> VoxelFactors:
        """Return empty voxels, so many along each axis."""
        return VoxelFactors(shape, n_features)


class VMFactors(nn.Module):
    """Planes and lines: density sums over modes and components, colour keeps the products side by side.

    Attributes:
        density, colour: three planes [n_a, n_b, R] along the axes (0, 1), (0, 2), (1, 2), then three lines [n_c, R] along 2, 1, 0.
    """

    def __init__(self, sizes: VMSizes, shape: Shape, start: float = 0.1):
        super().__init__()
        shapes = [(shape[a], shape[b]) for a, b in zip(FIRST, SECOND, strict=True)] + [(shape[c],) for c in LINE]
        self.density, self.colour = _random(shapes, sizes.n_density, start), _random(shapes, sizes.n_colour, start)

    @property
    def shape(self) -> Shape:
        """Vertices along each axis."""
        return (*self.density[0].shape[:2], self.density[3].shape[0])

    @property
    def n_products(self) -> int:
        """How many numbers `products` returns for a point."""
        return 3 * self.colour[0].shape[-1]

    def sum(self, points: Float[Tensor, "N 3"], aabb: Tensor, in_place: bool, known: Tensor | None) -> Float[Tensor, "N 1"]:
        """Return the raw density."""
        factors = tuple(self.density)  # a slice of a ParameterList is a new module each time
        return vm_lookup(factors[:3], factors[3:], points, aabb, True, gradients(factors, in_place), known)

    def products(self, points: Float[Tensor, "N 3"], aabb: Tensor, in_place: bool) -> Float[Tensor, "N 3R"]:
        """Return the products of colour components, mode after mode."""
        factors = tuple(self.colour)
        return vm_lookup(factors[:3], factors[3:], points, aabb, False, gradients(factors, in_place))

    def energies(self, columns: Float[Tensor, "n"]) -> tuple[Float[Tensor, "3 R"], Float[Tensor, "3 S"]]:
        r"""Return the energy of each component of density and colour: $\lVert M_r\rVert^2 \lVert v_r\rVert^2$.

        Args:
            columns: squared length of each product's column of the basis, by which a colour component's energy counts.
        """
        parts = [torch.stack([_energy(part[m]) * _energy(part[m + 3]) for m in range(3)]) for part in (self.density, self.colour)]
        return parts[0], parts[1] * columns.view(3, -1)

    def only(self, of_density: Tensor, of_colour: Tensor) -> Tensor:
        """Keep the components at these indices [3, r] of each mode, and return which products [3 r] are left."""
        n = self.colour[0].shape[-1]
        for part, kept in ((self.density, of_density), (self.colour, of_colour)):
            for k in range(6):
                part[k] = nn.Parameter(part[k].detach()[..., kept[k % 3]].contiguous())
        return (of_colour + n * torch.arange(3, device=of_colour.device)[:, None]).flatten()

    def change(self, along: Callable[[Tensor, int, int], Tensor]) -> None:
        """Replace each factor by what `along(factor, dimension, axis)` makes of it, for each of its dimensions in turn."""
        for part in (self.density, self.colour):
            for m in range(3):
                part[m] = nn.Parameter(along(along(part[m].detach(), 0, FIRST[m]), 1, SECOND[m]).contiguous())
                part[m + 3] = nn.Parameter(along(part[m + 3].detach(), 0, LINE[m]).contiguous())


class CPFactors(nn.Module):
    """Three lines [n, R] along the axes 0, 1, 2 for density, and as many for colour."""

    def __init__(self, sizes: CPSizes, shape: Shape, start: float = 0.2):
        super().__init__()
        shapes = [(n,) for n in shape]
        self.density, self.colour = _random(shapes, sizes.n_density, start), _random(shapes, sizes.n_colour, start)

    @property
    def shape(self) -> Shape:
        """Vertices along each axis."""
        return tuple(line.shape[0] for line in self.density)

    @property
    def n_products(self) -> int:
        """How many numbers `products` returns for a point."""
        return self.colour[0].shape[-1]

    def sum(self, points: Float[Tensor, "N 3"], aabb: Tensor, in_place: bool, known: Tensor | None) -> Float[Tensor, "N 1"]:
        """Return the raw density."""
        lines = tuple(self.density)
        return cp_lookup(lines, points, aabb, True, gradients(lines, in_place), known)

    def products(self, points: Float[Tensor, "N 3"], aabb: Tensor, in_place: bool) -> Float[Tensor, "N R"]:
        """Return the products of colour components."""
        lines = tuple(self.colour)
        return cp_lookup(lines, points, aabb, False, gradients(lines, in_place))

    def energies(self, columns: Float[Tensor, "R"]) -> tuple[Float[Tensor, "1 R"], Float[Tensor, "1 S"]]:
        """Return the energy of each component, as `VMFactors.energies` does for its three modes."""
        parts = [torch.stack([_energy(line) for line in part]).prod(0)[None] for part in (self.density, self.colour)]
        return parts[0], parts[1] * columns

    def only(self, of_density: Tensor, of_colour: Tensor) -> Tensor:
        """Keep the components at these indices [1, r], and return which products are left."""
        for part, kept in ((self.density, of_density[0]), (self.colour, of_colour[0])):
            for k in range(3):
                part[k] = nn.Parameter(part[k].detach()[..., kept].contiguous())
        return of_colour[0]

    def change(self, along: Callable[[Tensor, int, int], Tensor]) -> None:
        """Replace each line by what `along(line, 0, axis)` makes of it."""
        for part in (self.density, self.colour):
            for axis in range(3):
                part[axis] = nn.Parameter(along(part[axis].detach(), 0, axis).contiguous())


class VoxelFactors(nn.Module):
    """A dense grid of densities [X, Y, Z, 1] and one of colour features [X, Y, Z, C], which need no basis."""

    def __init__(self, shape: Shape, n_features: int):
        super().__init__()
        self.density = nn.ParameterList([torch.zeros(*shape, 1)])
        self.colour = nn.ParameterList([torch.zeros(*shape, n_features)])

    @property
    def shape(self) -> Shape:
        """Vertices along each axis."""
        return tuple(self.density[0].shape[:3])

    @property
    def n_products(self) -> int:
        """0: the features are stored as they are."""
        return 0

    def sum(self, points: Float[Tensor, "N 3"], aabb: Tensor, in_place: bool, known: Tensor | None) -> Float[Tensor, "N 1"]:
        """Return the raw density."""
        return grid_lookup(self.density[0], points, aabb, (gradients(self.density, in_place) or [None])[0])

    def products(self, points: Float[Tensor, "N 3"], aabb: Tensor, in_place: bool) -> Float[Tensor, "N C"]:
        """Return the colour features."""
        return grid_lookup(self.colour[0], points, aabb, (gradients(self.colour, in_place) or [None])[0])

    def change(self, along: Callable[[Tensor, int, int], Tensor]) -> None:
        """Replace both grids by what `along(grid, dimension, axis)` makes of them, for each axis in turn."""
        for part in (self.density, self.colour):
            part[0] = nn.Parameter(along(along(along(part[0].detach(), 0, 0), 1, 1), 2, 2).contiguous())


def gradients(part: Sequence[Tensor], in_place: bool) -> tuple[Tensor, ...] | None:
    """Return the gradients to which kernels may add: none until all of them exist."""
    if not in_place or any(p.grad is None for p in part):
        return None
    return tuple(p.grad for p in part)


def resampled(values: Float[Tensor, "*n C"], dimension: int, n: int) -> Float[Tensor, "*n C"]:
    """Return values at another number of vertices along one dimension: straight lines between, ends on ends."""
    moved = values.movedim(dimension, -1)
    rows = interpolate(moved.reshape(1, -1, moved.shape[-1]), size=n, mode="linear", align_corners=True)
    return rows.view(*moved.shape[:-1], n).movedim(-1, dimension)


def _random(shapes: Sequence[tuple[int, ...]], rank: int, start: float) -> nn.ParameterList:
    return nn.ParameterList([start * torch.randn(*shape, rank) for shape in shapes])


def _energy(factor: Tensor) -> Tensor:
    """Return the mean square of each component, which unlike the sum does not grow with the number of vertices."""
    return factor.detach().square().flatten(0, -2).mean(0)
