"""Execute one notebook in a kernel of this very Python: time limit, memory, progress, and a dead kernel noticed."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Listener = Callable[[int, int, str], None]  # (cells done, cells in all, last line printed)


@dataclass
class Outcome:
    """How an execution ended: `status` is "ok", "failed", "timeout", "died" or "stopped"; `reason` is one sentence."""

    status: str = "ok"
    reason: str = ""
    seconds: float = 0.0
    peak_mb: float = 0.0


class MemoryWatch(threading.Thread):
    """Sample the resident memory of a process and its children, keeping the peak."""

    def __init__(self, pid: int, interval: float = 0.2) -> None:
        super().__init__(daemon=True)
        self._pid, self._interval, self._ended = pid, interval, threading.Event()
        self.peak_mb = 0.0

    def sample(self) -> None:
        import psutil

        try:
            process = psutil.Process(self._pid)
            total = process.memory_info().rss
            for child in process.children(recursive=True):
                total += child.memory_info().rss
        except psutil.Error:
            return
        self.peak_mb = max(self.peak_mb, total / 2**20)

    def run(self) -> None:
        self.sample()
        while not self._ended.wait(self._interval):
            self.sample()

    def stop(self) -> float:
        """End the watch and return the peak in MB."""
        self._ended.set()
        self.join()
        return self.peak_mb


def own_kernel_manager() -> Any:
    """Return a kernel manager whose kernel is this interpreter, whatever kernels the machine has registered."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    manager = AsyncKernelManager(kernel_name="python3")
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=40"]
    manager._kernel_spec = KernelSpec(argv=argv, display_name="Python 3", language="python")
    return manager


@dataclass
class Execution:
    """One notebook being executed; `interrupt` and `kill` may be called from another thread."""

    notebook: Any
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    limit: float = 3600.0
    listen: Listener | None = None
    _loop: Any = None
    _manager: Any = None
    _stopped: bool = False
    cells_started: bool = False

    def run(self) -> Outcome:
        """Execute every cell; the notebook is filled in place, up to the cell that failed."""
        began = time.monotonic()
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            outcome = runner.run(self._execute(began + self.limit))
        outcome.seconds = time.monotonic() - began
        return outcome

    def interrupt(self) -> None:
        """Ask the running cell to stop, as Ctrl-C would; a training loop then writes its checkpoint first."""
        self._stopped = True
        if self.cells_started:
            self._call("interrupt_kernel")
        else:
            self._call("shutdown_kernel", now=True)

    def kill(self) -> None:
        """End the kernel at once."""
        self._stopped = True
        self._call("shutdown_kernel", now=True)

    def _call(self, method: str, **kwargs: Any) -> None:
        if self._manager is not None and self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(getattr(self._manager, method)(**kwargs), self._loop)

    async def _execute(self, deadline: float) -> Outcome:
        from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

        self._loop, self._manager = asyncio.get_running_loop(), own_kernel_manager()
        client = _client(self, deadline)
        outcome, watch = Outcome(), None
        environment = {**os.environ, **self.environment}
        try:
            await client.async_start_new_kernel(env=environment)
            watch = MemoryWatch(self._manager.provisioner.pid)
            watch.start()
            await client.async_execute(cleanup_kc=False)
        except CellTimeoutError:
            outcome = Outcome("timeout", f"over its time limit of {self.limit / 60:.3g} min in cell {client.position}")
        except DeadKernelError:
            outcome = Outcome("died", f"the kernel died in cell {client.position} (out of memory, or a crash in compiled code)")
        except CellExecutionError as error:
            text = " ".join(str(error.evalue).split())
            outcome = Outcome("failed", f"cell {client.position} raised {error.ename}: {text}")
            if error.ename in ("Stopped", "KeyboardInterrupt"):
                outcome = Outcome("stopped", text or f"interrupted in cell {client.position}")
        except RuntimeError as error:
            outcome = Outcome("died", f"the kernel did not start or ended early ({error})")
        finally:
            peak = watch.stop() if watch else 0.0
            await client.end()
        if self._stopped and outcome.status == "died":
            outcome = Outcome("stopped", f"interrupted in cell {client.position}")
        outcome.peak_mb = peak
        return outcome


def _client(execution: Execution, deadline: float) -> Any:
    """Return the nbclient that reports cells and printed lines, with what is left of the limit as each cell's timeout."""
    from nbclient import NotebookClient

    code = [i for i, cell in enumerate(execution.notebook.cells) if cell.cell_type == "code" and cell.source.strip()]

    class Client(NotebookClient):
        position = "0"

        def cell_started(self, cell: Any, cell_index: int) -> None:
            execution.cells_started = True
            done = sum(1 for i in code if i < cell_index)
            self.position = f"{done + 1} of {len(code)}"
            self.tell(done, "")

        def tell(self, done: int, line: str) -> None:
            self.done = done
            if execution.listen is not None:
                execution.listen(done, len(code), line)

        def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
            if msg["msg_type"] == "stream":
                lines = msg["content"]["text"].strip().splitlines()
                if lines:
                    self.tell(self.done, lines[-1])
            return super().process_message(msg, cell, cell_index)

        async def end(self) -> None:
            atexit.unregister(self._cleanup_kernel)
            if self.km is not None:
                await self._async_cleanup_kernel()

    client = Client(
        execution.notebook,
        km=execution._manager,
        timeout_func=lambda cell: max(1, round(deadline - time.monotonic())),
        resources={"metadata": {"path": str(execution.folder)}},
        shutdown_kernel="immediate",
        raise_on_iopub_timeout=True,
        allow_errors=False,
    )
    client.done = 0
    client.on_cell_start = lambda cell, cell_index: client.cell_started(cell, cell_index)
    return client
