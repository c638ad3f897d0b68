"""A field with fewer and fewer components: its picture beside what each number of them is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def rank_dial(
    truncated: Callable[[int], Any],
    picture: Callable[[Any], Any],
    photograph: Any,
    ranks: Sequence[int],
) -> Callable[[int], Any]:
    """Return the function of a slider: the picture of the chosen rank beside PSNR over rank, its own as a dot and in the title.

    Args:
        truncated: the model with so many components a mode.
        picture: of a model, the view [H, W, 3] that `photograph` shows.
        ranks: where the curve is measured, once.
    """
    from nsw.metrics import psnr
    from nsw.widgets.pictured_curves import pictured

    measure = lambda shown: psnr(shown.cpu()[None], photograph.cpu()[None])  # noqa: E731
    heights = [measure(picture(truncated(rank))) for rank in ranks]

    def draw(rank: int):
        shown = picture(truncated(rank))
        here = measure(shown)
        title = f"{rank} component{'s' * (rank > 1)} a mode: {here:.2f} dB in this view"
        curve = {"strongest components, not trained again": (ranks, heights)}
        return pictured(shown, curve, "components a mode", "PSNR of this view (dB)", title, here=(rank, here))

    return draw
