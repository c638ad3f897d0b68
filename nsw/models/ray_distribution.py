"""Networks that are asked once for a whole ray: NeRDF's, which says how density and colour run along it, and a light field's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from nsw.cameras import Rays
from nsw.kernels.harmonics import sh_basis
from nsw.models.encodings import encoded_size, frequency_encoding
from nsw.models.ray_basis import cosine_basis, fourier_basis
from nsw.models.wide_linear import WideLinear

SHARPNESS = 3.0  # of the softplus: nearer to ReLU it passes as little gradient as that where density is zero


@dataclass(frozen=True)
class RaySettings:
    """Sizes of a network that sees whole rays; the defaults are the paper's.

    Attributes:
        depth, width: hidden layers and the units of each.
        skip: the encoded ray is joined again to the output of every so many layers; 0 leaves it out.
        n_points: points along the ray that the network is told.
        levels: octaves of their encoding, and of the origin's.
        degree: of the spherical harmonics of the direction; the paper's 7 has 64 of them, here there are 4 degrees at most.
        n_terms: K, terms of the series for density and for each colour.
        n_samples: S, positions at which the series are added up and composited.
        margin: share of the series' period that is left unused at either end of the ray.
        density_scale: optical depth of a ray is this times the series' mean.
        damping: terms of order m enter divided by (1 + m) to this power; 0 is the paper's.
        softplus: False takes the paper's ReLU instead, which leaves a ray without density no gradient.
        box: minimum and maximum corner in world units, six numbers; a ray runs from where it enters to where it leaves.
    """

    depth: int = 8
    width: int = 384
    skip: int = 4
    n_points: int = 16
    levels: int = 10
    degree: int = 4
    n_terms: int = 24
    n_samples: int = 64
    margin: float = 0.0
    density_scale: float = 30.0
    damping: float = 1.5
    softplus: bool = True
    box: tuple[float, ...] = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)


class RayNetwork(nn.Module):
    """From a ray to some numbers: residual layers, to which the encoded ray is joined again and again."""

    def __init__(self, settings: RaySettings, n_out: int):
        super().__init__()
        self.settings = s = settings
        self.register_buffer("aabb", torch.tensor(s.box, dtype=torch.float32).reshape(2, 3), persistent=False)
        n_in = s.n_points * encoded_size(3, s.levels) + encoded_size(3, s.levels) + (s.degree + 1) ** 2
        joined = [i == 0 or (s.skip > 0 and i % s.skip == 0) for i in range(s.depth)]
        self.layers = nn.ModuleList(
            WideLinear((n_in if new else 0) + (s.width if i else 0), s.width) for i, new in enumerate(joined)
        )
        self.joined = joined
        self.head = nn.Linear(s.width, n_out)
        for layer in self.layers:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.head.weight, gain=0.1)  # answers that start large end in the flat of the sigmoid and stay
        nn.init.zeros_(self.head.bias)

    def encode(
        self, rays: Rays, first: Float[Tensor, "R"], last: Float[Tensor, "R"], place: Float[Tensor, "P"] | None = None
    ) -> Float[Tensor, "R n_in"]:
        """Return what the network is told of a ray: points along it, its origin, its direction.

        Args:
            first, last: distances between which the ray is in the box.
            place: where the points stand, in [0, 1]; in the middles of equal parts by default.
        """
        s, centre = self.settings, self.aabb.mean(0)
        half = (self.aabb[1] - self.aabb[0]).amax() / 2
        if place is None:
            place = (torch.arange(s.n_points, device=first.device) + 0.5) / s.n_points
        t = torch.cat([first[:, None] + place * (last - first)[:, None], torch.zeros_like(first)[:, None]], dim=-1)
        points = (rays.origins[:, None] + t[..., None] * rays.directions[:, None] - centre) / half
        return torch.cat([frequency_encoding(points.flatten(1), s.levels), sh_basis(s.degree, rays.directions)], dim=-1)

    def forward(
        self, rays: Rays, first: Float[Tensor, "R"], last: Float[Tensor, "R"], place: Float[Tensor, "P"] | None = None
    ) -> Float[Tensor, "R n_out"]:
        r"""Return the numbers of each ray.

        $$h \leftarrow \mathrm{ReLU}(W h + b + h)$$

        A layer to which the encoded ray is joined has the two side by side as its input, and does not add h.
        """
        encoded = self.encode(rays, first, last, place)
        h = relu(self.layers[0](encoded))
        for layer, joined in zip(self.layers[1:], self.joined[1:], strict=True):
            h = relu(layer(torch.cat([h, encoded], dim=-1)) if joined else layer(h) + h)
        return self.head(h)


class RayDistribution(nn.Module):
    """NeRDF: the weights of a series for density and of one for each colour, from one answer of the network a ray."""

    basis = staticmethod(fourier_basis)

    def __init__(self, settings: RaySettings):
        super().__init__()
        self.settings = settings
        self.network = RayNetwork(settings, 4 * settings.n_terms)
        thin = 0.7 / settings.density_scale  # a start in fog that lets half of the light through
        with torch.no_grad():
            self.network.head.bias[0] = math.log(math.expm1(SHARPNESS * thin)) / SHARPNESS if settings.softplus else thin

    @property
    def aabb(self) -> Float[Tensor, "2 3"]:
        return self.network.aabb

    def coefficients(
        self, rays: Rays, first: Float[Tensor, "R"], last: Float[Tensor, "R"], place: Float[Tensor, "P"] | None = None
    ) -> Float[Tensor, "R 4 K"]:
        """Return the weights of each ray's series: density first, then red, green and blue."""
        return self.network(rays, first, last, place).view(-1, 4, self.settings.n_terms)

    def at(self, tau: Float[Tensor, "S"]) -> Float[Tensor, "K S"]:
        """Return the series' terms, damped, at positions in [0, 1] of the way through the box.

        A network moves all of its answers at one pace. Undamped, twice as many terms are then twice as much noise.
        """
        s = self.settings
        order = (torch.arange(s.n_terms, device=tau.device, dtype=tau.dtype) + 1) // 2
        return (self.basis(s.margin + (1 - 2 * s.margin) * tau, s.n_terms) * (1.0 + order) ** -s.damping).T

    def decode(
        self, coefficients: Float[Tensor, "R 4 K"], terms: Float[Tensor, "K S"]
    ) -> tuple[Float[Tensor, "R S"], Float[Tensor, "R S 3"]]:
        r"""Return density, in optical depth per whole ray, and colour at S positions.

        $$\sigma(\tau) = s\,\mathrm{ReLU}\Big(\sum_k W_{k0}\,\phi_k(\tau)\Big), \qquad
        c_j(\tau) = \mathrm{sigmoid}\Big(\sum_k W_{kj}\,\phi_k(\tau)\Big)$$  (NeRDF; here with a sharp softplus)

        Args:
            terms: the basis at the positions, from `at`; it is the same for all rays.
        """
        sums = (coefficients.flatten(0, 1) @ terms).view(len(coefficients), 4, -1)
        raw = softplus(sums[:, 0], beta=SHARPNESS) if self.settings.softplus else relu(sums[:, 0])
        return self.settings.density_scale * raw, sums[:, 1:].sigmoid().transpose(1, 2)


class CosineDistribution(RayDistribution):
    """NeRDF with cosines only, which do not wrap around from the far end to the near end."""

    basis = staticmethod(cosine_basis)


class LightField(nn.Module):
    """A neural light field: the same network, but its answer is the pixel's colour. There is no density, so no depth."""

    def __init__(self, settings: RaySettings):
        super().__init__()
        self.settings = settings
        self.network = RayNetwork(settings, 3)
        nn.init.constant_(self.network.head.bias, 2.0)  # a start nearly as white as the background, which NeRDF is told

    @property
    def aabb(self) -> Float[Tensor, "2 3"]:
        return self.network.aabb

    def colours(
        self, rays: Rays, first: Float[Tensor, "R"], last: Float[Tensor, "R"], place: Float[Tensor, "P"] | None = None
    ) -> Float[Tensor, "R 3"]:
        """Return the colour of each ray in [0, 1]."""
        return self.network(rays, first, last, place).sigmoid()
