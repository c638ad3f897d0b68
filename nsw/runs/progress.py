"""Progress of a loop: a right ETA, and one line, bar or panel, whichever the place can show."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Protocol, TypeVar

from nsw.errors import InputError

T = TypeVar("T")


class Eta:
    """Time left, from the steps of this session only, recent ones counting most.

    Args:
        total: steps in all.
        done: steps done in earlier sessions.
        clock: returns seconds.
        memory: seconds after which a step's weight has fallen to 1/e.
        unlike: so many steps at the start of the session say nothing about the others: the first one compiles kernels.
    """

    def __init__(
        self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic, memory: float = 10.0, unlike: int = 1
    ) -> None:
        self.total, self.done, self._clock, self._memory, self._unlike = total, done, clock, memory, unlike
        self._last = self._start = clock()
        self._seconds = self._steps = 0.0
        self._paused = 0.0

    def step(self) -> None:
        """Count one finished step."""
        now = self._clock()
        passed = now - self._last
        if self._unlike:
            self._unlike -= 1
        else:
            keep = math.exp(-passed / self._memory)
            self._seconds = self._seconds * keep + passed
            self._steps = self._steps * keep + 1.0
        self._last = now
        self.done += 1

    def skip(self) -> None:
        """Leave out the time since the last step: a pause, a picture, a checkpoint."""
        now = self._clock()
        self._paused += now - self._last
        self._last = now

    @property
    def elapsed(self) -> float:
        """Seconds of this session."""
        return self._clock() - self._start

    @property
    def working(self) -> float:
        """Seconds of this session that went into finished steps: without pauses, pictures and checkpoints."""
        return self._last - self._start - self._paused

    @property
    def remaining(self) -> float | None:
        """Seconds left, or None before a step that counts. Pictures and checkpoints weigh as they did so far."""
        if not self._steps:
            return None
        working = max(self.working, 1e-9)
        overhead = 1.0 + min(self._paused / working, 1.0)
        return self._seconds / self._steps * (self.total - self.done) * overhead


def duration(seconds: float | None) -> str:
    """Return seconds as a person would say them.

    >>> duration(4.2), duration(75), duration(3725), duration(None)
    ('4 s', '1 min 15 s', '1 h 2 min', '?')
    """
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def numbers(values: Mapping[str, float]) -> str:
    """Return named numbers in one short line.

    >>> numbers({"loss": 0.0123456, "psnr": 28.5})
    'loss 0.01235  psnr 28.5'
    """
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


class Reporter(Protocol):
    """What a loop tells its progress to; `nsw.widgets.training_panel` is one with buttons."""

    paused: bool
    stopped: bool

    def update(self, step: int, values: Mapping[str, float], image: Any = None) -> None: ...

    def close(self) -> None: ...


class Lines:
    """Plain lines at a low rate: for logs and executed notebooks."""

    paused = stopped = False

    def __init__(self, eta: Eta, name: str, interval: float = 10.0) -> None:
        self._eta, self._name, self._interval = eta, name, interval
        self._next = time.monotonic() + interval / 4

    def update(self, step: int, values: Mapping[str, float], image: Any = None) -> None:
        finished = step >= self._eta.total
        if finished or time.monotonic() >= self._next:
            self._next = time.monotonic() + self._interval
            left = "" if finished else f", {duration(self._eta.remaining)} left"
            print(f"{self._name} {step}/{self._eta.total}  {numbers(values)}  {duration(self._eta.elapsed)}{left}", flush=True)
        if image is not None and not isinstance(image, str) and in_kernel():
            from nsw.widgets import show

            show(image, alt=f"{self._name}: the picture after {step} steps")

    def close(self) -> None:
        sys.stdout.flush()


class Bar:
    """A tqdm bar in a terminal or a notebook."""

    paused = stopped = False

    def __init__(self, eta: Eta, name: str) -> None:
        from tqdm.auto import tqdm

        layout = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"  # tqdm puts a comma before the postfix
        self._eta = eta
        self._bar = tqdm(total=eta.total, initial=eta.done, desc=name, bar_format=layout, dynamic_ncols=True, leave=True)

    def update(self, step: int, values: Mapping[str, float], image: Any = None) -> None:
        time_spent = f"{duration(self._eta.elapsed)}, {duration(self._eta.remaining)} left"
        self._bar.set_postfix_str("  ".join(part for part in (numbers(values), time_spent) if part), refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def in_notebook() -> bool:
    """Return whether a person sits in front of a notebook; False in plain Python and in notebooks run by papermill."""
    from nsw.widgets.frontend import live

    return live()


def in_kernel() -> bool:
    """Return whether the code runs in a Jupyter kernel, watched or not."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def reporter(run: Any, eta: Eta, name: str) -> Reporter:
    """Return the panel, the bar or the lines that fit the place."""
    if in_notebook():
        from nsw.widgets import training_panel

        return training_panel(run, eta.total, name)
    return Bar(eta, name) if sys.stderr.isatty() and not in_kernel() else Lines(eta, name)


class Silent:
    """Show nothing."""

    paused = stopped = False

    def update(self, step: int, values: Mapping[str, float], image: Any = None) -> None:
        pass

    def close(self) -> None:
        pass


def quiet_reporter(eta: Eta, name: str, shown: bool = True) -> Reporter:
    """Return a bar or lines, without buttons, for work that is not done in this process; or what shows nothing."""
    if not shown:
        return Silent()
    return Bar(eta, name) if in_notebook() or (sys.stderr.isatty() and not in_kernel()) else Lines(eta, name)


def track(items: Iterable[T], name: str, total: int | None = None) -> Iterator[T]:
    """Yield items with a bar and the time left: for long work that is no training loop of its own, such as a row of trainings.

    Args:
        items: what is gone through.
        total: how many there are; by default the length of `items`.
        name: names the bar.

    Raises:
        InputError: for items without a length, and no total.

    >>> list(track("abc", "letters"))
    letters 3/3    0 s
    ['a', 'b', 'c']
    """
    if total is None and not isinstance(items, Sized):
        raise InputError(f'track(items, "{name}") was given a {type(items).__name__}, which has no length: say total=.')
    eta = Eta(
        len(items) if total is None else total, memory=1e9, unlike=0
    )  # few and unlike each other: only their mean rate says something
    with contextlib.closing(quiet_reporter(eta, name)) as bar:
        for item in items:
            yield item
            eta.step()
            bar.update(eta.done, {})
