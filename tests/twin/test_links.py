"""What points gather along their links, against the same in float64 torch, values and gradients."""

from __future__ import annotations

import pytest
import torch

from nsw.kernels.links import ALONE, linked_lowest, linked_sum


def links(n: int, width: int):
    """Return values, and up to nine links a point, none for some."""
    g = torch.Generator().manual_seed(n + width)
    count = torch.randint(0, 10, (n,), generator=g)
    others = torch.randint(0, max(n, 1), (int(count.sum()),), generator=g)
    return torch.randn(n, width, generator=g), others, count.cumsum(0) - count, torch.rand(len(others), generator=g)


SIZES = pytest.mark.parametrize("n, width", [(1, 1), (50, 3), (300, 16), (ALONE + 1, 4), (0, 2)])


@SIZES
def test_sums_are_the_references(n, width):
    values, others, starts, weights = links(n, width)
    if n:
        truth = linked_sum(values.double(), others, starts, weights.double())
        torch.testing.assert_close(linked_sum(values, others, starts, weights).double(), truth, atol=3e-6, rtol=1e-6)
    else:
        assert linked_sum(values, others, starts, weights).shape == (0, width)


@SIZES
@pytest.mark.parametrize("tied", [False, True])
def test_the_lowest_and_their_gradients_are_the_references(n, width, tied):
    values, others, starts, _ = links(n, width)
    if tied:  # features all start at zero
        values = values.round().clamp(-1, 1)
    if n == 0:
        assert linked_lowest(values, others, starts).shape == (0, width)
        return
    found, pulls = [], torch.randn(n, width, generator=torch.Generator().manual_seed(1))
    for one in (values.clone(), values.double()):
        lowest = linked_lowest(one.requires_grad_(), others, starts)
        lowest.backward(pulls.to(lowest))
        found.append((lowest.detach(), one.grad))
    assert torch.equal(found[0][0].double(), found[1][0])
    torch.testing.assert_close(found[0][1].double(), found[1][1], atol=1e-5, rtol=1e-6)


def test_values_may_lie_in_any_order_in_memory():
    values, others, starts, weights = links(40, 6)
    turned = values.T.contiguous().T
    assert torch.equal(linked_sum(turned, others, starts, weights), linked_sum(values, others, starts, weights))
    assert torch.equal(linked_lowest(turned, others, starts), linked_lowest(values, others, starts))
