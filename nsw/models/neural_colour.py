"""Colour of splats from a hash grid and a small network: no splat stores a colour of its own.

Lee, Rho, Sun, Ko, Park, "Compact 3D Gaussian Representation for Radiance Field", CVPR 2024, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.errors import InputError
from nsw.kernels.hash_encoding import hash_encode, hash_levels
from nsw.models.hash_grid import tiny_network
from nsw.models.sh import sh_basis

SH_DEGREE = 2  # nine functions of the direction


@dataclass(frozen=True)
class NeuralColourSettings:
    """Sizes of a `NeuralColour`; the defaults are the paper's for real scenes.

    Attributes:
        box: minimum and maximum corner, six numbers; all of space is folded around it.
        n_levels, n_features, log2_entries, n_min, n_max: of the hash grid, see `nsw.kernels.hash_encoding.hash_levels`.
        width: units of both hidden layers.
    """

    box: tuple[float, ...] = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    n_levels: int = 16
    n_features: int = 2
    log2_entries: int = 19
    n_min: int = 16
    n_max: int = 4096
    width: int = 64


def network_sizes(settings: NeuralColourSettings) -> list[tuple[int, int]]:
    """Return inputs and outputs of the network's layers."""
    n_in, width = settings.n_levels * settings.n_features + (SH_DEGREE + 1) ** 2, settings.width
    return [(n_in, width), (width, width), (width, 3)]


def contract(x: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    r"""Fold all of space into the unit cube: the unit ball into its middle, what is outside around it.

    $$x' = x \text{ where } \lVert x\rVert_\infty \le 1, \text{ else } (2 - 1/\lVert x\rVert_2)\,x/\lVert x\rVert_2,
    \qquad u = x'/4 + 1/2$$  (Barron et al. 2022, eq. 10, as the official code has it)

    >>> contract(torch.tensor([[0.0, 1.0, -1.0], [4.0, 0.0, 0.0]]))
    tensor([[0.5000, 0.7500, 0.2500],
            [0.9375, 0.5000, 0.5000]])
    """
    inside = (x.abs() <= 1).all(dim=-1, keepdim=True)
    length = x.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return torch.where(inside, x, (2 - 1 / length) * x / length) / 4 + 0.5


class NeuralColour(nn.Module):
    """A hash grid that knows the place, and a network that also hears the direction.

    Attributes:
        table: [rows, F], entries of all levels, uniform in +-1e-4 at the start.
        network: features and nine harmonics of the direction to three numbers, without biases.
        ready: whether it is asked; before that, splats show harmonics of their own. Part of the state.
    """

    def __init__(self, settings: NeuralColourSettings):
        super().__init__()
        self.settings = s = settings
        low, high = torch.tensor(s.box, dtype=torch.float32).reshape(2, 3)
        if not bool((high > low).all()):
            raise InputError(f"A colour field needs a box with a volume, not {s.box}.")
        self.levels = hash_levels(s.n_levels, s.n_min, s.n_max, s.log2_entries)
        self.register_buffer("centre", (low + high) / 2, persistent=False)
        self.register_buffer("reach", (high - low) / 2, persistent=False)
        self.register_buffer("ready", torch.tensor(False))
        self.table = nn.Parameter((2 * torch.rand(self.levels.n_rows, s.n_features) - 1) * 1e-4)
        self.network = tiny_network(network_sizes(s)[0][0], s.width, 2, 3)

    def features(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N LF"]:
        """Return the grid's features; places get no gradient from them. Once training ends, one call serves every camera."""
        return hash_encode(self.table, contract((points_world.detach() - self.centre) / self.reach), self.levels)

    def sh0(self, features: Float[Tensor, "N LF"], directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 1 3"]:
        r"""Return what stands where the constant harmonic stood, $y = \mathrm{MLP}(f(\mu), B(d))$; colour is max(0, 0.5 + 0.282 y).

        Args:
            directions: unit vectors from the camera to the splats.
        """
        return self.network(torch.cat([features, sh_basis(SH_DEGREE, directions)], dim=1))[:, None]
