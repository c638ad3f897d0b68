"""A radiance field in a multiresolution hash table read by two tiny networks (Instant-NGP, Mueller et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from nsw.errors import InputError
from nsw.kernels.hash_encoding import hash_encode, hash_levels
from nsw.kernels.occupancy import OccGridEstimator
from nsw.kernels.packed_rays import sampler_for
from nsw.models.field import FieldOutput, host_box
from nsw.models.sh import sh_basis
from nsw.models.truncated_exp import truncated_exp

SH_DEGREE = 3  # 16 functions, four for each axis of the table: the paper counts them as "degree 4"


@dataclass(frozen=True)
class HashGridSettings:
    """Sizes of a `HashGrid`.

    Attributes:
        box: minimum and maximum corner in world units, six numbers; best a cube, or collisions fall unevenly on the axes.
        n_levels: L, grids of the pyramid.
        n_features: F, numbers of an entry.
        log2_entries: entries of a level at most, as a power of two: T = 2^log2_entries.
        n_min, n_max: cells along an axis of the coarsest and of the finest level.
        width: units of a hidden layer of both networks.
        n_geometry: numbers that the density network hands to the colour network, besides the density.
        n_cells: cells of the occupancy grid along an axis.
        step: length of a sample in world units; 0 is a 1024th of the box's diagonal.
        shift: b in sigma = exp(h0 - b); a field that says zero has density exp(-b).
    """

    box: tuple[float, ...] = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    n_levels: int = 8
    n_features: int = 4
    log2_entries: int = 15
    n_min: int = 16
    n_max: int = 256
    width: int = 64
    n_geometry: int = 15
    n_cells: int = 64
    step: float = 0.0
    shift: float = 1.0


class HashGrid(nn.Module):
    """Density and colour from a hash table; zero outside of its box.

    Attributes:
        table: [rows, F], entries of all levels, uniform in +-1e-4 at the start.
        levels: where each level lies in the table.
        occupancy: which cells may hold density; it starts full, and training thins it out. Part of the state.
    """

    def __init__(self, settings: HashGridSettings):
        super().__init__()
        self.settings = s = settings
        aabb = torch.tensor(s.box, dtype=torch.float32).reshape(2, 3)
        if not bool((aabb[1] > aabb[0]).all()):
            raise InputError(f"A hash grid needs a box with a volume, not {s.box}.")
        self.levels = hash_levels(s.n_levels, s.n_min, s.n_max, s.log2_entries)
        self.register_buffer("aabb", aabb)
        self.table = nn.Parameter((2 * torch.rand(self.levels.n_rows, s.n_features) - 1) * 1e-4)
        self.density_net = tiny_network(s.n_levels * s.n_features, s.width, 1, 1 + s.n_geometry)
        self.colour_net = tiny_network(s.n_geometry + (SH_DEGREE + 1) ** 2, s.width, 2, 3)
        self.occupancy = OccGridEstimator(s.box, s.n_cells)
        self.occupancy.binaries.fill_(True)
        self.gradients_in_place = False  # an optimiser that empties `.grad` itself may set this: see `hash_encode`

    def encode(self, points_world: Float[Tensor, "N 3"], known: Float[Tensor, "N LF"] | None = None) -> Float[Tensor, "N LF"]:
        """Return the interpolated entries of all levels; `known` are the same from an earlier call without gradients."""
        unit = (points_world - self.aabb[0]) / (self.aabb[1] - self.aabb[0])
        return hash_encode(self.table, unit, self.levels, self.table.grad if self.gradients_in_place else None, known)

    def _inside(self, points_world: Float[Tensor, "N 3"]) -> Tensor:
        return ((points_world >= self.aabb[0]) & (points_world <= self.aabb[1])).all(-1)

    def geometry(
        self, points_world: Float[Tensor, "N 3"], known: Float[Tensor, "N LF"] | None = None
    ) -> tuple[Float[Tensor, "N"], Float[Tensor, "N G"]]:
        r"""Return density in 1 / world unit and what the colour network needs to know: $\sigma = e^{h_0 - b}$."""
        raw, geometry = self.density_net(self.encode(points_world, known)).split([1, self.settings.n_geometry], dim=1)
        return self._activated(raw.squeeze(1), points_world), geometry

    def density(self, points_world: Float[Tensor, "N 3"], known: Float[Tensor, "N LF"] | None = None) -> Float[Tensor, "N"]:
        """Return density in 1 / world unit."""
        return self._activated(self._first_output(self.encode(points_world) if known is None else known), points_world)

    def _first_output(self, features: Float[Tensor, "N LF"]) -> Float[Tensor, "N"]:
        """Return what the density network says first, without working out the rest."""
        return linear(self.density_net[:-1](features), self.density_net[-1].weight[:1])[:, 0]

    def _activated(self, raw: Float[Tensor, "N"], points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Return density from the network's first output; none outside of the box."""
        return truncated_exp(raw - self.settings.shift) * self._inside(points_world)

    def colour(
        self,
        geometry: Float[Tensor, "N G"],
        directions: Float[Tensor, "R 3"],
        ray_indices: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "N 3"]:
        """Return rgb in [0, 1].

        Args:
            directions: unit vectors, one for each point, or one for each ray where `ray_indices` names the points' rays:
                the directions' share of the first layer is then worked out once a ray.
        """
        first, n = self.colour_net[0], self.settings.n_geometry
        seen = linear(sh_basis(SH_DEGREE, directions), first.weight[:, n:])
        seen = seen if ray_indices is None else seen.index_select(0, ray_indices)
        return self.colour_net[1:](torch.addmm(seen, geometry, first.weight[:, :n].T)).sigmoid()

    def query(self, points_world: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> FieldOutput:
        """Return density in 1 / world unit, colour, and what the colour network reads."""
        density, geometry = self.geometry(points_world)
        return FieldOutput(density, self.colour(geometry, directions), geometry)

    @property
    def sample_length(self) -> float:
        """Length of a sample in world units."""
        low, high = host_box(self)
        return self.settings.step or float((high - low).norm()) / 1024

    @property
    def render_defaults(self) -> dict:
        """Options of `nsw.renderers.volume.render_rays` that belong to this model."""
        return {"occupancy": self.sampler(), "step": self.sample_length, "early_stop": 1e-4}

    def sampler(self) -> nn.Module:
        """Return the estimator that packed sampling asks: `occupancy` itself, or nerfacc's with the same cells on CUDA."""
        return sampler_for(self.occupancy)


def tiny_network(n_in: int, width: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Return a network without biases, as the official one: an input of zeros then says nothing at all."""
    sizes = [n_in] + [width] * n_hidden
    hidden = [
        layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b, bias=False), nn.ReLU(inplace=True))
    ]
    network = nn.Sequential(*hidden, nn.Linear(width, n_out, bias=False))
    for layer in network[:-1:2]:  # torch's own start is too small: a signal that begins at 1e-4 would take a hundred steps more
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    nn.init.xavier_uniform_(network[-1].weight)
    return network
