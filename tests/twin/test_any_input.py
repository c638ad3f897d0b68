"""No finite input makes a NaN or leaves an array's memory: lookups anywhere in space, pictures of any contrast."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nsw.kernels import hash_encode, hash_levels
from nsw.kernels.grid_lookup import grid_lookup, grid_lookup_reference
from nsw.kernels.ssim import ssim_l1

anywhere = st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=9, max_size=9)
BOX = torch.tensor([[-1.0, -2.0, 0.5], [2.0, 1.0, 1.5]])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(numbers=anywhere)
def test_a_lookup_beyond_the_grid_returns_the_border(numbers):
    points = torch.tensor(numbers).view(3, 3).requires_grad_()
    grid = torch.rand(3, 4, 5, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = grid_lookup(grid, points, BOX)
    found.sum().backward()
    inside = points.detach().double().clamp(BOX[0].double(), BOX[1].double())
    torch.testing.assert_close(found.double(), grid_lookup_reference(grid.double(), inside, BOX.double()), atol=1e-4, rtol=0)
    assert torch.isfinite(points.grad).all() and abs(float(grid.grad.sum()) - 6) < 1e-4


@settings(max_examples=40, deadline=None, derandomize=True)
@given(numbers=anywhere)
def test_an_encoding_is_a_mean_of_entries_wherever_the_point_lies(numbers):
    levels = hash_levels(3, 4, 32, 8)
    table = torch.ones(levels.n_rows, 2, requires_grad=True)
    points = torch.tensor(numbers).view(3, 3).requires_grad_()
    found = hash_encode(table, points, levels)
    found.sum().backward()
    torch.testing.assert_close(found, torch.ones(3, 6), atol=1e-5, rtol=0)
    assert torch.isfinite(points.grad).all() and abs(float(table.grad.sum()) - 18) < 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 3, 17, 3), (2, 12, 1, 1)])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(size=st.sampled_from([0.0, 1e-20, 1.0, 1e6]), seed=st.integers(0, 9))
def test_losses_of_pictures_of_any_contrast_are_finite(shape, size, seed):
    generator = torch.Generator().manual_seed(seed)
    picture = (size * torch.randn(shape, generator=generator)).requires_grad_()
    similarity, difference = ssim_l1(picture, size * torch.randn(shape, generator=generator))
    (difference - similarity).backward()
    assert -1.0001 <= float(similarity) <= 1.0001 and float(difference) >= 0
    assert torch.isfinite(picture.grad).all()
