"""A hash grid whose features a coarse saliency grid may switch off (HollowNeRF, Xie et al. 2023).

Written from summaries of the paper; what they leave open, and where this differs, is said at each place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.errors import InputError
from nsw.kernels.grid_lookup import grid_lookup
from nsw.models.hash_grid import HashGrid, HashGridSettings

GATE_EPSILON = 1e-8


@dataclass(frozen=True)
class HollowGridSettings(HashGridSettings):
    """Sizes of a `HollowGrid`: those of its hash grid, and these.

    Attributes:
        shift: larger than a plain hash grid's. With a density of exp(-1) for zero features a pruned cell is fog as long as the
            gate is open, and the picture's gradient holds its saliency up.
        n_saliency: T, vertices of the saliency grid along an axis.
        first_logit: value of all logits at the start, and in training the largest; 2 lets 88 % of every feature through.
        gate: steepness of the gate; 0 leaves the gate out.
        sigmoid_first: interpolate saliencies instead of logits; the saliency's edges are then as blurred as its cells.
    """

    shift: float = 2.0
    n_saliency: int = 24
    first_logit: float = 2.0
    gate: float = 10.0
    sigmoid_first: bool = False


def soft_gate(features: Float[Tensor, "N C"], steepness: float | Tensor) -> Float[Tensor, "N"]:
    r"""Return a factor for the density that is 0 where the features are, and 1 where they are long.

    $$g(v) = \tanh(\alpha \lVert v \rVert_2)$$

    The length is $\sqrt{\lVert v \rVert^2 + \epsilon^2} - \epsilon$, because the plain one has no gradient at 0.

    >>> soft_gate(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 0.1).tolist()
    [0.0, 0.46211716532707214]
    """
    length = (features.square().sum(-1) + GATE_EPSILON**2).sqrt() - GATE_EPSILON
    return (steepness * length).tanh()


class HollowGrid(HashGrid):
    """A hash grid with a trainable saliency between table and networks.

    Attributes:
        logits: [T, T, T, 1], saliency before its sigmoid; the first and the last vertices lie on the box.
        multiplier: gamma, what a unit of mean saliency costs at the moment. Part of the state, as is
        length: root mean square of the length of the table's features; the gate counts in it.
    """

    def __init__(self, settings: HollowGridSettings):
        super().__init__(settings)
        n = settings.n_saliency
        if n < 2:
            raise InputError(f"A saliency grid needs at least 2 vertices along an axis, not {n}.")
        self.logits = nn.Parameter(torch.full((n, n, n, 1), float(settings.first_logit)))
        self.register_buffer("multiplier", torch.tensor(0.0))
        self.register_buffer("length", torch.tensor(1.0))
        self.measure_length()

    @torch.no_grad()
    def measure_length(self) -> None:
        """Measure the table anew; training does so in every step, because entries grow a thousandfold from their start."""
        self.length.copy_((self.table.square().mean() * self.density_net[0].in_features).sqrt())

    def saliency(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        r"""Return how much of a point's features passes: $p(x) = \mathrm{sig}(\mathrm{interp}(\mathcal G, x))$, in (0, 1)."""
        if self.settings.sigmoid_first:
            return grid_lookup(self.logits.sigmoid(), points_world, self.aabb)[:, 0]
        into = self.logits.grad if self.gradients_in_place else None
        return grid_lookup(self.logits, points_world, self.aabb, into)[:, 0].sigmoid()

    def gate(self, saliency: Float[Tensor, "N"], features: Float[Tensor, "N LF"]) -> Float[Tensor, "N"] | float:
        r"""Return $g(p f)$, in units of the table's mean length; its gradient reaches the saliency only.

        With a gradient to the features, every sample of empty air would shorten entries that a surface shares with it: the
        gate would bring back the collisions that the saliency is there to end.
        """
        steepness = self.settings.gate
        return soft_gate(saliency[:, None] * features.detach(), steepness / self.length) if steepness else 1.0

    def geometry(
        self, points_world: Float[Tensor, "N 3"], known: Float[Tensor, "N LF"] | None = None
    ) -> tuple[Float[Tensor, "N"], Float[Tensor, "N G"]]:
        r"""Return density in 1 / world unit, $g(v)\,e^{h_0(v) - b}$ with $v = p f$, and what the colour network needs to know."""
        p, f = self.saliency(points_world), self.encode(points_world, known)
        raw, geometry = self.density_net(p[:, None] * f).split([1, self.settings.n_geometry], dim=1)
        return self._activated(raw.squeeze(1), points_world) * self.gate(p, f), geometry

    def density(self, points_world: Float[Tensor, "N 3"], known: Float[Tensor, "N LF"] | None = None) -> Float[Tensor, "N"]:
        """Return density in 1 / world unit."""
        p, f = self.saliency(points_world), self.encode(points_world) if known is None else known
        return self._activated(self._first_output(p[:, None] * f), points_world) * self.gate(p, f)
