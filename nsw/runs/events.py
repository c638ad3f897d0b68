"""Buttons that work while a cell is running.

JupyterLab from 4.4 on sends widget messages to a kernel of ipykernel 7 through subshells: their callbacks then run in
threads of their own and nothing has to be done here. Other front ends and older kernels put them into the queue that the
running cell blocks: `EventPump` takes them out between two steps.
"""

from __future__ import annotations

import time


class EventPump:
    """Handle waiting widget messages from within a running cell, at most every `interval` seconds."""

    def __init__(self, interval: float = 0.1) -> None:
        self._interval, self._next = interval, 0.0

    def poll(self) -> None:
        """Handle what is waiting, when it is time to."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._interval

    def wait(self, seconds: float = 0.05) -> None:
        """Let `seconds` pass and handle what came in."""
        time.sleep(seconds)
        self.poll()

    def close(self) -> None:
        """Give the queue back to the kernel."""
