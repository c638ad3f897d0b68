r"""CityGaussianV2, small: which discs matter, trimming the others, and the file in which the least important share their colours.

The importance of a disc is the mean of its K best views, and in a view its blending weight over all pixels (after Fan et al. 2024,
"TrimGS"). The most important discs keep their harmonics; those of the others are entries of one codebook.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.errors import InputError
from nsw.models.gaussians import GaussiansSettings
from nsw.models.parts import part_of
from nsw.models.residual_codebooks import assign
from nsw.models.sh import SH0
from nsw.models.state import load_state, save_state
from nsw.models.surfels import THIN, Surfels
from nsw.renderers.surfels import render_view


def contributions(surfels: Surfels, camera: Cameras, first: int | None = None) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    r"""Return for every disc its summed blending weight in one view, $\sum_p \alpha_i T_i$, and the pixels that it covers.

    The first is the gradient of the picture's sum in the disc's colour: the rasterizer knows it already. The second is the area
    of the ellipse in the disc's bounding box, at least one pixel.

    Args:
        first: weigh only the first so many discs, in pictures of all, which is faster; what is said of the others has no meaning.
    """
    grey = Surfels(GaussiansSettings(0)).to(surfels.means.device)
    raw = {name: surfels.params[name] for name in ("means", "scales", "quats", "opacities")}
    grey.fill(**raw, sh0=torch.zeros_like(surfels.sh0), shN=surfels.shN[:, :0])
    for name in raw:
        grey.params[name].requires_grad_(False)
    with torch.enable_grad():
        render = render_view(grey, camera, background=0.0, depth=False, n_trained=first)
        render.rgb[..., 0].sum().backward()
    radii = render.extras["meta"]["radii"][0].float()
    return grey.sh0.grad[:, 0, 0] / SH0, (math.pi * radii.prod(dim=-1)).clamp_min(1.0)


def running_best(best: Float[Tensor, "N K"], new: Float[Tensor, "N"]) -> Float[Tensor, "N K"]:
    """Return the K largest of the values kept and a new one, the largest first.

    The official code replaces a slot only where the new value beats the best one: that is not the list of the best K.

    >>> running_best(torch.tensor([[5.0, 3.0]]), torch.tensor([4.0]))
    tensor([[5., 4.]])
    """
    return torch.cat([best, new[:, None]], dim=1).topk(best.shape[1], dim=1).values


def scores_of(
    surfels: Surfels, cameras: Cameras, best_views: int = 5, per_pixel: bool = False, first: int | None = None
) -> Float[Tensor, "N"]:
    r"""Return the importance of every disc, $\frac1K \sum_{v \in \mathrm{top}K} \sum_p \alpha_i T_i$.

    Args:
        best_views: K.
        per_pixel: divide a view's weight by the pixels that the disc covers (TrimGS). That trims wide faint discs, which nothing
            replaces where discs are few and no training follows.
        first: of `contributions`.
    """
    best = torch.zeros(len(surfels), min(best_views, len(cameras)), device=surfels.means.device)
    for view in range(len(cameras)):
        weight, pixels = contributions(surfels, cameras[view], first)
        best = running_best(best, weight / pixels if per_pixel else weight)
    return best.mean(dim=1)


def weakest(scores: Float[Tensor, "N"], share: float) -> Bool[Tensor, "N"]:
    """Return a mask of the `share` of all with the lowest scores, and of all that no view sees.

    >>> weakest(torch.tensor([0.0, 3.0, 1.0, 2.0]), 0.5)
    tensor([ True, False,  True, False])
    """
    doomed = scores <= 0
    doomed[scores.argsort(stable=True)[: int(share * len(scores))]] = True
    return doomed if not bool(doomed.all()) else torch.zeros_like(doomed)


def trimmed(surfels: Surfels, cameras: Cameras, share: float) -> Surfels:
    """Return a copy without the `share` of its discs that these views miss least, and without those that none of them sees."""
    return part_of(surfels, ~weakest(scores_of(surfels, cameras), share))


@torch.no_grad()
def codebook(
    x: Float[Tensor, "N D"], weights: Float[Tensor, "N"], size: int, *, n_rounds: int = 60, decay: float = 0.8, renew: int = 1,
    sample: int = 80_000, seed: int = 0,
) -> Float[Tensor, "K D"]:  # fmt: skip
    """Return K codewords for N vectors, drawn and moved by importance: k-means on samples with running means.

    Args:
        weights: importance, > 0: a vector is drawn in proportion to it.
        n_rounds: the official code takes 1000.
        decay: share of the running mean that a round keeps.
        renew: in each round so many of the least used codewords are set to the most important vectors of the sample; 10 there.
        sample: vectors of one round, at most.
    """
    generator = torch.Generator().manual_seed(seed)
    chance = (weights.clamp_min(1e-12) / weights.sum().clamp_min(1e-12)).cpu()
    picked = torch.randperm(len(x), generator=generator)[:size].to(x.device)
    words = x[picked].clone()
    used, sums = torch.ones(len(words), device=x.device), words.clone()
    for step in range(n_rounds):
        rows = torch.multinomial(chance, min(sample, 4 * len(x)), replacement=True, generator=generator).to(x.device)
        drawn, near = x[rows], assign(x[rows], words[None])[:, 0]
        count = torch.bincount(near, minlength=len(words)).float()
        used = decay * used + (1 - decay) * count
        sums = decay * sums + (1 - decay) * torch.zeros_like(sums).index_add_(0, near, drawn)
        words = torch.where(used[:, None] > 1e-3, sums / used[:, None].clamp_min(1e-9), words)
        if step < n_rounds // 2 and renew:  # the second half settles
            idle, loud = used.argsort()[:renew], weights[rows].argsort(descending=True)[:renew]
            words[idle[: len(loud)]] = drawn[loud]
            sums[idle[: len(loud)]], used[idle[: len(loud)]] = drawn[loud], 1.0
    return words


def save(
    surfels: Surfels, scores: Float[Tensor, "N"], path: Path | str, *, size: int = 256, keep: float = 0.6, seed: int = 0
) -> Path:
    """Write discs to one safetensors file: places in 32 bits, all else in 16, colours of the least important by codebook.

    Args:
        scores: importance of every disc, `scores_of`.
        size: entries of the codebook; 8192 in the paper, of millions of discs.
        keep: share of the discs that keep their harmonics.
    """
    order = scores.argsort(descending=True, stable=True)
    n_kept = round(keep * len(order))
    one, harmonics = part_of(surfels, order), surfels.sh.detach()[order].flatten(1)
    coded = harmonics[n_kept:]
    words = codebook(coded, scores[order][n_kept:], size, seed=seed).half() if len(coded) else coded.half()
    index = assign(coded, words.float()[None])[:, 0] if len(coded) else order[:0]
    parts = {"means": one.means, "scales": one.scales[:, :2].half(), "quats": one.quats.half(), "opacities": one.opacities.half()}
    parts |= {"sh": harmonics[:n_kept].half(), "words": words, "index": index.to(torch.uint8 if len(words) <= 256 else torch.int16)}
    save_state(Path(path), {name: value.detach() for name, value in parts.items()}, "pressed city")
    return Path(path)


def packed(surfels: Surfels, cameras: Cameras, path: Path | str, size: int, keep: float, seed: int = 0) -> Path:
    """Write discs as `save` does, with the importance that they have in these views."""
    return save(surfels, scores_of(surfels, cameras), path, size=size, keep=keep, seed=seed)


def load(path: Path | str) -> Surfels:
    """Return the discs of a file that `save` wrote.

    Raises:
        InputError: when it is not such a file, or damaged.
    """
    parts = load_state(Path(path), "pressed city")
    try:
        words, index, kept = parts["words"].float(), parts["index"].long() % 65536, parts["sh"].float()
        if len(index) and (not len(words) or int(index.max()) >= len(words)):
            raise ValueError("an index lies beyond the codebook")
        sh = torch.cat([kept, words[index]]).unflatten(1, (-1, 3))
        degree = math.isqrt(sh.shape[1]) - 1
        scales = torch.nn.functional.pad(parts["scales"].float(), (0, 1), value=THIN)
        raw = {name: parts[name].float() for name in ("means", "quats", "opacities")}
        if not all(bool(torch.isfinite(value).all()) for value in (sh, scales, *raw.values())):
            raise ValueError("its numbers are not finite")
        return Surfels(GaussiansSettings(degree)).fill(**raw, scales=scales, sh0=sh[:, :1], shN=sh[:, 1:])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"{path} holds no pressed city that can be read ({error}): copy or write the file again.") from error
