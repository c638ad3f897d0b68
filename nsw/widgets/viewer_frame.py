"""The frame of the inline viewer: jupyter_rfb's buffer, whose events move the camera. Imported when a live viewer is shown."""

from __future__ import annotations

import asyncio
import html
import time
from typing import Any

import ipywidgets
from jupyter_rfb import RemoteFrameBuffer

from nsw.widgets import pictures
from nsw.widgets.frontend import failure_line, running_loop

_REST = 0.25  # seconds without a movement after which the full picture is drawn


class ViewerFrame(RemoteFrameBuffer):
    """Turns pointer and key events into camera moves and draws the newest view only."""

    # jupyter_rfb 1.0.2 names a field that does not exist where a letter is typed, which breaks "+" and "-".
    _esm = RemoteFrameBuffer._esm.replace("this.focus_el.value", "this._focusElement.value")

    def __init__(self, view: Any, first: Any, error: ipywidgets.HTML, readout: ipywidgets.HTML):
        width = pictures.shown_width(first.shape[1], room=640, least=384)
        super().__init__(css_width=f"{width}px", css_height=f"{round(width * first.shape[0] / first.shape[1])}px", cursor="grab")
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
        kind = event["type"]
        if kind == "pointer_down":
            self._last = (event["x"], event["y"])
        elif kind == "pointer_up":
            self._last = None
        elif kind == "pointer_move" and self._last is not None and event.get("buttons"):
            self._drag(event)
        elif kind == "wheel":
            self.view.control.zoom(1.0015 ** max(-600.0, min(600.0, event["dy"])))
            self.moved()
        elif kind == "key_down":
            self.key(event["key"])

    def _drag(self, event: dict) -> None:
        """Turn the camera, or move it with shift or the right button."""
        width = float(self.css_width.removesuffix("px"))
        across, down = event["x"] - self._last[0], event["y"] - self._last[1]
        self._last = (event["x"], event["y"])
        if "Shift" in event.get("modifiers", ()) or 2 in event["buttons"]:
            self.view.control.pan(across / width, down / width)
        else:
            self.view.control.orbit(across * 5.0 / width, down * 5.0 / width)
        self.moved()
