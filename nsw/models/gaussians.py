"""A scene as N anisotropic 3D Gaussians: raw parameters, their activations, and where they start.

Raw parameters are what Adam changes and what a `.ply` file stores; activated values are what a renderer takes.

| raw | shape | activated |
|---|---|---|
| `means` | [N, 3] | centre mu, world units |
| `scales` | [N, 3] | exp: standard deviations along the three axes, world units |
| `quats` | [N, 4] | normalised: rotation (w, x, y, z) |
| `opacities` | [N] | sigmoid: o in (0, 1) |
| `sh0`, `shN` | [N, 1, 3], [N, (degree + 1)^2 - 1, 3] | colour max(0, 0.5 + sum_k B_k(d) h_k) |
"""

from __future__ import annotations

import threading
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.errors import InputError
from nsw.kernels.projection_reference import covariance
from nsw.models.neighbours import nearest
from nsw.models.sh import rgb_from_sh0, sh0_from_rgb

NAMES = ("means", "scales", "quats", "opacities", "sh0", "shN")


@dataclass(frozen=True)
class GaussiansSettings:
    """What a set of Gaussians is besides its numbers.

    Attributes:
        sh_degree: highest band of spherical harmonics stored, 0 to 3; 0 is one colour for all directions.
        isotropic: use the mean of the three log scales for every axis, so that every splat is a ball.
    """

    sh_degree: int = 3
    isotropic: bool = False


@dataclass(frozen=True)
class Seen:
    """Splats as one camera sees them: everything that `nsw.renderers.splats.render_view` asks of a model, and no parameters."""

    means: Float[Tensor, "N 3"]
    quats: Float[Tensor, "N 4"]
    activated_scales: Float[Tensor, "N 3"]
    activated_opacities: Float[Tensor, "N"]
    sh0: Float[Tensor, "N 1 3"]
    sh: Float[Tensor, "N K 3"]
    settings: GaussiansSettings


# Held while the rows of a model change and while a renderer takes them: a viewer draws beside the loop that trains.
RESIZING = threading.RLock()


class Gaussians(nn.Module):
    """N Gaussians; empty at first, filled by a constructor below or by `load_state_dict`, whose N may differ.

    Density control replaces the parameters whenever N changes: read `model.means` anew, never keep it across steps.

    >>> splats = Gaussians.from_points(torch.rand(10, 3), sh_degree=1)
    >>> len(splats), tuple(splats.shN.shape)
    (10, (10, 3, 3))
    """

    def __init__(self, settings: GaussiansSettings | None = None):
        super().__init__()
        self.settings = settings or GaussiansSettings()
        if not 0 <= self.settings.sh_degree <= 3:
            raise InputError(f"sh_degree is {self.settings.sh_degree}: spherical harmonics of degree 0, 1, 2 or 3 are supported.")
        shapes = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": (), "sh0": (1, 3), "shN": (self.n_sh - 1, 3)}
        for name in NAMES:
            setattr(self, name, nn.Parameter(torch.zeros(0, *shapes[name])))

    def __len__(self) -> int:
        return self.means.shape[0]

    def extra_repr(self) -> str:
        return f"n={len(self)}, " + ", ".join(f"{k}={v}" for k, v in asdict(self.settings).items())

    @property
    def n_sh(self) -> int:
        """Number of harmonics per colour channel, the constant one included."""
        return (self.settings.sh_degree + 1) ** 2

    @property
    def params(self) -> MutableMapping[str, nn.Parameter]:
        """The live dictionary of raw parameters, as gsplat's strategies take it: assigning an entry replaces the parameter."""
        return self._parameters

    @property
    def log_scales(self) -> Float[Tensor, "N 3"]:
        """Logarithms of the standard deviations in use: `scales`, or their mean on every axis of an isotropic model."""
        return self.scales.mean(dim=1, keepdim=True).expand(-1, 3) if self.settings.isotropic else self.scales

    @property
    def activated_scales(self) -> Float[Tensor, "N 3"]:
        """Standard deviations along the axes, in world units."""
        return self.log_scales.exp()

    @property
    def activated_opacities(self) -> Float[Tensor, "N"]:
        return self.opacities.sigmoid()

    @property
    def sh(self) -> Float[Tensor, "N K 3"]:
        """All harmonics' coefficients, the constant one first."""
        return torch.cat([self.sh0, self.shN], dim=1)

    @property
    def base_rgb(self) -> Float[Tensor, "N 3"]:
        """Colour without its view-dependent part, clamped at 0 below."""
        return rgb_from_sh0(self.sh0[:, 0])

    @property
    def covariances(self) -> Float[Tensor, "N 3 3"]:
        """Sigma = R diag(s)^2 R^T in world units squared."""
        return covariance(self.quats, self.activated_scales)

    @torch.no_grad()
    def fill(self, **raw: Tensor) -> Gaussians:
        """Replace all raw parameters; rows must agree. Optimisers made before this hold the old ones."""
        counts = {name: raw[name].shape[0] for name in NAMES}
        if len(set(counts.values())) != 1:
            raise InputError(f"Gaussians need one row per splat in every parameter, got {counts}.")
        for name in NAMES:
            if raw[name].shape[1:] != self._parameters[name].shape[1:]:
                raise InputError(
                    f"Gaussians of degree {self.settings.sh_degree}: {name} has shape {list(raw[name].shape)}, "
                    f"expected [N, {', '.join(map(str, self._parameters[name].shape[1:]))}]."
                )
        with RESIZING:
            for name in NAMES:
                setattr(self, name, nn.Parameter(raw[name].detach().clone().float().contiguous()))
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Take the number of splats from what is loaded: training changes it."""
        for name, mine in list(self._parameters.items()):
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.dim() == mine.dim() and saved.shape[0] != mine.shape[0]:
                setattr(self, name, nn.Parameter(mine.new_zeros(saved.shape[0], *mine.shape[1:])))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def from_points(
        cls,
        points: Float[Tensor, "N 3"],
        rgb: Float[Tensor, "N 3"] | None = None,
        *,
        sh_degree: int = 3,
        isotropic: bool = False,
        opacity: float = 0.1,
        scale: float = 1.0,
    ) -> Gaussians:
        """Start one ball of the local point spacing at every point.

        Args:
            points: world coordinates; `nsw.scenes.Points` also works and brings its colours.
            rgb: sRGB colours in [0, 1]; grey without them.
            opacity: of every splat, in (0, 1).
            scale: factor on the spacing, the root mean square distance to the three nearest neighbours.
        """
        if hasattr(points, "xyz"):
            points, rgb = points.xyz, points.rgb if rgb is None else rgb
        points = torch.as_tensor(points, dtype=torch.float32)
        if points.dim() != 2 or points.shape[1] != 3 or len(points) == 0 or not bool(torch.isfinite(points).all()):
            raise InputError(f"Gaussians start from a table of finite points [N, 3] with N > 0, got shape {list(points.shape)}.")
        scales = (scale * neighbour_distance(points))[:, None].expand(-1, 3)
        rgb = torch.full_like(points, 0.5) if rgb is None else rgb
        identity = points.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(len(points), 4)
        opacities = points.new_full((len(points),), opacity)
        return cls.from_values(points, scales, identity, opacities, rgb, sh_degree=sh_degree, isotropic=isotropic)

    @classmethod
    def random(
        cls, aabb: Float[Tensor, "2 3"], n: int, generator: torch.Generator | None = None, *, sh_degree: int = 3, **options
    ) -> Gaussians:
        """Start n splats of random colour, uniform in the box `aabb` (minimum, maximum); `options` as in `from_points`."""
        device = generator.device if generator is not None else "cpu"
        unit = torch.rand(n, 6, generator=generator, device=device).cpu()
        low, high = aabb.cpu().float()
        return cls.from_points(low + unit[:, :3] * (high - low), 0.35 + 0.3 * unit[:, 3:], sh_degree=sh_degree, **options)

    @classmethod
    def from_values(
        cls,
        means: Float[Tensor, "N 3"],
        scales: Float[Tensor, "N 3"],
        quats: Float[Tensor, "N 4"],
        opacities: Float[Tensor, "N"],
        rgb: Float[Tensor, "N 3"],
        *,
        sh_degree: int = 0,
        isotropic: bool = False,
    ) -> Gaussians:
        """Build Gaussians from activated values: scales > 0, opacities in (0, 1), sRGB in [0, 1], the same from all sides."""
        values = [torch.as_tensor(value, dtype=torch.float32) for value in (means, scales, quats, opacities, rgb)]
        model = cls(GaussiansSettings(sh_degree, isotropic))
        means, scales, quats, opacities, rgb = values
        return model.fill(
            means=means,
            scales=scales.log(),
            quats=torch.nn.functional.normalize(quats, dim=-1),
            opacities=opacities.logit(),
            sh0=sh0_from_rgb(rgb)[:, None],
            shN=torch.zeros(len(means), model.n_sh - 1, 3),
        )


def neighbour_distance(points: Float[Tensor, "N 3"], k: int = 3) -> Float[Tensor, "N"]:
    """Return the root mean square distance to the k nearest other points, squares floored at 1e-7 (3DGS); 1 for a lone point.

    >>> neighbour_distance(torch.tensor([[0.0, 0, 0], [2, 0, 0]]))
    tensor([2., 2.])
    """
    if len(points) < 2:
        return torch.ones(1)
    distances, _ = nearest(points.double(), points, k + 1)
    return distances[:, 1:].square().mean(dim=1).clamp_min(1e-7).sqrt().float()
