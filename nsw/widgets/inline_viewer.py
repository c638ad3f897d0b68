"""The inline viewer: a live picture of a model that is turned with mouse, wheel or keys, without a port of its own."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from typing import Any

import torch

from nsw.cameras import Cameras
from nsw.errors import InputError
from nsw.renderers.render import Render
from nsw.widgets import pictures
from nsw.widgets.frontend import live
from nsw.widgets.orbit_control import OrbitControl

_FAST = 0.045  # seconds: a full picture that takes less needs no coarse one
_TURN, _STEP = 0.12, 1.12
HELP = "Drag turns, shift-drag or right-drag moves, the wheel zooms (after a click). Keys: arrows, + and -, Home."


class Viewer:
    """What `viewer` returns: the present camera, and a list of functions called with it after every picture."""

    def __init__(self, render: Callable[[Cameras], Render], start: Cameras, centre: torch.Tensor, size: int):
        self.render, self.size = render, size
        self.control = OrbitControl(start, centre)
        self.on_change: list[Callable[[Cameras], None]] = []
        self.seconds = float("inf")  # what a full picture takes

    def _ipython_display_(self) -> None:
        """Show nothing: the picture was shown when the viewer was made, and a cell often ends with that call."""

    @property
    def camera(self) -> Cameras:
        """The present camera, a `Cameras` of one, at the full size."""
        return self.control.sized(self.size)

    def picture(self, coarse: bool = False):
        """Return the present view as uint8 [H, W, 3]; half the size when coarse and the full one is slow."""
        small = coarse and self.seconds > _FAST
        cameras = self.control.sized(max(16, self.size // 2) if small else self.size)
        began = time.perf_counter()
        with torch.no_grad():
            out = pictures.to_array(self.render(cameras))
        taken = time.perf_counter() - began
        # A full picture has four times the pixels: the first one, which may have compiled kernels, does not count for ever.
        self.seconds = min(self.seconds, 4 * taken) if small else taken
        return out

    def key(self, name: str) -> bool:
        """Move by one key; True when the key means something."""
        turns = {"ArrowLeft": (-_TURN, 0), "ArrowRight": (_TURN, 0), "ArrowUp": (0, _TURN), "ArrowDown": (0, -_TURN)}
        if name in turns:
            self.control.orbit(*turns[name])
        elif name in ("+", "="):
            self.control.zoom(1 / _STEP)
        elif name in ("-", "_"):
            self.control.zoom(_STEP)
        elif name == "Home":
            self.control.home()
        else:
            return False
        return True


def viewer(
    render: Callable[[Cameras], Render], scene_or_cameras: Any, alt: str, size: int = 256, caption: str | None = None
) -> Viewer:
    """Show what `render` sees and let the reader move the camera; a still is left in every case.

    Args:
        render: from one camera to a `Render`.
        scene_or_cameras: a `Scene` (the view starts at its first test camera) or `Cameras` (at the first one).
        alt: what is seen, one sentence.
        size: picture width in pixels; the page shows small ones enlarged.
    """
    alt = pictures.need_alt(alt)
    start, centre = _start(scene_or_cameras)
    if not 16 <= size <= 2048:
        raise InputError(f"viewer(size={size}): expected a picture width between 16 and 2048 pixels.")
    view = Viewer(render, start, centre, size)
    first = view.picture()
    pictures.emit_picture(first, alt, caption, _box(view, alt, first) if live() else None)
    return view


def _start(scene_or_cameras: Any) -> tuple[Cameras, torch.Tensor]:
    """Return the first camera and the point it should turn around."""
    if isinstance(scene_or_cameras, Cameras):
        cameras = scene_or_cameras.to("cpu")
        # The point nearest to all optical axes, in the least-squares sense.
        axes = cameras.world_from_cam[:, :3, 2]
        across = torch.eye(3) - axes[:, :, None] * axes[:, None, :]
        centre = torch.linalg.lstsq(across.sum(0) + 1e-4 * torch.eye(3), (across @ cameras.origins[..., None]).sum(0)).solution[
            :, 0
        ]
        return cameras[0], centre if len(cameras) > 1 else cameras.origins[0] + 4.0 * axes[0]
    return scene_or_cameras.views("test")[0], scene_or_cameras.aabb.mean(0)


def _box(view: Viewer, alt: str, first: Any):
    """Return the live box: the frame, buttons for the keyboard, size and readout; it answers while a cell is training, too."""
    import ipywidgets

    from nsw.runs.events import answer_at_once
    from nsw.widgets.viewer_frame import ViewerFrame

    error, readout = ipywidgets.HTML(), ipywidgets.HTML()
    frame = ViewerFrame(view, first, error, readout)
    buttons = []
    for label, tip, key in (
        ("\u25c0", "turn left", "ArrowLeft"),
        ("\u25b6", "turn right", "ArrowRight"),
        ("\u25b2", "turn up", "ArrowUp"),
        ("\u25bc", "turn down", "ArrowDown"),
        ("+", "closer", "+"),
        ("\u2212", "farther", "-"),
        ("\u2302", "first view", "Home"),
    ):
        button = ipywidgets.Button(description=label, tooltip=tip, layout={"width": "34px", "padding": "0"})
        button.on_click(lambda _, key=key: frame.key(key))
        buttons.append(button)
    sizes = sorted({64, 96, 128, 192, 256, 384, 512, 800, view.size})
    size = ipywidgets.Dropdown(options=sizes, value=view.size, description="width", layout={"width": "150px"})
    size.observe(lambda change: frame.resize(change["new"]), names="value")
    shows = alt[:1].upper() + alt[1:].rstrip(".") + "."
    text = ipywidgets.HTML(f'<span style="font-size:0.85em;opacity:0.8">{html.escape(shows)} {HELP}</span>')
    box = ipywidgets.VBox([frame, ipywidgets.HBox([*buttons, size, readout], layout={"flex_flow": "row wrap"}), text, error])
    box.add_class("nsw-viewer")
    answer_at_once(frame, *buttons, size)
    return box
