"""A short training from the start for every place of three sliders: what S3IM's weight, kernel and repeats do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def refit_dial(scene: Any, stage: Any, view: Any, photograph: Any, seed: int = 0) -> Callable[[float, int, int], Any]:
    """Return the function of three sliders, weight, kernel, repeats: a training from the start, its view beside its PSNR by step.

    Args:
        stage: a `dvgo_stages.Stage`, as short as a slider may take.
        view: one camera, on whose device is trained; `photograph` [H, W, 3] is what it should show.
    """
    from nsw.methods.s3im_inspect import weighted
    from nsw.methods.s3im_trials import refit
    from nsw.widgets.pictured_curves import pictured

    every = max(1, stage.n_steps // 5)
    plain = refit(scene, stage, None, view, photograph, seed, every)[1:]

    def draw(weight: float, kernel: int, repeats: int):
        term = weighted(weight, kernel=kernel, stride=kernel, repeats=repeats) if weight else None
        shown, *curve = refit(scene, stage, term, view, photograph, seed, every)
        title = f"{curve[1][-1]:.2f} dB after {stage.n_steps} steps; squared error alone {plain[1][-1]:.2f} dB"
        return pictured(shown, {"squared error alone": plain, "with S3IM": curve}, "step", "PSNR of the test view (dB)", title)

    return draw
