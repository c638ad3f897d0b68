"""Photographs of an object before a plain studio backdrop: its colour, found along their borders.

Opaque pictures do not say where air is. A field that learns them over random backgrounds has to build a wall in the backdrop's
colour; one that is told the colour may leave the air empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

SPREAD = 8  # levels of 255 about the backdrop's colour: a JPEG's noise, and not a gradient
OF_A_SIDE, OF_A_BORDER = 0.5, 0.8  # share of the pixels that show the backdrop: an object may touch a border, ground fills a side
OF_ALL_VIEWS = 0.9


def plain_backdrop(
    images: UInt8[Tensor, "N H W 3"], frames: Sequence[int] | Int[Tensor, "n"], masks: Bool[Tensor, "N H W"] | None = None
) -> Float[Tensor, "3"] | None:
    """Return the one colour, in [0, 1], along all four sides of nearly all of these opaque photographs; None if there is none.

    Args:
        frames: which photographs are asked. One alone says nothing: its border may be anything that lies near the object.
        masks: False where a pixel must not be used; the border is then that of the usable pixels.

    >>> plain_backdrop(torch.full((3, 9, 9, 3), 255, dtype=torch.uint8), [0, 1, 2]).tolist()
    [1.0, 1.0, 1.0]
    """
    views = [sides_of(images[i], None if masks is None else masks[i]) for i in map(int, frames)]
    views = [sides for sides in views if all(map(len, sides))]
    if len(views) < 2:
        return None
    colour = torch.cat([side for sides in views for side in sides]).median(dim=0).values.float()
    shown = [[float(((side.float() - colour).abs() <= SPREAD).all(-1).float().mean()) for side in sides] for sides in views]
    plain = [min(shares) >= OF_A_SIDE and sum(shares) / 4 >= OF_A_BORDER for shares in shown]
    return colour / 255.0 if sum(plain) >= OF_ALL_VIEWS * len(plain) else None


def sentence(colour: Float[Tensor, "3"]) -> str:
    """Return what a person is told of a backdrop.

    >>> sentence(torch.tensor([1.0, 1.0, 1.0]))[-78:]
    ', #ffffff: it is taken for a plain backdrop, and pictures are drawn before it.'
    """
    named = "".join(f"{round(255 * value):02x}" for value in colour.tolist())
    return (
        "The photographs have no alpha channel and, along the borders of nearly all of them, one colour, "
        f"#{named}: it is taken for a plain backdrop, and pictures are drawn before it."
    )


def sides_of(image: UInt8[Tensor, "H W 3"], usable: Bool[Tensor, "H W"] | None = None) -> list[UInt8[Tensor, "n 3"]]:
    """Return the pixels at the left, right, top and bottom: the first and last usable one of each row, and of each column."""
    if usable is None:
        return [image[:, 0], image[:, -1], image[0], image[-1]]
    sides = []
    for picture, mask in ((image, usable), (image.transpose(0, 1), usable.T)):
        rows = mask.any(dim=1).nonzero()[:, 0]
        mask = mask[rows].byte()
        ends = (mask.argmax(dim=1), mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)) if len(rows) else (rows, rows)
        sides += [picture[rows, end] for end in ends]
    return sides
