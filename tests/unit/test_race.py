"""Races: equal seconds in turns, equal rays whatever the speed, and what is read off their traces."""

from __future__ import annotations

import time

import pytest

from nsw.runs import race as racing
from nsw.runs.race import lead, race, seconds_to


def test_race_gives_equal_seconds_in_turns_and_scores_when_asked():
    steps: list[tuple[str, float]] = []

    def runner(name: str, pause: float):
        def step(progress: float) -> None:
            steps.append((name, progress))
            end = time.perf_counter() + pause
            while time.perf_counter() < end:
                pass

        return step, lambda: float(sum(who == name for who, _ in steps))

    traces = race({"quick": runner("quick", 1e-4), "slow": runner("slow", 2e-3)}, budget=0.02, at=(0.005, 0.5))
    for name, trace in traces.items():
        assert len(trace) == 2 and 0.02 <= trace[-1][0] < 0.2 and trace[-1][1] == sum(who == name for who, _ in steps)
    assert traces["quick"][-1][1] > traces["slow"][-1][1] and len({who for who, _ in steps[:4]}) == 2
    assert seconds_to([(1.0, 3.0)], 4.0) == float("inf")


def test_race_of_equal_rays_does_not_depend_on_speed(monkeypatch):
    """Steps of 3 and of 5 rays on a budget of 30; the one that dawdles takes as many as it would alone."""
    shares: dict[str, list[float]] = {"three": [], "five": []}
    clock = [0.0]
    monkeypatch.setattr(racing, "now", lambda: clock[0])

    def runner(name: str, n_rays: int, pause: float):
        def step(progress: float) -> list[int]:
            shares[name].append(progress)
            clock[0] += pause
            return [0] * n_rays

        return step, lambda: float(len(shares[name]))

    traces = race({"three": runner("three", 3, 2.0), "five": runner("five", 5, 0.0)}, budget=30, at=(15,), cost=len)
    assert shares["three"] == pytest.approx([k / 10 for k in range(10)])
    assert shares["five"] == pytest.approx([k / 6 for k in range(6)])
    assert [score for _, score in traces["three"]] == [5.0, 10.0] and [score for _, score in traces["five"]] == [3.0, 6.0]
    assert [seconds for seconds, _ in traces["three"]] == [10.0, 20.0] and [seconds for seconds, _ in traces["five"]] == [0.0, 0.0]


def test_a_trace_that_ends_early_is_compared_where_it_ended():
    assert lead([(1.0, 20.0), (2.0, 24.0)], [(0.5, 30.0), (3.0, 23.0)]) == 1.0


def test_a_race_tells_its_progress_unless_asked_not_to(capsys):
    for progress in (True, False):
        race({"one": (lambda share: [0], lambda: 0.0)}, budget=200, cost=len, progress=progress)
        assert ("equal budgets, % 100/100" in capsys.readouterr().out) is progress
