"""Races: equal seconds in turns, equal rays whatever the speed, seconds of a pacer's steps, and what is read off their traces."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from nsw.errors import InputError
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


def paced_race(monkeypatch, slowness=lambda now: 1.0) -> tuple[dict, dict[str, list[float]]]:
    """Ten steps of a pacer, dearer from the sixth on, beside a quick one and a slow one; slowness(seconds) is the machine's."""
    clock, shares = [0.0], {"quick": [], "pacer": [], "slow": []}
    monkeypatch.setattr(racing, "now", lambda: clock[0])

    def runner(name: str, seconds: Callable[[int], float]):
        def step(share: float) -> None:
            clock[0] += seconds(len(shares[name])) * slowness(clock[0])
            shares[name].append(share)

        return step, lambda: float(len(shares[name]))

    costs = {"quick": lambda k: 0.5, "pacer": lambda k: 1.0 if k < 5 else 3.0, "slow": lambda k: 4.0}
    return race({name: runner(name, cost) for name, cost in costs.items()}, 10, at=(5,), pacer="pacer", progress=False), shares


def test_a_pacer_takes_its_steps_and_the_others_get_the_seconds_that_it_took(monkeypatch):
    traces, shares = paced_race(monkeypatch)
    assert shares["pacer"] == [k / 10 for k in range(10)]
    assert traces["pacer"] == [(5.0, 5.0), (20.0, 10.0)]
    assert traces["quick"][-1] == (20.0, 40.0) and traces["slow"][-1] == (20.0, 5.0)
    for name in ("quick", "slow"):
        assert shares[name][0] == 0.0 and shares[name] == sorted(shares[name]) and 0.5 < shares[name][-1] < 1.0
        assert len(traces[name]) == 2


@pytest.mark.parametrize("slowness", [lambda now: 7.0, lambda now: 1.0 + 9.0 * (int(now / 3) % 2)], ids=["slow", "busy by turns"])
def test_a_slow_or_busy_machine_takes_no_step_from_a_race_with_a_pacer(monkeypatch, slowness):
    """Evenly slow: everybody's steps are the same. By turns: the pacer's are, and the others get its seconds, up to a step."""
    calm, (traces, shares) = paced_race(monkeypatch)[1], paced_race(monkeypatch, slowness)
    assert shares["pacer"] == calm["pacer"]
    for name, dearest in (("quick", 0.5), ("slow", 4.0)):
        assert 0 <= traces[name][-1][0] - traces["pacer"][-1][0] < 10 * dearest
        assert shares[name] == sorted(shares[name])
    if slowness(0) == slowness(3):
        assert {name: len(taken) for name, taken in shares.items()} == {name: len(taken) for name, taken in calm.items()}


def test_who_does_not_take_part_cannot_set_the_pace():
    one = {"one": (lambda share: [0], lambda: 0.0)}
    for how in (dict(pacer="two"), dict(pacer="one", cost=len)):
        with pytest.raises(InputError, match="expected one of one"):
            race(one, 3, progress=False, **how)
