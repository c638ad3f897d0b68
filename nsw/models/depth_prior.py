"""Depth priors: whatever guesses inverse depth from one picture, up to an affine map, and how that map is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from nsw.errors import InputError

MIN_POINTS = 8


class DepthPrior(Protocol):
    """Any frozen model of depth from one picture.

    Attributes:
        name: shown on screen, with where the weights came from.
    """

    name: str

    def predict(self, picture: Float[Tensor, "H W 3"]) -> Float[Tensor, "H W"]:
        """Return inverse depth of a picture with values in [0, 1], up to a positive factor and an offset that nobody knows."""
        ...


def find_depth_prior(folder: str | Path = "", device: torch.device | str = "cpu") -> DepthPrior:
    """Return Depth Anything when a folder of its weights, as transformers saves them, is given; the bundled network for no folder.

    Raises:
        InputError: when the folder holds something else, its weights do not fit, or transformers is not installed.
    """
    from nsw.models.depth_anything import DepthAnything
    from nsw.models.state import read_json
    from nsw.models.toy_depth import toy_depth

    if not str(folder):
        return toy_depth().to(device)
    config = read_json(Path(folder) / "config.json", "description of a model")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "depth_anything":
        raise InputError(f'{folder} holds a model of type "{kind}": a depth prior is depth_anything.')
    return DepthAnything(folder, device)


def align_inverse_depth(
    prior: Float[Tensor, "H W"], pixels: Float[Tensor, "P 2"], inverse_depth: Float[Tensor, "P"]
) -> Float[Tensor, "H W"]:
    r"""Return a prior's map in the units of known points: $a\,p + b$, robust to wrong points.

    $a = \mathrm{MAD}(d)/\mathrm{MAD}(p)$, $b = \mathrm{med}(d) - a\,\mathrm{med}(p)$, with p the prior at the points' pixels and
    $\mathrm{MAD}(x) = \mathrm{med}|x - \mathrm{med}(x)|$, as CityGaussianV2 aligns its depth (Liu et al., ICLR 2025).

    Args:
        prior: inverse depth up to an affine map of positive slope.
        pixels: (x, y) of the points in the picture, pixel centres at +0.5; those outside are left out.
        inverse_depth: one over their camera z.

    Raises:
        InputError: for fewer than 8 points inside, and when they or the prior are all at one depth.

    >>> true = torch.arange(1.0, 17.0).reshape(4, 4)
    >>> y, x = torch.meshgrid(torch.arange(4) + 0.5, torch.arange(4) + 0.5, indexing="ij")
    >>> aligned = align_inverse_depth(0.2 * true + 7, torch.stack([x, y], -1).reshape(-1, 2), true.flatten())
    >>> torch.allclose(aligned, true, atol=1e-4)
    True
    """
    height, width = prior.shape
    column, row = pixels.floor().unbind(-1)
    inside = (column >= 0) & (row >= 0) & (column < width) & (row < height) & inverse_depth.isfinite()
    if int(inside.sum()) < MIN_POINTS:
        raise InputError(
            f"A depth prior is aligned with {MIN_POINTS} points of known depth or more, this picture has {int(inside.sum())}: "
            "give more points, or do without its depth."
        )
    said, known = prior[row[inside].long(), column[inside].long()], inverse_depth[inside].to(prior)
    (said_middle, said_spread), (middle, spread) = _median_mad(said), _median_mad(known)
    for values, what in ((said_spread, "the prior says one depth"), (spread, "all points have one depth")):
        if not values > 1e-12:
            raise InputError(f"A depth prior cannot be aligned: {what} at half of the points or more; leave this picture out.")
    slope = spread / said_spread
    return slope * prior + (middle - slope * said_middle)


def _median_mad(x: Float[Tensor, "P"]) -> tuple[Tensor, Tensor]:
    middle = x.quantile(0.5)
    return middle, (x - middle).abs().quantile(0.5)


@dataclass(frozen=True)
class CorruptedDepth:
    """A stand-in for an estimator: the true inverse depth, blurred and noisy, through an affine map of each picture's own.

    It knows only the pictures that it was made from, and finds a picture's depth by comparing it with those.

    Attributes:
        pictures: what it can be asked for, values in [0, 1].
        depth: their true camera z, 0 where nothing was hit; that is said to be infinitely far.
        noise: standard deviation of its error, in standard deviations of the true inverse depth of a picture.
        blur: pixels to each side over which it averages.
    """

    pictures: Float[Tensor, "N H W 3"]
    depth: Float[Tensor, "N H W"]
    seed: int = 0
    noise: float = 0.05
    blur: int = 1
    name: str = "CorruptedDepth (true depth, blurred, noisy, through an unknown affine map)"

    def predict(self, picture: Float[Tensor, "H W 3"]) -> Float[Tensor, "H W"]:
        """Return the spoilt inverse depth of one of its pictures, the same at every call.

        Raises:
            InputError: for another picture.
        """
        if picture.shape != self.pictures.shape[1:]:
            raise InputError(f"CorruptedDepth knows pictures of {tuple(self.pictures.shape[1:])}, got {tuple(picture.shape)}.")
        away = (self.pictures - picture.to(self.pictures)).abs().flatten(1).amax(1)
        index = int(away.argmin())
        if away[index] > 1e-3:
            raise InputError("CorruptedDepth knows only the pictures that it was made from: ask a real prior about this one.")
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        depth = self.depth[index].float()
        true = torch.where(depth > 0, 1 / depth.clamp_min(1e-6), 0.0)
        side = 2 * self.blur + 1
        soft = avg_pool2d(true[None], side, 1, self.blur, count_include_pad=False)[0]
        error = self.noise * true.std() * torch.randn(true.shape, generator=g).to(true)
        slope, offset = 0.5 + 4 * torch.rand(2, generator=g).to(true)
        return slope * (soft + error) + offset
