"""Point at splats, or draw a box around them, in one view and see the mask in others (Zhou et al., CVPR 2024, section 3.4).

The mask decoder of the 2D teacher is fed with features that the splats draw; its encoder is not run. What leads from one view to
another is the depth of the splats: a prompt becomes places in space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.cameras import Cameras, camera_rays, project
from nsw.methods.feature_3dgs import feature_map
from nsw.methods.feature_3dgs_edit import relevancy
from nsw.methods.feature_3dgs_inspect import spread
from nsw.models.feature_gaussians import FeatureGaussians
from nsw.models.gaussians import Gaussians
from nsw.models.teacher import FeatureTeacher, Prompt
from nsw.renderers.splat_probe import recoloured
from nsw.renderers.splats import render_view


@torch.no_grad()
def carried_pixels(pixels: Int[Tensor, "P 2"], model: FeatureGaussians, seen_from: Cameras, to: Cameras) -> Float[Tensor, "Q 2"]:
    """Return pixels (row, column) of one camera as shares (x, y) of another one's picture, through the depth of the splats.

    Those are left out that are out of the picture there, or behind something.
    """
    depth, depth_there = (render_view(model, camera).depth[0].cpu() for camera in (seen_from, to))
    seen_from, to = seen_from.to("cpu"), to.to("cpu")
    row, column = pixels.unbind(1)
    places = camera_rays(seen_from)[row * seen_from.width + column].at_depth(depth[row, column])
    there, z = project(to, places)
    there, z = there[0], z[0]
    size = torch.tensor([to.width, to.height])
    inside = (z > 0) & (there >= 0).all(1) & (there < size).all(1)
    x, y = there.long().clamp(min=torch.zeros(2, dtype=torch.long), max=size - 1).unbind(1)
    return (there / size)[inside & (depth_there[y, x] > 0.96 * z)]


def carried(prompt: Prompt, model: FeatureGaussians, seen_from: Cameras, to: Cameras) -> Prompt | None:
    """Return a point prompt of one camera as another sees it; None when no point is left."""
    size = torch.tensor([seen_from.width, seen_from.height])
    at = (torch.tensor(prompt.points) * size).long().minimum(size - 1).flip(1)
    there = carried_pixels(at, model, seen_from, to)
    return Prompt(points=tuple(map(tuple, there.tolist()))) if len(there) else None


def carried_box(
    mask: Float[Tensor, "h w"], model: FeatureGaussians, seen_from: Cameras, to: Cameras, trimmed: float = 0.05
) -> Prompt | None:
    """Return the box, in another camera, around what a mask of this one covers; None when nothing of it is seen there.

    A box has no depth, what it holds has.

    Args:
        mask: probabilities; a pixel belongs to it from one half.
        trimmed: share of its pixels left out at every side: on an edge the depth is that of what is behind.
            0.05 to 0.1 did best on training views.
    """
    there = carried_pixels((spread(mask, (seen_from.height, seen_from.width)) > 0.5).nonzero(), model, seen_from, to)
    if not len(there):
        return None
    (x0, y0), (x1, y1) = there.quantile(trimmed, dim=0).tolist(), there.quantile(1 - trimmed, dim=0).tolist()
    return Prompt(box=(x0, y0, x1, y1))


@torch.no_grad()
def prompted_masks(
    model: FeatureGaussians, teacher: FeatureTeacher, prompt: Prompt, cameras: Cameras, size: tuple[int, int], behind=None
) -> list[tuple[Float[Tensor, "h w"], Prompt | None]]:
    """Return the teacher's mask in every camera for points or a box given in the first, with the prompt that it was given there.

    Args:
        size: of the teacher's own maps, which its decoder was trained on.
    """
    answers: list[tuple[Tensor, Prompt | None]] = []
    for i in range(len(cameras)):
        there: Prompt | None = prompt
        if i:
            way = model, cameras[0], cameras[i]
            there = carried(prompt, *way) if prompt.points else carried_box(answers[0][0], *way)
        seen = feature_map(model, cameras[i], size, behind)[0]
        answers.append((torch.zeros(size) if there is None else teacher.decode_mask(seen, there), there))
    return answers


def between(one: tuple[int, int], other: tuple[int, int], size: tuple[int, int]) -> Prompt:
    """Return what two corners (row, column) of a picture of `size` mean: one pixel twice is a point, else a box around both.

    >>> between((0, 4), (3, 1), (4, 8))
    Prompt(points=(), box=(0.125, 0.0, 0.625, 1.0))
    """
    (top, bottom), (left, right) = (sorted(ends) for ends in zip(one, other, strict=True))
    height, width = size
    if (top, left) == (bottom, right):
        return Prompt(points=(((left + 0.5) / width, (top + 0.5) / height),))
    return Prompt(box=(left / width, top / height, (right + 1) / width, (bottom + 1) / height))


def corners(prompt: Prompt, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return row and column of both corners of a prompt in a picture of `size`, twice the same for a point: undoes `between`.

    >>> corners(between((0, 4), (3, 1), (4, 8)), (4, 8))
    (0, 1, 3, 4)
    """
    (height, width), rounding = size, 1e-4  # shares are often float32: 19 / 48 x 48 may be a little less than 19
    if prompt.box is None:
        x, y = prompt.points[0]
        return (int(y * height), int(x * width)) * 2
    x0, y0, x1, y1 = prompt.box
    low, high = (lambda v: int(v + rounding)), (lambda v: math.ceil(v - rounding) - 1)
    return low(y0 * height), low(x0 * width), high(y1 * height), high(x1 * width)


class Pointed:
    """A drawing of what two corners in the first of some pictures ask for, in all of them; see `between`.

    Args:
        pictures: of `cameras`, to draw on.
        others: `prompted_masks` takes them: size, behind.
    """

    def __init__(
        self, model: FeatureGaussians, teacher: FeatureTeacher, cameras: Cameras, pictures: Float[Tensor, "n H W 3"], *others
    ):
        self.given, self.cameras, self.pictures, self.others = (model, teacher), cameras, pictures, others

    def ranges(self, prompt: Prompt) -> dict[str, tuple[int, int, int]]:
        """Return the ranges of sliders for both corners, which start at a prompt."""
        size = tuple(self.pictures.shape[1:3])
        names = ("row", "column", "to_row", "to_column")
        return {name: (0, n - 1, at) for name, n, at in zip(names, size * 2, corners(prompt, size), strict=True)}

    def of(self, prompt: Prompt) -> Float[Tensor, "H nW 3"]:
        """Return the drawing of a point or a box."""
        return self(*corners(prompt, tuple(self.pictures.shape[1:3])))

    def __call__(self, row: int, column: int, to_row: int, to_column: int) -> Float[Tensor, "H nW 3"]:
        prompt = between((row, column), (to_row, to_column), tuple(self.pictures.shape[1:3]))
        found = prompted_masks(*self.given, prompt, self.cameras, *self.others)
        drawn = [marked(tinted(picture, mask), at) for picture, (mask, at) in zip(self.pictures, found, strict=True)]
        return torch.cat(drawn, dim=1)


def tinted(
    picture: Float[Tensor, "H W 3"], mask: Float[Tensor, "h w"], colour: Sequence[float] = (0.84, 0.37, 0.0)
) -> Float[Tensor, "H W 3"]:
    """Return the picture in grey, with the places of a soft mask in a colour."""
    share = spread(mask, picture.shape[:2])[..., None]
    grey = (0.15 + 0.85 * picture.mean(-1, keepdim=True)).expand_as(picture)
    return grey * (1 - share) + share * (0.3 * picture + 0.7 * torch.tensor(colour))


def queried(
    picture: Float[Tensor, "H W 3"], features: Float[Tensor, "M h w"], teacher: FeatureTeacher, typed: str, least: float = 0.0
) -> Float[Tensor, "H W 3"]:
    """Return the picture in grey, and in orange by how well each place answers to what was typed; see `relevancy`."""
    return tinted(picture, relevancy(features.permute(1, 2, 0), teacher, typed, least))


def heated(model: Gaussians, answers: Float[Tensor, "N"]) -> Gaussians:
    """Return the splats in grey, and in orange by how well each answers."""
    return recoloured(model, tinted(model.base_rgb.detach().cpu().clamp(0, 1)[:, None], answers.cpu()[:, None])[:, 0])


def marked(picture: Float[Tensor, "H W 3"], prompt: Prompt | None) -> Float[Tensor, "H W 3"]:
    """Return the picture with a black and white cross at every point of a prompt, and a black line around its box."""
    out, (height, width) = picture.clone(), picture.shape[:2]
    at = lambda x, y: (min(int(y * height), height - 1), min(int(x * width), width - 1))  # noqa: E731 - said once
    for row, column in (at(*point) for point in (prompt.points if prompt else ())):
        out[max(row - 2, 0) : row + 3, column] = 0.0
        out[row, max(column - 2, 0) : column + 3] = 0.0
        out[row, column] = 1.0
    if prompt and prompt.box:
        x0, y0, x1, y1 = prompt.box
        (top, left), (bottom, right) = at(x0 + 1e-6, y0 + 1e-6), at(x1 - 1e-6, y1 - 1e-6)
        out[[top, bottom], left : right + 1] = 0.0
        out[top : bottom + 1, [left, right]] = 0.0
    return out
