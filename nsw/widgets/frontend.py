"""What the kernel knows about the front end, and the scheduler that keeps interaction latest-wins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

_seen_front_end = False


def live() -> bool:
    """Say whether an interactive notebook front end is attached to this kernel.

    JupyterLab, Notebook 7 and VS Code send the cell's id with every execution, and front ends with a person before them
    allow input; papermill, nbclient and plain Python do neither. Once a front end was seen, the kernel keeps counting as
    live: callbacks carry no cell id.
    """
    global _seen_front_end
    kernel = getattr(shell(), "kernel", None)
    if kernel is None:
        return False
    metadata = (kernel.get_parent() or {}).get("metadata") or {}
    _seen_front_end = _seen_front_end or bool(metadata.get("cellId")) or bool(getattr(kernel, "_allow_stdin", False))
    return _seen_front_end


def shell():
    """Return the running IPython shell or None, without importing IPython where nobody did."""
    import sys

    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    return get_ipython()


def emit(data: Mapping[str, Any], widget: Any = None, metadata: Mapping[str, Any] | None = None) -> None:
    """Display one bundle: the live widget when a front end is attached, and always the still in `data`.

    Both travel in one output, so a live notebook shows the widget alone and a saved or converted one its still.
    """
    from IPython.display import display

    bundle = dict(data)
    if widget is not None and live():
        bundle["application/vnd.jupyter.widget-view+json"] = {
            "version_major": 2,
            "version_minor": 0,
            "model_id": widget.model_id,
        }
    display(bundle, metadata=dict(metadata or {}), raw=True)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the kernel's event loop, or None outside of one (plain Python, tests)."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def failure_line(error: BaseException) -> str:
    """Return the one line shown in red when a callback fails."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:400]


class Latest:
    """Call `work(value, coarse)` for the newest value only.

    Values that arrive while one is being drawn, or within `settle` seconds, overwrite each other: nothing queues. With
    `coarse`, work is called with coarse=True while values keep coming and once with coarse=False `rest` seconds after
    the last one.
    """

    def __init__(self, work: Callable[[Any, bool], None], coarse: bool, settle: float = 0.015, rest: float = 0.25):
        self.work, self.coarse, self.settle, self.rest = work, coarse, settle, rest
        self.dropped = 0
        self._value: Any = None
        self._soon: asyncio.Handle | None = None
        self._full: asyncio.Handle | None = None

    def submit(self, value: Any) -> None:
        """Note the newest value and see to it that it is drawn."""
        self._value = value
        loop = running_loop()
        if loop is None:
            self.work(value, False)
            return
        if self._full is not None:
            self._full.cancel()
            self._full = None
        if self._soon is None:
            # A short delay lets the messages that piled up behind a slow drawing be read first: only the last one counts.
            self._soon = loop.call_later(self.settle, self._run)
        else:
            self.dropped += 1

    def _run(self) -> None:
        self._soon = None
        self.work(self._value, self.coarse)
        if self.coarse:
            self._full = asyncio.get_running_loop().call_later(self.rest, self._finish)

    def _finish(self) -> None:
        self._full = None
        self.work(self._value, False)
