"""Work that goes on side by side: every part is done, and all of it ends when one part fails or nobody asks any more."""

from __future__ import annotations

import itertools

import pytest
import torch

from nsw.kernels.threads import side_by_side


def counting(seen: list[int], last: int | None = None):
    for k in itertools.count():
        if k == last:
            return
        seen.append(k)
        yield


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_job_is_done_and_told_in_order(threads):
    before, seen = torch.get_num_threads(), [[] for _ in range(5)]
    assert list(side_by_side([counting(row, 10 * (5 - i)) for i, row in enumerate(seen)], threads)) == [0, 1, 2, 3, 4]
    assert [len(row) for row in seen] == [50, 40, 30, 20, 10] and torch.get_num_threads() == before


def test_one_failure_ends_the_endless_others():
    def fails():
        yield
        raise ValueError("no light in this ray")

    with pytest.raises(ValueError, match="no light in this ray"):
        list(side_by_side([fails(), counting([])], 2))  # would never come back if the second went on


def test_who_stops_asking_ends_them_all():
    jobs = side_by_side([counting([], 1), counting([])], 2)
    assert next(jobs) == 0
    jobs.close()  # as Ctrl-C does: it comes back, though the second job has no end
    with pytest.raises(StopIteration):
        next(jobs)
