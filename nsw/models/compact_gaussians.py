"""Gaussians that learn to be few and small: a mask per splat, colour from a field, scales and rotations from codebooks.

Lee, Rho, Sun, Ko, Park, "Compact 3D Gaussian Representation for Radiance Field", CVPR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from nsw.cameras import Cameras
from nsw.models.gaussians import NAMES, Gaussians, GaussiansSettings, Seen
from nsw.models.neural_colour import NeuralColour, NeuralColourSettings
from nsw.models.residual_codebooks import ResidualCodebooks, assign, straight_through, total
from nsw.renderers.render import Render

KEEP_ABOVE = 0.01  # a splat whose sigmoid(mask) is at most this is gone
SMALLEST = 1e-7  # a sum of codewords may come out negative: no scale is smaller than this


@dataclass(frozen=True)
class CompactSettings(GaussiansSettings):
    """What a compact model is besides its numbers.

    Attributes:
        colour: sizes of the colour field that takes over from spherical harmonics; None keeps them for good.
        n_stages: codebooks behind each other, for scales and for rotations; 0 keeps both as numbers.
        log2_codewords: bits of an index into one of them.
    """

    colour: NeuralColourSettings | None = None
    n_stages: int = 0
    log2_codewords: int = 6


def binary_mask(m: Float[Tensor, "N"], keep_above: float = KEEP_ABOVE) -> Float[Tensor, "N"]:
    r"""Return 1 for splats to keep and 0 for others, with the gradient of the sigmoid (Lee et al. 2024, eq. 1).

    $$M = \mathrm{sg}\big(\mathbb 1[\sigma(m) > \epsilon] - \sigma(m)\big) + \sigma(m)$$

    >>> m = torch.tensor([0.0, -9.0], requires_grad=True)
    >>> binary_mask(m).sum().backward()
    >>> binary_mask(m).tolist(), m.grad[0].item()
    ([1.0, 0.0], 0.25)
    """
    soft = m.sigmoid()
    return straight_through(soft, (soft > keep_above).to(soft))


class CompactGaussians(Gaussians):
    """Gaussians with a learned mask; by their settings also with a colour field and with codebooks.

    Attributes:
        mask: [N], m of `binary_mask`; starts at 1.
        field: the `NeuralColour`, or None. It is asked once it is ready.
        scale_codes, quat_codes: the codebooks, or None. They act once they are fitted.
    """

    def __init__(self, settings: CompactSettings):
        super().__init__(settings)
        self.mask = nn.Parameter(torch.zeros(0))
        self.field = NeuralColour(settings.colour) if settings.colour else None
        n, k = settings.n_stages, 1 << settings.log2_codewords
        self.scale_codes = ResidualCodebooks(n, k, 3) if n else None
        self.quat_codes = ResidualCodebooks(n, k, 4) if n else None

    @classmethod
    def from_gaussians(cls, gaussians: Gaussians, settings: CompactSettings) -> CompactGaussians:
        """Return compact ones that start where `gaussians` stand, every mask at 1."""
        settings = replace(settings, isotropic=gaussians.settings.isotropic)
        raw = {name: gaussians.params[name] for name in NAMES}
        raw["shN"] = raw["shN"][:, : (settings.sh_degree + 1) ** 2 - 1]
        return cls(settings).to(gaussians.means.device).fill(**raw)

    @torch.no_grad()
    def fill(self, mask: Float[Tensor, "N"] | None = None, **raw: Tensor) -> CompactGaussians:
        """Replace all raw parameters; without a mask every splat starts at 1."""
        super().fill(**raw)
        self.mask = nn.Parameter(torch.ones_like(self.opacities) if mask is None else mask.detach().clone().float())
        return self

    @property
    def kept(self) -> Tensor:
        """Which splats the mask keeps, [N] bool."""
        return self.mask.sigmoid() > KEEP_ABOVE

    @property
    def has_field(self) -> bool:
        """Whether colours come from the field now."""
        return self.field is not None and bool(self.field.ready)

    @property
    def own_scales(self) -> Float[Tensor, "N 3"]:
        """Standard deviations before codebooks and mask."""
        return self.log_scales.exp()

    @property
    def activated_scales(self) -> Float[Tensor, "N 3"]:
        """Standard deviations as they are drawn: by the codebooks, and 0 where the mask is."""
        s = self.own_scales
        if self.scale_codes is not None:
            coded = self.scale_codes(s)
            s = straight_through(coded, coded.clamp_min(SMALLEST))
        return s * binary_mask(self.mask)[:, None]

    @property
    def activated_opacities(self) -> Float[Tensor, "N"]:
        """Opacities as they are drawn: 0 where the mask is."""
        return self.opacities.sigmoid() * binary_mask(self.mask)

    @property
    def rotations(self) -> Float[Tensor, "N 4"]:
        """Quaternions as they are drawn; a sum of codewords is not of length 1, and the renderer normalises it."""
        unit = normalize(self.quats, dim=-1)
        return unit if self.quat_codes is None else self.quat_codes(unit)

    def loss_codebooks(self) -> Float[Tensor, ""]:
        """Return what moves the codewords; 0 before they are fitted."""
        if self.scale_codes is None or not bool(self.scale_codes.ready):
            return self.means.new_zeros(())
        return self.scale_codes.loss(self.own_scales) + self.quat_codes.loss(normalize(self.quats, dim=-1))

    def fit_codebooks(self, seed: int = 0) -> None:
        """Give the codebooks their first values, from the splats that are kept; from now on they act."""
        if self.scale_codes is not None:
            self.scale_codes.fit(self.own_scales[self.kept], seed)
            self.quat_codes.fit(normalize(self.quats, dim=-1)[self.kept], seed)

    def seen_from(self, camera: Cameras) -> Seen:
        """Return the splats with the colours that one camera sees."""
        sh0, sh, settings = self.sh0, self.sh, self.settings
        if self.has_field:
            origin = camera.to(self.means.device).origins[0]
            sh0 = sh = self.field.sh0(self.field.features(self.means), normalize(self.means - origin, dim=-1))
            settings = GaussiansSettings(sh_degree=0)
        return Seen(self.means, self.rotations, self.activated_scales, self.activated_opacities, sh0, sh, settings)

    def render_view(self, cameras: Cameras, **options) -> Render:
        """Draw pictures of C cameras; options of `nsw.renderers.splats.render_view`."""
        from nsw.renderers.splats import render_each, render_view

        return render_each(lambda camera: render_view(self.seen_from(camera), camera, **options), cameras)

    @torch.no_grad()
    def coded(self, stages: int | None = None) -> CompactGaussians:
        """Return a copy without codebooks whose scales and rotations are what the first `stages` of the codes say."""
        plain = CompactGaussians(replace(self.settings, n_stages=0)).to(self.means.device)
        raw = {name: self._parameters[name] for name in NAMES}
        if self.scale_codes is not None and bool(self.scale_codes.ready):
            s, q = self.own_scales, normalize(self.quats, dim=-1)
            s = total(assign(s, self.scale_codes.codewords), self.scale_codes.codewords, stages)
            q = total(assign(q, self.quat_codes.codewords), self.quat_codes.codewords, stages)
            raw |= {"scales": s.clamp_min(SMALLEST).log(), "quats": q}
        plain.fill(mask=self.mask, **raw)
        if self.field is not None:
            plain.field.load_state_dict(self.field.state_dict())
        return plain
