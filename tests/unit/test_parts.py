"""Parts of a set of splats, and sets put together."""

from __future__ import annotations

import pytest
import torch

from nsw.errors import InputError
from nsw.models.gaussians import NAMES, Gaussians
from nsw.models.parts import joined, part_of


def some(n: int, degree: int = 1) -> Gaussians:
    return Gaussians.random(torch.tensor([[-1.0] * 3, [1.0] * 3]), n, torch.Generator().manual_seed(n), sh_degree=degree)


def test_models_are_put_together_row_by_row_and_come_apart_again():
    a, b = some(2), some(3)
    both = joined(a, b)
    assert len(both) == 5
    for name in NAMES:
        assert torch.equal(both.params[name], torch.cat([a.params[name], b.params[name]]))
        assert torch.equal(part_of(both, torch.arange(5) >= 2).params[name], b.params[name])
        assert torch.equal(part_of(both, torch.tensor([1, 0, 0])).params[name], a.params[name][[1, 0, 0]])


def test_a_copy_does_not_follow_its_original():
    splats = some(4)
    copy = part_of(splats)
    with torch.no_grad():
        splats.means += 1.0
    assert not torch.equal(copy.means, splats.means)


def test_parts_of_two_kinds_are_refused():
    with pytest.raises(InputError, match="one kind of splats"):
        joined(some(2), some(2, degree=0))
