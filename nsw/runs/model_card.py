"""What a kept model is and what it did: `models/<name>/card.json`, one row of the table of all architectures."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nsw.cameras import Cameras

FORMAT = 1
VIEWS = {"smoke": 4, "laptop": 8, "gpu": 1000}  # of the test split, evenly spread over it


class TrainedSeconds:
    """Seconds of training loops, by the models that each of them saved."""

    def __init__(self) -> None:
        self._loops: dict[str, tuple[float, weakref.WeakSet[nn.Module]]] = {}

    def note(self, loop: str, objects: Mapping[str, Any], seconds: float) -> None:
        """Note how long the loop has trained the modules among `objects`, or in the attributes of one of them."""
        found: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        for thing in objects.values():
            inside = [thing, *getattr(thing, "__dict__", {}).values()] if not isinstance(thing, nn.Module) else [thing]
            for module in inside:
                if isinstance(module, nn.Module):
                    found.add(module)
        self._loops[loop] = (seconds, found)

    def of(self, model: nn.Module) -> float | None:
        """Return the seconds of all loops that saved `model`, a part of it or what it is a part of; None when none did."""
        parts = set(model.modules())
        mine = [
            seconds
            for seconds, saved in self._loops.values()
            if any(module in parts or any(part is model for part in module.modules()) for module in saved)
        ]
        return sum(mine) if mine else None


def draw_timed(model: nn.Module, cameras: Cameras, background: float | Tensor) -> tuple[Tensor, float]:
    """Return pictures [n, H, W, 3] of n cameras, and the median seconds of one; the first is drawn twice and timed once."""
    from nsw.renderers import render_view

    drawn, seconds = [], []
    with torch.no_grad():
        for i in (0, *range(len(cameras))):
            began = time.perf_counter()
            drawn.append(render_view(model, cameras[i], background=background).rgb.detach().cpu())
            seconds.append(time.perf_counter() - began)
    return torch.cat(drawn[1:]), statistics.median(seconds[1:])


def measure(model: nn.Module, scene: Any, preset: str) -> dict[str, Any]:
    """Return PSNR on test views, and pictures a second, as `nsw.renderers.render_view` draws them at the scene's size."""
    from nsw import metrics

    frames = scene.frames("test")
    n = min(VIEWS[preset], len(frames))
    frames = frames[torch.linspace(0, len(frames) - 1, n).round().long()]
    background = scene.behind
    pictures, seconds = draw_timed(model, scene.views(frames), background)
    return {
        "scene": scene.name,
        "width": scene.cameras.width,
        "height": scene.cameras.height,
        "psnr": round(metrics.psnr(pictures, scene.pixels(frames, background)), 3),
        "views": n,
        "protocol": {"name": metrics.PROTOCOL, "version": metrics.PROTOCOL_VERSION},
        "pictures_per_second": float(f"{1 / max(seconds, 1e-9):.4g}"),
    }


def write(
    folder: Path, model: nn.Module, scene: Any, seconds: float | None, about: Mapping[str, Any], preset: str = "smoke"
) -> dict[str, Any]:
    """Write the card of a model that was saved to `folder`, and return it.

    Args:
        seconds: of training; None when nobody knows.
        about: further entries, for example slug, seed, hardware and date.
        preset: how many test views are drawn.
    """
    from nsw.models.state import write_json
    from nsw.renderers import can_draw

    card = {
        "format": FORMAT,
        "name": folder.name,
        **about,
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": (folder / "model.safetensors").stat().st_size,
        "seconds_to_train": None if seconds is None else round(seconds, 2),
    }
    if scene is not None and can_draw(model):
        card |= measure(model, scene, preset)
    write_json(folder / "card.json", card)
    return card
