"""Buttons that work while a cell is running.

A kernel handles messages one after another, so a click waits until the running cell has ended. ipykernel 7 can handle
messages in threads beside the main one ("subshells"), but from 7.4 on it sends a widget's messages back to the shell that
last used the widget: to the very cell that is running. What must answer at once, a training's buttons and the viewer, is therefore
given a subshell of its own.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

_TIMEOUT = 5.0


def _own_subshell(kernel: Any) -> str | None:
    """Return the id of this module's subshell of the kernel, created on first use; None where there are no subshells."""
    manager = getattr(getattr(kernel, "shell_channel_thread", None), "manager", None)
    if manager is None:
        return None
    known = getattr(kernel, "_nsw_subshell", None)
    if known in manager.list_subshell():
        return known
    created: concurrent.futures.Future[str] = concurrent.futures.Future()

    def create() -> None:  # subshells may only be made in the thread of the shell channel
        try:
            created.set_result(manager._create_subshell())
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            created.set_exception(error)

    manager._shell_channel_io_loop.add_callback(create)
    kernel._nsw_subshell = created.result(_TIMEOUT)
    return kernel._nsw_subshell


def answer_at_once(*widgets: Any) -> bool:
    """Let messages of these widgets be handled while a cell is running; return whether the kernel can.

    Their callbacks then run in a thread of their own, beside the cell: they may set a flag, or draw what the cell is changing.
    """
    from nsw.widgets.frontend import shell

    try:
        subshell = _own_subshell(getattr(shell(), "kernel", None))
    except (AttributeError, RuntimeError, AssertionError, concurrent.futures.TimeoutError):
        return False  # a kernel of another make: clicks are handled after the cell, Ctrl-C and "interrupt" work as ever
    if subshell is None:
        return False
    for widget in widgets:
        widget.comm._reply_subshell_for = lambda data, asked: asked or subshell
    return True
