"""The loop's other half: progress, live picture, stop, checkpoints and resume around a visible training loop."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from nsw import metrics
from nsw.errors import InputError
from nsw.runs.checkpoints import (
    checkpoint_path,
    load_checkpoint,
    random_states,
    restore_objects,
    restore_random_states,
    save_checkpoint,
)
from nsw.runs.events import answer_at_once
from nsw.runs.progress import Eta, in_notebook, reporter

if TYPE_CHECKING:
    from nsw.runs.run import Run

PICTURE_SECONDS = 1.5


class Stopped(KeyboardInterrupt):
    """A loop was stopped from the keyboard after a step, with its checkpoint written."""


class _Interrupts:
    """Turn the first Ctrl-C into a flag, so that the step and its checkpoint end well; the second one interrupts."""

    def __init__(self) -> None:
        self.seen = False
        self._previous: Any = None

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, signum: int, frame: Any) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


def _restore(run: Run, n: int, name: str, objects: Mapping[str, Any]) -> tuple[int, float]:
    """Load the loop's checkpoint of this run and return the steps and seconds done; 0 without one."""
    path = checkpoint_path(run.folder, name)
    if not (run.resume and path.is_file()):
        return 0, 0.0
    stored = load_checkpoint(path)
    about = stored["about"]
    now = _about(run, n)
    for key, value in now.items():
        if about.get(key) != value:
            raise InputError(
                f"The checkpoint {path} was made with {key} {about.get(key)}, this run has {value}: "
                "use the same values, or start again with resume=False."
            )
    restore_objects(objects, stored["objects"], path)
    restore_random_states(stored["random"], run.generator)
    run.log.extend(about["log"])
    return about["done"], about.get("seconds", 0.0)


def _about(run: Run, n: int) -> dict[str, Any]:
    """Return what must be the same for a resumed loop to be the same loop."""
    return json.loads(json.dumps({"steps": n, "seed": run.seed, "preset": run.preset, "settings": run.provenance["settings"]}))


def _save(run: Run, n: int, name: str, objects: Mapping[str, Any], done: int, seconds: float) -> None:
    log = [entry for entry in run.log if entry["loop"] == name]
    about = {**_about(run, n), "done": done, "seconds": seconds, "log": log}
    save_checkpoint(checkpoint_path(run.folder, name), objects, about, run.generator)


def _interval(run: Run, cost: float) -> float:
    """Return the seconds between two checkpoints: longer where one takes long to write."""
    return max(run.checkpoint_seconds, min(20 * cost, 10 * run.checkpoint_seconds))


def _draw(run: Run, picture: Callable[[], Any]) -> Any:
    """Call `picture` without gradients and without touching any random state."""
    states = random_states(run.generator)
    try:
        with torch.no_grad():
            return picture()
    finally:
        restore_random_states(states, run.generator)


def _check(n: Any, name: Any, save: Mapping[str, Any] | None) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise InputError(f"run.steps was given n = {n!r}: expected a whole number of steps, 0 or more.")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_., -]{0,62}[A-Za-z0-9_-])?", name):
        raise InputError(f'The loop name "{name}" cannot name a file: use letters, digits, spaces, "," "-" and "_".')
    for key, thing in (save or {}).items():
        if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
            raise InputError(f'save["{key}"] is a {type(thing).__name__}: expected an object with state_dict and load_state_dict.')


class _Between:
    """What a loop does between two steps: a live picture, the bar, a checkpoint, a pause. No clock counts it."""

    def __init__(self, run: Run, n: int, name: str, save: Mapping[str, Any] | None, picture: Callable | None, every: int | None):
        self.run, self.n, self.name, self.save, self.picture, self.every = run, n, name, save, picture, every
        self.saved = self.shown = time.monotonic()
        self.cost = 0.0

    def __call__(self, report: Any, interrupts: _Interrupts, done: int, last: bool, seconds: float) -> None:
        drawing = self.picture is not None and _picture_due(done, self.every, last, self.shown)
        saving = self.save is not None and (last or time.monotonic() - self.saved >= _interval(self.run, self.cost))
        with metrics.left_out(wait=drawing or saving or report.paused):
            image = None
            if drawing:
                began = time.monotonic()
                image = _draw(self.run, self.picture)
                self.shown = time.monotonic() + 4 * (time.monotonic() - began)  # at most a fifth of the time goes into pictures
            report.update(done, self.run.latest(), image)
            if saving:
                began = time.monotonic()
                _save(self.run, self.n, self.name, self.save, done, seconds)
                self.saved = time.monotonic()
                self.cost = self.saved - began
            while report.paused and not (report.stopped or interrupts.seen):
                time.sleep(0.05)


def steps(
    run: Run,
    n: int,
    *,
    name: str = "train",
    save: Mapping[str, Any] | None = None,
    picture: Callable[[], Any] | None = None,
    every: int | None = None,
) -> Iterator[int]:
    """Yield the step numbers that are left; see `Run.steps`."""
    _check(n, name, save)
    with metrics.left_out():
        done, earlier = (0, 0.0) if save is None else _restore(run, n, name, save)
        seconds = earlier
        run.trained.note(name, save or {}, seconds)
        if n and done >= n:
            print(f"{name}: all {n} steps were done earlier; their result is restored.")
            return
        if done:
            print(f"{name}: continues at step {done} of {n}.")
        eta = Eta(n, done)
        report = reporter(run, eta, name)
        if in_notebook():
            buttons = (getattr(report, button) for button in ("pause_button", "stop_button") if hasattr(report, button))
            answer_at_once(*buttons)
    between, stopped = _Between(run, n, name, save, picture, every), False
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(_Interrupts())
        stack.enter_context(run._inside())
        stack.callback(report.close)
        stack.callback(lambda: run.trained.note(name, save or {}, seconds))
        for step in range(done, n):
            run._enter(name, step)
            yield step
            done = step + 1
            eta.step()
            seconds = earlier + eta.working
            stopped = interrupts.seen or report.stopped
            between(report, interrupts, done, stopped or done == n, seconds)
            eta.skip()
            if stopped and done < n:
                break
            stopped = False
    if stopped:
        _say_stopped(done, n, name, save is not None)


def _picture_due(done: int, every: int | None, last: bool, shown: float) -> bool:
    if last:
        return True
    if not in_notebook():
        return False
    return done % every == 0 if every else time.monotonic() - shown >= PICTURE_SECONDS


def _say_stopped(done: int, n: int, name: str, kept: bool) -> None:
    """Say where the loop stopped; outside a watched notebook, end the program too."""
    how = "checkpoint kept; run with resume=True to continue" if kept else "no checkpoint, because the loop saves nothing"
    text = f"{name} stopped at step {done} of {n}, {how}."
    if not in_notebook():
        raise Stopped(text)
    print(text)
