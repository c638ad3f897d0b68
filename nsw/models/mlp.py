"""The network of NeRF: a radiance field stored in the weights of a multi-layer perceptron, alone or as a coarse and fine pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from nsw.models.encodings import encoded_size, frequency_encoding
from nsw.models.field import FieldOutput
from nsw.models.wide_linear import WideLinear


@dataclass(frozen=True)
class NerfSettings:
    """Sizes of a `NerfMLP`; the defaults are the paper's.

    Attributes:
        depth: hidden layers of the trunk.
        width: units of each; the colour branch has half as many.
        skip: the encoded position is joined again to the output of this many layers; 0 or >= depth leaves it out.
        levels_position, levels_direction: octaves of the encodings; 0 feeds raw coordinates.
        use_directions: False makes colour depend on position only.
        density_scale: density is density_scale * softplus(raw + density_bias), in 1 / half of the box's longest side.
        density_bias: shifts the raw density before its activation.
        softplus: False takes the paper's ReLU instead, which can fail to start (see `NerfMLP`).
        box: minimum and maximum corner of the field in world units, six numbers.
        n_samples: uniform samples of a ray.
    """

    depth: int = 8
    width: int = 256
    skip: int = 5
    levels_position: int = 10
    levels_direction: int = 4
    use_directions: bool = True
    density_scale: float = 10.0
    density_bias: float = -1.0
    softplus: bool = True
    box: tuple[float, ...] = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    n_samples: int = 64


class NerfMLP(nn.Module):
    """Density and colour at a point from one network; outside of its box the density is zero.

    Two things differ from the paper. Density is softplus(raw - 1) instead of ReLU(raw): where a ReLU gives zero density it
    passes no gradient either, and a network that gives zero everywhere shows the background for ever. And positions are
    scaled so that half of the box's longest side is 1, so that an octave of the encoding means the same in every scene.
    """

    def __init__(self, settings: NerfSettings):
        super().__init__()
        self.settings = s = settings
        self.register_buffer("aabb", torch.tensor(s.box, dtype=torch.float32).reshape(2, 3), persistent=False)
        n_position, n_direction = encoded_size(3, s.levels_position), encoded_size(3, s.levels_direction)
        inputs = [n_position] + [s.width + (n_position if i == s.skip else 0) for i in range(1, s.depth)]
        self.trunk = nn.ModuleList(WideLinear(n, s.width) for n in inputs)
        self.density_head = nn.Linear(s.width, 1)
        self.bottleneck = WideLinear(s.width, s.width)
        self.branch = WideLinear(s.width + (n_direction if s.use_directions else 0), s.width // 2)
        self.colour_head = nn.Linear(s.width // 2, 3)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # Glorot, as the original; torch's own start leaves the empty solution later
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    @property
    def render_defaults(self) -> dict:
        """Options of `nsw.renderers.volume.render_rays` that belong to this model."""
        return {"n_samples": self.settings.n_samples}

    def features(self, points_world: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "N width"], Float[Tensor, "N"]]:
        """Return the trunk's output and the density [N] in 1 / world unit."""
        low, high = self.aabb
        half = (high - low).amax() / 2
        unit = (points_world - (low + high) / 2) / half
        encoded = frequency_encoding(unit, self.settings.levels_position)
        h = encoded
        for i, layer in enumerate(self.trunk):
            h = torch.cat([h, encoded], dim=-1) if i == self.settings.skip and i > 0 else h
            h = relu(layer(h), inplace=True)
        raw = self.density_head(h)[:, 0] + self.settings.density_bias
        density = (softplus(raw) if self.settings.softplus else relu(raw)) * (self.settings.density_scale / half)
        inside = ((points_world >= low) & (points_world <= high)).all(-1)
        return h, density * inside

    def query(self, points_world: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> FieldOutput:
        """Return density and colour; directions are unit vectors from the camera."""
        h, density = self.features(points_world)
        h = self.bottleneck(h)
        if self.settings.use_directions:
            h = torch.cat([h, frequency_encoding(directions, self.settings.levels_direction)], dim=-1)
        return FieldOutput(density, self.colour_head(relu(self.branch(h))).sigmoid())

    def density(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Return the density alone."""
        return self.features(points_world)[1]


@dataclass(frozen=True)
class CoarseFineSettings(NerfSettings):
    """Sizes of both networks of a `CoarseFine`; the coarse one sees the `n_samples` uniform samples of a ray.

    Attributes:
        n_fine: further samples where the coarse weights are; the fine network sees n_samples + n_fine.
    """

    n_fine: int = 128


class CoarseFine(nn.Module):
    """Two equal networks: `coarse` says where along a ray something is, `fine` is the picture.

    It answers as its fine network does; the renderer finds the coarse one and the sample counts in `render_defaults`.
    """

    def __init__(self, settings: CoarseFineSettings):
        super().__init__()
        self.settings = settings
        self.coarse = NerfMLP(settings)
        self.fine = NerfMLP(settings)

    @property
    def aabb(self) -> Float[Tensor, "2 3"]:
        return self.fine.aabb

    @property
    def render_defaults(self) -> dict:
        """Options of `nsw.renderers.volume.render_rays` that belong to this model."""
        return {"n_samples": self.settings.n_samples, "n_fine": self.settings.n_fine, "proposal": self.coarse}

    def query(self, points_world: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> FieldOutput:
        """Return the fine network's density and colour."""
        return self.fine.query(points_world, directions)

    def density(self, points_world: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Return the fine network's density."""
        return self.fine.density(points_world)
