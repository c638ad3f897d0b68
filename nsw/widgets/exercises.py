"""Exercise checks that answer in one friendly line instead of a traceback."""

from __future__ import annotations

import copy
import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from nsw.errors import InputError
from nsw.widgets.frontend import emit, failure_line


def check(
    answer: Any,
    reference: Any,
    inputs: Sequence[Any] | None = None,
    tolerance: float = 1e-4,
    hint: str = "",
    strict: bool = False,
) -> None:
    """Compare a learner's answer with the reference and say in one line how it stands.

    Args:
        answer: a function, or a value; None or `...` means "not answered yet".
        reference: the function or value to agree with; for a function also a list of expected values, one per input.
        inputs: argument tuples (or single arguments) that a function answer is tried on.
        tolerance: largest allowed absolute difference, relative to the reference where that is above 1.
        hint: shown while the answer is not right.
        strict: raise AssertionError instead of showing what is wrong; for solution cells.

    Raises:
        AssertionError: with `strict`, when the answer is missing or wrong.
    """
    said = _judge(answer, reference, inputs, tolerance)
    if said is None:
        tried = f" on all {len(inputs)} inputs" if inputs is not None else ""
        _line("\u2713 Right", f"your answer agrees with the reference{tried}.", "#00734d")
        return
    if strict:
        raise AssertionError(said)
    _line("\u25cb Not yet", said, "#b35900", hint)


def _judge(answer: Any, reference: Any, inputs: Sequence[Any] | None, tolerance: float) -> str | None:
    """Return what is wrong with the answer, or None when it is right."""
    if answer is None or answer is Ellipsis:
        return "there is no answer yet: replace the dots."
    if inputs is None:
        if callable(answer):
            raise InputError("check() got a function as the answer: pass inputs=[...] to try it on.")
        return _difference(answer, reference, tolerance, "your answer")
    if not callable(answer):
        return f"expected a function, got {type(answer).__name__}."
    for i, given in enumerate(inputs):
        arguments = given if isinstance(given, tuple) else (given,)
        # Each side gets its own copy: an answer that works in place must not change what the reference sees.
        expected = reference(*copy.deepcopy(arguments)) if callable(reference) else reference[i]
        shown = f"input {i + 1} of {len(inputs)}, ({', '.join(_short(a) for a in arguments)})"
        try:
            got = answer(*copy.deepcopy(arguments))
        except Exception as error:  # a learner's function may raise anything; the line must say it and the notebook go on
            return f"on {shown} your function raised {failure_line(error)}."
        if got is None or got is Ellipsis or got is NotImplemented:
            return f"on {shown} your function returned {got!r}: does it end with return?"
        wrong = _difference(got, expected, tolerance, f"on {shown} your function")
        if wrong:
            return wrong
    return None


def _numbers(value: Any) -> np.ndarray | None:
    """Return numbers as float64, or None for anything else."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _difference(got: Any, expected: Any, tolerance: float, who: str) -> str | None:
    """Return how two answers differ, or None when they agree within tolerance."""
    if isinstance(expected, tuple) and isinstance(got, tuple) and len(got) == len(expected):
        parts = (_difference(g, e, tolerance, f"{who}, part {i + 1},") for i, (g, e) in enumerate(zip(got, expected, strict=True)))
        return next((part for part in parts if part), None)
    mine, right = _numbers(got), _numbers(expected)
    if mine is None or right is None:
        return (
            None if type(got) is type(expected) and got == expected else f"{who} gives {_short(got)}, expected {_short(expected)}."
        )
    if mine.shape != right.shape:
        return f"{who} gives shape {list(mine.shape)}, expected {list(right.shape)}."
    same = (mine == right) | (np.isnan(mine) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        close = np.abs(mine - right) <= tolerance * np.maximum(1.0, np.abs(right))
    wrong = np.argwhere(~(same | close))
    if not len(wrong):
        return None
    at = tuple(int(v) for v in wrong[0])
    place = f" at index {list(at)}" if at else ""
    share = f"tolerance {tolerance:g}, {len(wrong)} of {mine.size} values differ"
    return f"{who} gives {mine[at]:.6g}{place}, expected {right[at]:.6g} ({share})."


def _short(value: Any) -> str:
    """Return a value in a few words."""
    if hasattr(value, "shape") and getattr(value, "ndim", 0) > 0:
        numbers = _numbers(value)
        if numbers is not None and numbers.size <= 4:
            return str(np.round(numbers, 4).tolist())
        return f"{type(value).__name__} {list(value.shape)}"
    text = f"{float(value):.6g}" if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(mark: str, text: str, colour: str, hint: str = "") -> None:
    more = f'<div style="opacity:0.85">Hint: {html.escape(hint)}</div>' if hint else ""
    shown = (
        f'<div role="status" style="border-left:4px solid {colour};padding:0.2em 0.7em;margin:0.2em 0">'
        f'<b style="color:{colour}">{html.escape(mark)}</b>: {html.escape(text)}{more}</div>'
    )
    emit({"text/html": shown, "text/plain": f"{mark}: {text}" + (f" Hint: {hint}" if hint else "")})
