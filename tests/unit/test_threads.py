"""Work that goes on side by side: every part is done, and all of it ends when one part fails or nobody asks any more."""

from __future__ import annotations

import itertools

import pytest
import torch

from nsw.kernels.threads import side_by_side


def endless(going) -> int:
    return sum(1 for _ in going(itertools.count()))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_job_is_done_and_answers_in_order(threads):
    before = torch.get_num_threads()
    jobs = {n: lambda going, n=n: len(list(going(range(n)))) for n in (50, 40, 30, 20, 10)}
    assert list(side_by_side(jobs, threads)) == [(n, n) for n in jobs] and torch.get_num_threads() == before


@pytest.mark.parametrize("order", [("fails", "goes on"), ("goes on", "fails")])
def test_one_failure_ends_the_endless_others(order):
    def fails(going):
        raise ValueError("no light in this ray")

    with pytest.raises(ValueError, match="no light in this ray"):
        jobs = {"fails": fails, "goes on": endless}
        list(side_by_side({name: jobs[name] for name in order}, 2))  # would never come back if the second went on


def test_who_stops_asking_ends_them_all():
    jobs = side_by_side({"short": lambda going: "done", "long": endless}, 2)
    assert next(jobs) == ("short", "done")
    jobs.close()  # as Ctrl-C does: it comes back, though the second job has no end
    with pytest.raises(StopIteration):
        next(jobs)
