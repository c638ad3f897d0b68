"""A training run to watch, pause and stop from the notebook."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Mapping
from typing import Any

_EVERY = 0.2  # seconds between two updates of what is shown


class TrainingPanel:
    """What a loop talks to: `update` after a step, `paused` and `stopped` to obey, `close` at the end."""

    def __init__(self, run: Any, n: int, name: str):
        import ipywidgets

        self.paused = self.stopped = False
        self.run, self.n, self.name = run, n, name
        self._first: tuple[int, float] | None = None
        self._shown = -math.inf
        self._waited = 0.0
        self._pause_began: float | None = None
        self._curve: list[tuple[int, float]] = []
        self._values: dict[str, float] = {}
        look = dict(style={"description_width": "initial"}, layout={"width": "min(100%, 480px)"})  # a long name is not cut off
        self.bar = ipywidgets.IntProgress(min=0, max=max(n, 1), description=name.replace("_", " "), **look)
        self.text, self.spark = ipywidgets.HTML(), ipywidgets.HTML()
        self.pause_button = ipywidgets.Button(description="Pause", tooltip="pause after this step", layout={"width": "90px"})
        self.stop_button = ipywidgets.Button(
            description="Stop", tooltip="stop after this step; keeps a checkpoint", layout={"width": "90px"}
        )
        self.pause_button.on_click(lambda _: self.pause())
        self.stop_button.on_click(lambda _: self.stop())
        self.picture: Any = None
        top = ipywidgets.HBox([self.bar, self.pause_button, self.stop_button], layout={"flex_flow": "row wrap"})
        self.box = ipywidgets.VBox([top, self.text, self.spark])
        self.box.add_class("nsw-training")

    def pause(self) -> None:
        """Pause, or go on."""
        self.paused = not self.paused
        now = time.monotonic()
        if self.paused:
            self._pause_began = now
        elif self._pause_began is not None:
            self._waited += now - self._pause_began
            self._pause_began = None
        self.pause_button.description = "Continue" if self.paused else "Pause"

    def stop(self) -> None:
        """Ask the loop to end after its present step; a paused loop ends too."""
        self.stopped = True
        if self.paused:
            self.pause()
        self.stop_button.disabled = self.pause_button.disabled = True
        self.stop_button.description = "Stopping"

    def update(self, step: int, values: Mapping[str, float], image: Any = None) -> None:
        """Show the state after `step` steps; cheap to call after each one.

        Args:
            step: how many of n are done.
            values: numbers to show; the first finite one is drawn as a curve.
            image: a picture, `Render`, or text, or None for no new one.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        self._values.update(values)
        first = next(iter(values.values()), None)
        if first is not None and math.isfinite(first):
            self._curve.append((step, float(first)))
        if image is not None:
            self._show(image)
        if now - self._shown < _EVERY and step < self.n:
            return
        self._shown = now
        self.bar.value = step
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in self._values.items())
        parts = (f"{step} of {self.n}", numbers, self._times(step, now))
        self.text.value = f"<code>{' &middot; '.join(html.escape(part) for part in parts if part)}</code>"
        self.spark.value = sparkline(self._curve, next(iter(self._values), "value"))

    def _times(self, step: int, now: float) -> str:
        start, began = self._first or (step, now)
        spent = now - began - self._waited
        if step <= start or step >= self.n:
            return f"{spent:.0f} s"
        return f"{spent:.0f} s, about {spent / (step - start) * (self.n - step):.0f} s left"

    def _show(self, image: Any) -> None:
        if isinstance(image, str):
            self.text.value = f"<code>{html.escape(image)}</code>"
            return
        if self.picture is None:
            from nsw.widgets.picture_widget import LivePicture

            self.picture = LivePicture(image, f"{self.name}: the model's picture while it trains")
            self.box.children = (*self.box.children, self.picture)
        else:
            self.picture.show_image(image)

    def close(self) -> None:
        """Say how it ended; the buttons are done."""
        self.pause_button.disabled = self.stop_button.disabled = True
        self.stop_button.description = "Stopped" if self.stopped else "Done"
        self.bar.bar_style = "warning" if self.stopped else "success"
        if self._curve:
            self.spark.value = sparkline(self._curve, next(iter(self._values), "value"))


def training_panel(run: Any, n: int, name: str) -> TrainingPanel:
    """Return a panel for a loop of n steps and display it; only where a front end is attached.

    The loop's picture needs no still of its own: notebooks show the result in cells below.
    """
    from IPython.display import display

    panel = TrainingPanel(run, n, name)
    display(panel.box)
    return panel


def sparkline(curve: list[tuple[int, float]], name: str, width: int = 320, height: int = 48) -> str:
    """Return a small curve as SVG, with its first and last value in words for readers who do not see it."""
    if len(curve) < 2:
        return ""
    points = curve[:: max(1, len(curve) // 300)] + curve[-1:]
    steps, values = [p[0] for p in points], [p[1] for p in points]
    low, high = min(values), max(values)
    x = [(s - steps[0]) / max(steps[-1] - steps[0], 1) * (width - 4) + 2 for s in steps]
    y = [height - 3 - (v - low) / ((high - low) or 1.0) * (height - 6) for v in values]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    label = html.escape(f"{name} went from {values[0]:.4g} to {values[-1]:.4g}", quote=True)
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="{label}"><title>{label}</title>'
        f'<polyline points="{path}" fill="none" stroke="#0072B2" stroke-width="2"/></svg>'
        f"<small> {html.escape(name)}: {low:.4g} to {high:.4g}</small>"
    )
