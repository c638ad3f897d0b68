"""Any two trained models side by side, whatever their architecture, and the table of all of them."""

from __future__ import annotations

import functools
import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from nsw.errors import InputError
from nsw.runs.kept import Kept, kept_models
from nsw.widgets import comparison, pictures
from nsw.widgets.frontend import Latest, emit, failure_line, live
from nsw.widgets.tables import html_table, table

PHOTOGRAPH = "the photograph"
NOTE = "Measured when each run kept its model, on 4 (smoke), 8 (laptop) or all (gpu) test views of its own scene."
_KEPT_IN_MEMORY = 4


def trained_models() -> None:
    """Show every model that the runs on this machine have kept: picture quality, size, time to train, pictures a second.

    A run keeps a model with `run.keep`; `nsw board` prints the same table.
    """
    from nsw.runs import model_table

    rows = model_table.rows(kept_models())
    if not rows:
        raise InputError("No run has kept a model yet: run a notebook to its end first.")
    table([dict(zip(model_table.HEAD, row, strict=True)) for row in rows], f"Trained models. {NOTE}")


@functools.lru_cache(_KEPT_IN_MEMORY)
def _loaded(folder: Any, changed: float) -> tuple[Any, Any]:
    """Return model and scene; `changed` is the file's time, so that a model trained anew is read anew."""
    import nsw
    from nsw.models.io import load
    from nsw.runs.kept import load_scene

    return load(folder, nsw.device("auto")), load_scene(folder)


def drawable_models() -> dict[str, Kept]:
    """Return the kept models that can be drawn and have a scene, by label, newest first."""

    found = [kept for kept in kept_models() if "psnr" in kept.card and (kept.folder / "scene.json").is_file()]
    return {kept.label: kept for kept in found}


def draw(kept: Kept, view: int, width: int, photograph: bool = False) -> np.ndarray:
    """Return a test view of the model's own scene as the model draws it, or its photograph, `width` pixels wide.

    Args:
        view: counts the test views; a number past the last one begins again.
    """
    import torch

    from nsw.renderers import render_view

    model, scene = _loaded(kept.folder, kept.changed)
    frames = scene.frames("test")
    frame = frames[view % len(frames)]
    height = max(1, round(width * scene.cameras.height / scene.cameras.width))
    if photograph:
        return pictures.enlarged(pictures.to_array(scene.pixels([int(frame)], scene.behind)[0]), width, height)
    camera = scene.views([int(frame)]).resized(width, height)
    with torch.no_grad():
        return pictures.to_array(render_view(model, camera, background=scene.behind))


def pair(left: Kept | None, right: Kept | None, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two pictures of one size; None stands for the photograph of the other one's view."""
    given = [kept for kept in (left, right) if kept is not None]
    if not given:
        raise InputError("Choose a model on at least one side: two photographs of one view are the same.")
    width = max(kept.card["width"] for kept in given)
    other = given[0]
    a, b = (draw(kept or other, view, width, photograph=kept is None) for kept in (left, right))
    height = max(len(a), len(b))  # scenes of another aspect: white below the lower one
    return tuple(np.pad(p, [(0, height - len(p)), (0, 0), (0, 0)], constant_values=255) for p in (a, b))


def first_choice(models: dict[str, Kept]) -> tuple[str, str]:
    """Return what stands left and right at first: the two newest architectures, else the photograph and the only one."""
    labels = list(models)
    newest = labels[0]
    others = [label for label in labels if models[label].card["model"] != models[newest].card["model"]]
    same_scene = [label for label in others if models[label].card["scene"] == models[newest].card["scene"]]
    return ((same_scene or others)[0] if others else PHOTOGRAPH), newest


def _facts(sides: Sequence[Kept | None]) -> str:
    """Return the table under the bar."""
    from nsw.runs import model_table

    rows = [[html.escape(cell) for cell in model_table.row(kept)] for kept in sides if kept is not None]
    return html_table(model_table.HEAD, rows, note=NOTE)


def compare_runs(alt: str) -> None:
    """Show two trained models under one divider, with PSNR, bytes, seconds to train and pictures a second below.

    Choose any two models that runs have kept, or the photograph, and a test view. Models of different scenes are each drawn
    in their own scene. Without a live front end the first choice stands side by side.

    Args:
        alt: what the comparison shows.

    Raises:
        InputError: when no run has kept a model with its scene.
    """
    alt, models = pictures.need_alt(alt), drawable_models()
    if not models:
        raise InputError("No run has kept a model with its scene yet: run a notebook to its end, or `nsw run 02_dvgo`.")
    labels = first_choice(models)
    sides = [models.get(label) for label in labels]
    a, b = pair(*sides, view=0)
    box = _Box(models, labels, comparison.bar(a, b, labels, alt)).box if live() else None
    bundle, widget, metadata = comparison.still(a, b, labels, alt, None, box)
    bundle["text/html"] += _facts(sides)
    emit(bundle, widget, metadata)


class _Box:
    """The live controls: two choices, a view, the bar and the facts."""

    def __init__(self, models: dict[str, Kept], labels: tuple[str, str], bar: comparison.ComparisonBar):
        import ipywidgets

        self.models, self.bar = models, bar
        look = dict(style={"description_width": "initial"}, layout={"width": "min(100%, 480px)"})
        lists = [PHOTOGRAPH, *models], list(models)  # not the photograph twice
        self.left, self.right = (
            ipywidgets.Dropdown(options=options, value=label, description=side, **look)
            for side, options, label in zip(("left", "right"), lists, labels, strict=True)
        )
        self.view = ipywidgets.IntSlider(value=0, min=0, max=11, description="test view", **look)
        self.facts, self.error = ipywidgets.HTML(_facts([models.get(label) for label in labels])), ipywidgets.HTML()
        self.box = ipywidgets.VBox([self.left, self.right, self.view, bar, self.error, self.facts])
        self.box.add_class("nsw-compare-runs")
        latest = Latest(self.redraw, coarse=False)
        for control in (self.left, self.right, self.view):
            control.observe(lambda _: latest.submit((self.left.value, self.right.value, self.view.value)), names="value")

    def redraw(self, chosen: tuple[str, str, int], coarse: bool) -> None:
        *labels, view = chosen
        sides = [self.models.get(label) for label in labels]
        try:
            a, b = pair(*sides, view=view)
        except Exception as error:  # a model of another version, a scene that is gone: say so, and let the learner choose again
            self.error.value = f'<span role="alert" style="color:#b00020">{html.escape(failure_line(error))}</span>'
            return
        old, self.bar = self.bar, comparison.bar(a, b, tuple(labels), self.bar.alt, self.bar.position)
        self.box.children = [self.bar if child is old else child for child in self.box.children]
        old.close()
        self.facts.value, self.error.value = _facts(sides), ""
