"""Ask the splats of Feature 3DGS for words, and edit what answers (Zhou et al., CVPR 2024, section 3.4).

Selection works on splats, not on pixels, so that an edit holds in every view. Nothing here changes the model it is given.
Points and boxes are asked for in `feature_3dgs_prompts.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from nsw.errors import InputError
from nsw.models.feature_gaussians import FeatureGaussians
from nsw.models.neighbours import nearest
from nsw.models.sh import rgb_from_sh0, sh0_from_rgb
from nsw.models.teacher import CLASSES, FeatureTeacher


@torch.no_grad()
def splat_features(model: FeatureGaussians) -> Float[Tensor, "N M"]:
    r"""Return a unit vector of the teacher's length for every splat, $(W f_i + b) / \|W f_i + b\|$.

    The bias belongs to it: the decoder was trained on sums with weights that add up to one, $\sum_i w_i f_i$, and a splat
    alone stands for such a sum. Where the weights add up to less, pixel and splat disagree a little.
    """
    return normalize(model.decoded(model.features), dim=1)


@torch.no_grad()
def agreed(model: FeatureGaussians, features: Float[Tensor, "N M"], k: int = 16) -> Float[Tensor, "N M"]:
    r"""Return what every splat and its neighbours say together: the mean feature of the k nearest, itself among them.

    $$\bar f_i \propto \sum_{j \in \mathrm{kNN}(i)} o_j f_j$$

    Not in the paper. A splat inside a thing is hardly ever seen, so nobody taught it a feature, but it shows once the skin
    is deleted; one on an edge carries both sides. Counted by opacity, their neighbours know better.
    """
    _, ids = nearest(model.means, model.means, k)
    opacities = model.activated_opacities[..., None]
    said = [(features[some] * opacities[some]).sum(1) for some in ids.split(1 << 16)]  # k features a splat: not of all at once
    return normalize(torch.cat(said), dim=1)


def likeness(features: Float[Tensor, "*n M"], teacher: FeatureTeacher, words: Sequence[str]) -> Float[Tensor, "*n K"]:
    """Return cosines of features with the vectors of words, in [-1, 1]."""
    vectors = torch.stack([teacher.embed(word) for word in words]).to(features)
    return normalize(features, dim=-1) @ vectors.T


def rivals(teacher: FeatureTeacher, word: str) -> list[str]:
    """Return the words that compete with one: classes with classes, names of things with one another, "nothing" and "board"."""
    if word in CLASSES:
        return [other for other in CLASSES if other != word]
    return [*CLASSES[:2], *(other for other in teacher.words if other not in (*CLASSES, word))]


def answer(
    features: Float[Tensor, "*n M"], teacher: FeatureTeacher, word: str, others: Sequence[str], temperature: float = 0.07
) -> Float[Tensor, "*n"]:
    r"""Return the probability of a word against others, for splats or pixels: $\mathrm{softmax}_k(\cos(f, t_k) / \tau)$."""
    cosines = likeness(features, teacher, [word, *(other for other in others if other != word)])
    return (cosines / temperature).softmax(-1)[..., 0]


def relevancy(features: Float[Tensor, "*n M"], teacher: FeatureTeacher, typed: str, least: float = 0.0) -> Float[Tensor, "*n"]:
    """Return how well features answer to what a person typed: a word, or several between commas, of which the best one counts.

    Each word competes with its own kind, see `rivals` and `answer`. In [0, 1]; what is below `least` is 0.

    Raises:
        InputError: when nothing was typed, or a word that the teacher does not know; it says which it knows.
    """
    words = [word for part in typed.split(",") if (word := " ".join(part.lower().split()))]
    if not words:
        raise InputError(f"Type a word, or several between commas. For example: {', '.join(teacher.words)}.")
    best = torch.stack([answer(features, teacher, word, rivals(teacher, word)) for word in words]).amax(0)
    return torch.where(best >= least, best, 0.0)


def selected(
    features: Float[Tensor, "N M"],
    teacher: FeatureTeacher,
    word: str,
    others: Sequence[str] = (),
    threshold: float | None = None,
) -> Bool[Tensor, "N"]:
    r"""Return which splats answer to a word: against other words by softmax, alone by the cosine.

    $$\mathrm{softmax}_k\big(\cos(f_i, t_k) / \tau\big)_{\text{word}} \ge \theta$$  (Zhou et al. 2024, section 3.4)

    Args:
        others: words that compete.
        threshold: theta, 0.5 for a cosine where nothing competes; None where some do asks for the likeliest word.
    """
    rivals = [other for other in others if other != word]
    if not rivals:
        return likeness(features, teacher, [word])[..., 0] >= (0.5 if threshold is None else threshold)
    if threshold is None:
        return likeness(features, teacher, [word, *rivals]).argmax(-1) == 0
    return answer(features, teacher, word, rivals) >= threshold


@torch.no_grad()
def _edited(model: FeatureGaussians, **raw: Tensor) -> FeatureGaussians:
    """Return a copy with some raw parameters replaced."""
    twin = copy.deepcopy(model)
    for name, value in raw.items():
        getattr(twin, name).copy_(value)
    return twin


def deleted(model: FeatureGaussians, chosen: Bool[Tensor, "N"]) -> FeatureGaussians:
    """Return the scene without the chosen splats: their opacity is all but zero. What they hid was never seen: holes stay."""
    return _edited(model, opacities=torch.where(chosen, -20.0, model.opacities))


def extracted(model: FeatureGaussians, chosen: Bool[Tensor, "N"]) -> FeatureGaussians:
    """Return the chosen splats alone."""
    return deleted(model, ~chosen)


def recoloured(
    model: FeatureGaussians, chosen: Bool[Tensor, "N"], paint: Callable[[Tensor], Tensor] = lambda rgb: rgb.flip(-1)
) -> FeatureGaussians:
    """Return the scene with the base colour of the chosen splats painted over.

    Args:
        paint: [n, 3] display colours to new ones; swaps red and blue by default.
    """
    painted = sh0_from_rgb(paint(rgb_from_sh0(model.sh0)))
    return _edited(model, sh0=torch.where(chosen[:, None, None], painted, model.sh0))


ACTIONS = {"delete": deleted, "recolour": recoloured, "extract": extracted}
