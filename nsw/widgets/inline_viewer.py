"""The inline viewer: a live picture of a model that is turned with mouse, wheel or keys, without a port of its own."""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import Callable
from typing import Any

import torch

from nsw.cameras import Cameras
from nsw.errors import InputError
from nsw.renderers.render import Render
from nsw.widgets import pictures
from nsw.widgets.frontend import failure_line, live, running_loop
from nsw.widgets.orbit_control import OrbitControl

_REST = 0.25  # seconds without a movement after which the full picture is drawn
_FAST = 0.045  # seconds: a full picture that takes less needs no coarse one
_TURN, _STEP = 0.12, 1.12
HELP = "Drag turns, shift-drag or right-drag moves, the wheel zooms (after a click). Keys: arrows, + and -, Home."


class Viewer:
    """What `viewer` returns: the present camera, and a list of functions called with it after every picture."""

    def __init__(self, render: Callable[[Cameras], Render], start: Cameras, centre: torch.Tensor, size: int):
        self.render, self.size = render, size
        self.control = OrbitControl(start, centre)
        self.on_change: list[Callable[[Cameras], None]] = []
        self.seconds = float("inf")  # what the last full picture took

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
        if not small:
            self.seconds = time.perf_counter() - began
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
        cameras = scene_or_cameras
        # The point nearest to all optical axes, in the least-squares sense.
        axes = cameras.world_from_cam[:, :3, 2]
        across = torch.eye(3) - axes[:, :, None] * axes[:, None, :]
        centre = torch.linalg.lstsq(across.sum(0) + 1e-4 * torch.eye(3), (across @ cameras.origins[..., None]).sum(0)).solution[
            :, 0
        ]
        return cameras[0], centre if len(cameras) > 1 else cameras.origins[0] + 4.0 * axes[0]
    return scene_or_cameras.views("test")[0], scene_or_cameras.aabb.mean(0)


def _box(view: Viewer, alt: str, first: Any):
    """Return the live box: the frame, buttons for the keyboard, size and readout."""
    import ipywidgets

    error, readout = ipywidgets.HTML(), ipywidgets.HTML()
    frame = _frame_class()(view, first, error, readout)
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
    text = ipywidgets.HTML(f'<span style="font-size:0.85em;opacity:0.8">{html.escape(alt)} {HELP}</span>')
    box = ipywidgets.VBox([frame, ipywidgets.HBox([*buttons, size, readout], layout={"flex_flow": "row wrap"}), text, error])
    box.add_class("nsw-viewer")
    return box


def _frame_class():
    """Return the frame-buffer widget; its base class is imported on first use."""
    import ipywidgets
    from jupyter_rfb import RemoteFrameBuffer

    class Frame(RemoteFrameBuffer):
        """Turns pointer and key events into camera moves and draws the newest view only."""

        # jupyter_rfb 1.0.2 names a field that does not exist where a letter is typed, which breaks "+" and "-".
        _esm = RemoteFrameBuffer._esm.replace("this.focus_el.value", "this._focusElement.value")

        def __init__(self, view: Viewer, first: Any, error: ipywidgets.HTML, readout: ipywidgets.HTML):
            width = pictures.shown_width(first.shape[1], room=640, least=384)
            super().__init__(
                css_width=f"{width}px", css_height=f"{round(width * first.shape[0] / first.shape[1])}px", cursor="grab"
            )
            self.view, self.error, self.readout = view, error, readout
            self._first, self._moving, self._last, self._rest = first, False, None, None
            self._times: list[float] = []

        def get_frame(self):
            if self._first is not None:
                first, self._first = self._first, None
                return first
            coarse = self._moving
            try:
                array = self.view.picture(coarse)
                for function in self.view.on_change:
                    function(self.view.camera)
                self.error.value = ""
            except Exception as error:  # the learner's own renderer: show what it raised and stay alive
                self.error.value = f'<span role="alert" style="color:#b00020">{html.escape(failure_line(error))}</span>'
                return None
            self._count(array)
            full = self.view.camera
            return array if array.shape[1] == full.width else pictures.enlarged(array, full.width, full.height)

        def _count(self, array: Any) -> None:
            now = time.perf_counter()
            self._times = [t for t in self._times if now - t < 1.0] + [now]
            if not self._moving:
                self.readout.value = f"<small>{self.view.seconds * 1000:.0f} ms a picture</small>"
            elif len(self._times) > 3 and len(self._times) % 5 == 0:
                rate = (len(self._times) - 1) / (self._times[-1] - self._times[0])
                self.readout.value = f"<small>{rate:.0f} pictures a second at {array.shape[1]} px</small>"

        def moved(self) -> None:
            """Draw soon, coarse at first, and in full once the camera rests."""
            self._moving = True
            self.request_draw()
            loop = running_loop()
            if self._rest is not None:
                self._rest.cancel()
            self._rest: asyncio.Handle | None = loop.call_later(_REST, self._settle) if loop else None

        def _settle(self) -> None:
            self._rest, self._moving = None, False
            self.request_draw()

        def key(self, name: str) -> None:
            if self.view.key(name):
                self.moved()

        def resize(self, size: int) -> None:
            self.view.size, self.view.seconds = int(size), float("inf")
            self._settle()

        def handle_event(self, event: dict) -> None:
            kind, control = event["type"], self.view.control
            if kind == "pointer_down":
                self._last = (event["x"], event["y"])
            elif kind == "pointer_up":
                self._last = None
            elif kind == "pointer_move" and self._last is not None and event.get("buttons"):
                width = float(self.css_width.removesuffix("px"))
                across, down = event["x"] - self._last[0], event["y"] - self._last[1]
                self._last = (event["x"], event["y"])
                if "Shift" in event.get("modifiers", ()) or 2 in event["buttons"]:
                    control.pan(across / width, down / width)
                else:
                    control.orbit(across * 5.0 / width, down * 5.0 / width)
                self.moved()
            elif kind == "wheel":
                control.zoom(1.0015 ** max(-600.0, min(600.0, event["dy"])))
                self.moved()
            elif kind == "key_down":
                self.key(event["key"])

    return Frame
