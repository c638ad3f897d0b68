"""Claims of a paper beside what this very run measured."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nsw.errors import InputError
from nsw.runs.settings import PRESETS

HOLDS, FAILS, SHOWN = "holds", "not reproduced", "not asserted"
MEASURES = ("difference", "ratio", "value")
Numbers = float | Sequence[float]


class ClaimError(AssertionError):
    """A claim of the notebook does not hold in this run, or cannot be certified."""


@dataclass(frozen=True, repr=False)
class Claim:
    """One row of the claim table.

    Attributes:
        title: what is claimed, in words.
        ours, baseline: means of what this run measured; `ours_values` and `baseline_values` are the single values.
        measure: "difference": how much better ours is than the baseline, in `unit`; "ratio": ours / baseline; "value": ours.
        gain: the measured difference, ratio or value; `gain_values` per seed of this run.
        at_least, at_most: the thresholds at this preset; None where there is none.
        unit: unit of ours and baseline.
        better: "higher" or "lower".
        paper, paper_value, dataset, hardware: the paper's claim and where it was measured.
        verdict: "holds", "not reproduced", or "not asserted" for a row that has no threshold here, or met one it is not held to.
        asserted: whether the row stops the notebook where it does not hold.
        recorded: {"n", "mean", "min", "max"} of the gain over recorded runs of other seeds, or None.
    """

    title: str
    ours: float
    baseline: float | None
    measure: str
    gain: float
    at_least: float | None
    at_most: float | None
    unit: str
    better: str
    paper: str
    paper_value: str
    dataset: str
    hardware: str
    verdict: str
    asserted: bool = True
    ours_values: tuple[float, ...] = ()
    baseline_values: tuple[float, ...] = ()
    gain_values: tuple[float, ...] = ()
    recorded: dict[str, float] | None = field(default=None)

    def __repr__(self) -> str:
        baseline = "" if self.baseline is None else f"baseline {self.baseline:.4g}, "
        paper = f"; paper: {self.paper_value} ({self.dataset}; {self.hardware})" if self.paper_value else ""
        numbers = f"{baseline}ours {self.ours:.4g} {self.unit}; measured {self.measured}, asked {self.asked}"
        return f"{self.verdict}: {self.title}: {numbers}{paper}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def asked(self) -> str:
        """What was asked for, in words: "at least 1.5 dB better", "at most 0.3 dB worse", "at most 0.5 x"."""
        unit = " x" if self.measure == "ratio" else f" {self.unit}".rstrip()
        parts = []
        for word, opposite, value in (("at least", "at most", self.at_least), ("at most", "at least", self.at_most)):
            if value is None:
                continue
            if self.measure != "difference":
                parts.append(f"{word} {value:g}{unit}")
            elif value < 0:
                parts.append(f"{opposite} {-value:g}{unit} worse")
            else:
                parts.append(f"{word} {value:g}{unit} better")
        return " and ".join(parts)

    @property
    def measured(self) -> str:
        """What was measured, in the words of `asked`."""
        sign = "+" if self.measure == "difference" else ""
        return f"{self.gain:{sign}.3g}" + (" x" if self.measure == "ratio" else f" {self.unit}".rstrip())


def _values(name: str, title: str, value: Any) -> tuple[float, ...]:
    if value is None:
        return ()
    items = value if isinstance(value, list | tuple) else [value]
    try:
        numbers = tuple(float(item) for item in items)
    except (TypeError, ValueError):
        raise InputError(f'Claim "{title}": {name} is {value!r}, expected a number or a list of numbers over seeds.') from None
    if not numbers:
        raise InputError(f'Claim "{title}": {name} is an empty list, expected at least one number.')
    return numbers


def _threshold(name: str, title: str, value: Any, preset: str) -> float | None:
    if isinstance(value, tuple | list):
        if len(value) != len(PRESETS):
            raise InputError(f'Claim "{title}": {name} is {value!r}, expected one number or three (smoke, laptop, gpu).')
        value = value[PRESETS.index(preset)]
    if value is None:
        return None
    return _values(name, title, value)[0]


def _gain(measure: str, better: str, ours: float, baseline: float | None) -> float:
    if measure == "value":
        return ours
    if measure == "ratio":
        return ours / baseline if baseline else math.nan
    return ours - baseline if better == "higher" else baseline - ours


def meets(gain: float | None, at_least: float | None, at_most: float | None) -> bool:
    """Return whether a gain is a number between the thresholds; None is no threshold, and for the gain no number.

    >>> meets(0.4, 0.5, None), meets(0.4, None, 0.5), meets(math.nan, None, None)
    (False, True, False)
    """
    number = gain is not None and math.isfinite(gain)
    return number and (at_least is None or gain >= at_least) and (at_most is None or gain <= at_most)


def make_claim(
    title: str,
    *,
    preset: str,
    ours: Numbers,
    baseline: Numbers | None = None,
    at_least: Any = None,
    at_most: Any = None,
    measure: str = "difference",
    unit: str = "dB",
    better: str = "higher",
    paper: str = "",
    paper_value: str = "",
    dataset: str = "",
    hardware: str = "",
    presets: Sequence[str] = PRESETS,
    judged: bool = True,
    recorded: dict[str, float] | None = None,
) -> Claim:
    """Return the row with its verdict; see `nsw.runs.run.Run.claim`. A row that is not `judged` is neither held nor failed.

    >>> make_claim("sharper", preset="smoke", ours=[27.0, 27.4], baseline=25.0, at_least=1.5).verdict
    'holds'
    """
    if measure not in MEASURES or better not in ("higher", "lower"):
        raise InputError(f'Claim "{title}": measure is one of {", ".join(MEASURES)}, better is higher or lower.')
    if at_least is None and at_most is None:
        raise InputError(f'Claim "{title}" has no threshold: give at_least= or at_most=.')
    if measure != "value" and baseline is None:
        raise InputError(f'Claim "{title}" compares, but has no baseline: give baseline=, or measure="value".')
    mine, theirs = _values("ours", title, ours), _values("baseline", title, baseline)
    low, high = _threshold("at_least", title, at_least, preset), _threshold("at_most", title, at_most, preset)
    mean_mine, mean_theirs = statistics.fmean(mine), statistics.fmean(theirs) if theirs else None
    paired = theirs if len(theirs) == len(mine) else (mean_theirs,) * len(mine)
    gain = _gain(measure, better, mean_mine, mean_theirs)
    has_threshold = judged and (low is not None or high is not None)
    asserted = has_threshold and preset in presets
    verdict = FAILS if has_threshold and not meets(gain, low, high) else HOLDS if asserted else SHOWN
    return Claim(
        title=title,
        ours=mean_mine,
        baseline=mean_theirs,
        measure=measure,
        gain=gain,
        at_least=low,
        at_most=high,
        unit=unit,
        better=better,
        paper=paper,
        paper_value=str(paper_value),
        dataset=dataset,
        hardware=hardware,
        verdict=verdict,
        asserted=asserted,
        ours_values=mine,
        baseline_values=theirs,
        gain_values=tuple(_gain(measure, better, a, b) for a, b in zip(mine, paired, strict=True)),
        recorded=recorded,
    )


def edited_functions() -> list[str]:
    """Return the names of functions that a learner has swapped; none while the editor was never loaded."""
    editor = sys.modules.get("nsw.widgets.editing")
    return list(editor.edited()) if editor is not None else []


def stops(row: Mapping[str, Any]) -> bool:
    """Return whether a stored row stops its notebook: it is asserted and did not hold."""
    return row["verdict"] == FAILS and row.get("asserted", True)


class Claims:
    """The rows of a run, in order; a row of the same title replaces the earlier one."""

    def __init__(self) -> None:
        self.rows: list[Claim] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)

    def add(self, row: Claim) -> None:
        for i, old in enumerate(self.rows):
            if old.title == row.title:
                self.rows[i] = row
                return
        self.rows.append(row)

    @property
    def edited(self) -> list[str]:
        """Names of functions that differ from the package's while this table is shown."""
        return edited_functions()

    def check(self) -> None:
        """Raise `ClaimError` unless every asserted claim holds and every function is the package's own."""
        if self.edited:
            raise ClaimError(f"Not certified: {', '.join(self.edited)} is edited; nsw.widgets.restore() brings the original back.")
        if not self.rows:
            raise ClaimError("This run has made no claim: nothing was checked.")
        failed = [row for row in self.rows if row.verdict == FAILS and row.asserted]
        if failed:
            lines = "; ".join(f"{row.title}: measured {row.measured}, asked {row.asked}" for row in failed)
            raise ClaimError(f"{len(failed)} of {len(self.rows)} claims not reproduced in this run: {lines}.")

    def _repr_html_(self) -> str:
        from nsw.widgets.tables import claim_html

        return claim_html(self.rows, self.edited)

    def __repr__(self) -> str:
        if not self.rows:
            return "no claims yet"
        lines = [f"Not certified while {', '.join(self.edited)} is edited."] if self.edited else []
        return "\n".join([*lines, *map(repr, self.rows)])
