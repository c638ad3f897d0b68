r"""CityGaussianV2, estimated depth: brought to the scene's units by sparse points, and compared with the surface that is drawn.

A network that sees one picture knows inverse depth up to an affine map, another one for every picture. Sparse points of structure
from motion tell which: medians and median absolute deviations must agree (`nsw.models.depth_prior`).
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import project
from nsw.errors import InputError
from nsw.losses import loss_l1, loss_ssim
from nsw.models.depth_prior import CorruptedDepth, DepthPrior, align_inverse_depth, find_depth_prior
from nsw.scenes.scene import Scene


def loss_depth(
    depth: Float[Tensor, "C H W"], inverse: Float[Tensor, "C H W"], ssim: float = 1.0, l1: float = 0.0, nearest: float = 0.01
) -> Float[Tensor, ""]:
    r"""Return how far the drawn surface is from the estimated one, $w_s\,(1 - \mathrm{SSIM}(1/d,\ \hat d^{-1})) + w_1\,L_1$.

    The released configurations compare structure alone (1 and 0): an estimate errs by more than an offset.

    Args:
        depth: drawn camera z of the surface; 0 where nothing is.
        inverse: estimated inverse depth in the scene's units (`aligned_inverse`).
        nearest: smaller depths count as this one.
    """
    drawn = torch.where(depth > 0, 1 / depth.clamp_min(nearest), 0.0)
    structure = ssim * loss_ssim(drawn[..., None], inverse[..., None]) if ssim else 0.0
    return structure + (l1 * loss_l1(drawn, inverse) if l1 else 0.0)


def prior_of(name: str, scene: Scene, seed: int = 0, device: torch.device | str = "cpu") -> DepthPrior:
    """Return the prior of a name: "spoilt" is the scene's own true depth, spoilt; "bundled" a small network; else a folder.

    Args:
        name: a folder holds the weights of Depth Anything, as transformers saves them.

    Raises:
        InputError: as `nsw.models.depth_prior.find_depth_prior`.
    """
    if name == "spoilt":
        return CorruptedDepth(scene.pixels(range(len(scene))), scene.depth, seed)
    return find_depth_prior("" if name == "bundled" else name, device)


@torch.no_grad()
def aligned_inverse(
    prior: DepthPrior, scene: Scene, points: Float[Tensor, "N 3"], seen: Bool[Tensor, "V N"]
) -> Float[Tensor, "F H W"]:
    """Return estimated inverse depth of all training frames in the scene's units; 0 for the other frames.

    It is NaN, and `loss_depth` learns nothing there, where the scene's masks leave pixels out (a sky has no depth to
    estimate), and in pictures that cannot be aligned, which a warning counts.

    Args:
        points: sparse points, in the world.
        seen: which of them each training view sees.

    Raises:
        InputError: when no picture can be aligned.
    """
    inverse, usable, refused = torch.zeros(scene.images.shape[:3]), scene.usable("train"), []
    frames = scene.splits["train"].tolist()
    for frame, mine, use in zip(frames, seen, usable, strict=True):
        pixels, z = project(scene.cameras[frame], points[mine])
        try:
            aligned = align_inverse_depth(prior.predict(scene.pixels([frame])[0]).cpu(), pixels[0], 1 / z[0])
            inverse[frame] = aligned.masked_fill(~use.cpu(), torch.nan)
        except InputError as error:
            refused.append(error)
            inverse[frame] = torch.nan
    if len(refused) == len(frames):
        raise refused[0]
    if refused:
        warnings.warn(f"{len(refused)} of {len(frames)} pictures have no estimated depth. {refused[0]}", stacklevel=2)
    return inverse
