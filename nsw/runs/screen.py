"""Progress of several notebooks on one terminal, or in a log."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from nsw.runs.progress import duration

if TYPE_CHECKING:
    from nsw.runs.headless import Job


class Screen:
    """Progress of all jobs: one line kept up to date in a terminal, a line now and then elsewhere."""

    def __init__(self, stream: Any = None, interval: float = 15.0) -> None:
        self._stream, self._interval = stream or sys.stderr, interval
        self._live = self._stream.isatty()
        self._lock = threading.Lock()
        self._running: dict[str, tuple[Job, float, int, int, str]] = {}
        self._next = 0.0

    def begin(self, job: Job) -> None:
        expected = job.expected_seconds
        self._line(f"{job.name}: starts" + (f", {duration(expected)} when measured" if expected else ""))

    def update(self, job: Job, began: float, done: int, total: int, line: str) -> None:
        """Note where a job stands: cells done, cells in all, and the last line it printed."""
        with self._lock:
            previous = self._running.get(job.name)
            self._running[job.name] = (job, began, done, total, line or (previous[4] if previous else ""))
        self.tick()

    def tick(self) -> None:
        """Show where all jobs stand, with the time that has passed."""
        with self._lock:
            if self._live:
                text = "   ".join(_status(*state) for state in self._running.values())
                self._stream.write("\r\x1b[K" + text[: _width() - 1])
                self._stream.flush()
            elif self._running and time.monotonic() >= self._next:
                self._next = time.monotonic() + self._interval
                self._stream.write("".join(f"  {_status(*state)}\n" for state in self._running.values()))
                self._stream.flush()

    def end(self, job: Job) -> None:
        with self._lock:
            self._running.pop(job.name, None)
        assert job.outcome is not None
        self._line(f"{job.name}: {job.verdict[0]} after {duration(job.outcome.seconds)}")

    def _line(self, text: str) -> None:
        with self._lock:
            self._stream.write(("\r\x1b[K" if self._live else "") + text + "\n")
            self._stream.flush()


def _status(job: Job, began: float, done: int, total: int, line: str) -> str:
    seconds, expected = time.monotonic() - began, job.expected_seconds
    left = f", about {duration(expected - seconds)} left" if expected and seconds < expected else ""
    return f"{job.path.stem} cell {min(done + 1, total)}/{total}, {duration(seconds)}{left}" + (f" | {line}" if line else "")


def _width() -> int:
    import shutil

    return shutil.get_terminal_size((120, 24)).columns
