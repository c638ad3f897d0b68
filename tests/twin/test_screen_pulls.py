"""The statistic of density control in one sweep, against the same in float64 torch."""

from __future__ import annotations

import pytest
import torch

from nsw.kernels.screen_pulls import ALONE, add_pulls


def views(n: int, n_views: int, size: float = 1.0):
    g = torch.Generator().manual_seed(n)
    radii = torch.randint(0, 3, (n_views, n, 2), generator=g, dtype=torch.int32)
    return size * torch.randn(n_views, n, 2, generator=g), radii


def added(gradient, radii, dtype=torch.float32):
    total, count = torch.ones(radii.shape[-2], dtype=dtype), torch.zeros(radii.shape[-2], dtype=dtype)
    add_pulls(total, count, gradient.to(dtype), radii, 64.0, 48.0)
    return total, count


@pytest.mark.parametrize("n, n_views", [(0, 1), (1, 1), (1000, 3), (ALONE + 1, 2), (5, 0)])
def test_sums_and_counts_are_the_references(n, n_views):
    gradient, radii = views(n, n_views)
    for mine, truth in zip(added(gradient, radii), added(gradient, radii, torch.float64), strict=True):
        torch.testing.assert_close(mine.double(), truth, atol=0, rtol=3e-7)
    assert torch.equal(added(gradient, radii)[1], ((radii > 0).all(-1)).sum(0).float())


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_lengths_neither_vanish_nor_overflow(size):
    gradient, radii = views(100, 1, size)
    total, count = torch.zeros(100), torch.zeros(100)
    add_pulls(total, count, gradient, radii, 1.0, 1.0)
    seen = (radii[0] > 0).all(-1)
    torch.testing.assert_close(total[seen], gradient[0, seen].double().norm(dim=-1).float(), rtol=1e-6, atol=0)
    assert (total[~seen] == 0).all()
