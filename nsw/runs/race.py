"""Comparisons on equal budgets: models that take turns until each has had the same seconds, or the same rays, of training.

The seconds are given, or are those that a number of steps of one of them, the pacer, takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from nsw.errors import InputError
from nsw.metrics import clock as now
from nsw.runs.progress import Eta, Reporter, quiet_reporter

Contestant = tuple[Callable[[float], object], Callable[[], float]]  # a step, told which share of the budget is spent; a score in dB
Trace = list[tuple[float, float]]  # (seconds of training, score in dB)


def race(
    contestants: Mapping[str, Contestant],
    budget: float,
    at: Sequence[float] = (),
    cost: Callable[[object], float] | None = None,
    progress: bool = True,
    pacer: str | None = None,
) -> dict[str, Trace]:
    """Train several models on equal budgets, and return their scores when the given parts of it are spent and at the end.

    They take turns, a step each time to the one that has spent least, so that whatever else the machine does slows them all; a
    contestant's clock stops while it is scored and while others train. Seconds buy few steps on a slow or busy machine, and what
    is compared is then the start of a training. With a pacer they do not: it takes as many steps everywhere, and the others get
    the seconds that it took.

    Args:
        contestants: name -> (step, which takes the share of the budget that is spent; score in dB).
        budget: seconds of training, or the sum of the costs, or steps of the pacer.
        at: parts of the budget, in its unit, at which to score too.
        cost: of a step, from what it returned, such as its number of rays: a budget that buys the same on every machine.
            The times of the traces are seconds of training all the same.
        progress: show which part of the budget is spent, and the time left.
        pacer: the contestant whose steps are the budget. What all these will take is not known before, so the share of the
            others is their seconds times the pacer's steps a second so far.

    Raises:
        InputError: for a pacer that is no contestant, or has a cost beside it.
    """
    if pacer is not None and (pacer not in contestants or cost is not None):
        raise InputError(f'race(pacer="{pacer}"): expected one of {", ".join(contestants)}, and no cost beside it.')
    spent = dict.fromkeys(contestants if pacer is None else [pacer, *contestants], 0.0)  # the first of equals is next
    clock, share, n_paced = dict.fromkeys(contestants, 0.0), dict.fromkeys(contestants, 0.0), 0
    traces, due = {name: [] for name in contestants}, {name: sorted(t for t in at if t < budget) for name in contestants}
    eta = Eta(100, memory=1e9)  # per cent of the budget
    with contextlib.closing(quiet_reporter(eta, "equal budgets, %", progress)) as bar:
        while (least := min(spent.values())) < budget:
            _tell(eta, bar, least / budget)
            name = min(spent, key=spent.get)
            step, score = contestants[name]
            share[name] = max(share[name], min(1.0, spent[name] / budget))  # schedules never go back
            began = now()
            out = step(share[name])
            took = now() - began
            clock[name] += took
            if pacer is None:
                spent[name] += took if cost is None else cost(out)
            else:
                n_paced += name == pacer
                spent = _paced(clock, pacer, n_paced)
            if due[name] and spent[name] >= due[name][0]:
                due[name] = [t for t in due[name] if t > spent[name]]
                traces[name].append((clock[name], score()))
        _tell(eta, bar, 1.0)
    return {name: [*trace, (clock[name], contestants[name][1]())] for name, trace in traces.items()}


def _paced(clock: Mapping[str, float], pacer: str, n_paced: int) -> dict[str, float]:
    """Return how many of the pacer's steps each one's seconds are worth."""
    rate = n_paced / clock[pacer]
    return {pacer: float(n_paced)} | {name: seconds * rate for name, seconds in clock.items() if name != pacer}


def _tell(eta: Eta, bar: Reporter, share: float) -> None:
    if int(100 * share) > eta.done:
        while eta.done < int(100 * share):
            eta.step()
        bar.update(eta.done, {})


def seconds_to(trace: Trace, level: float) -> float:
    """Return when a trace passes a level in dB, by straight lines between scores; infinity where it never does.

    >>> seconds_to([(1.0, 20.0), (3.0, 24.0)], 22.0)
    2.0
    """
    before = None
    for t, value in trace:
        if value >= level:
            return t if before is None else before[0] + (t - before[0]) * (level - before[1]) / (value - before[1])
        before = (t, value)
    return float("inf")


def lead(ours: Trace, theirs: Trace) -> float:
    """Return by how many dB a trace is ahead of another at least, over the scores after the first; straight lines between.

    >>> lead([(1.0, 20.0), (2.0, 24.0), (4.0, 25.0)], [(1.5, 10.0), (3.0, 20.0)])
    4.5
    """
    differences = []
    for t, value in theirs:
        after = next((k for k, point in enumerate(ours) if point[0] >= t), None)
        if after is None:
            differences.append(ours[-1][1] - value)
        elif after > 0:
            (t0, v0), (t1, v1) = ours[after - 1 : after + 1]
            differences.append(v0 + (v1 - v0) * (t - t0) / (t1 - t0) - value)
    return min(differences)
