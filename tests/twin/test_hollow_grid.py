"""The hollow grid through its compiled lookups against plain torch in float64: density, colour and all gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from nsw.models.hollow_grid import HollowGrid, HollowGridSettings


@pytest.mark.parametrize("sigmoid_first", [False, True])
def test_fused_lookups_give_what_the_reference_gives(sigmoid_first):
    torch.manual_seed(0)
    sizes = dict(n_levels=4, n_features=2, log2_entries=8, n_min=4, n_max=32, width=16, n_cells=8, n_saliency=6)
    fast = HollowGrid(HollowGridSettings(**sizes, sigmoid_first=sigmoid_first))
    fast.table.data.normal_(0.0, 0.3)
    fast.logits.data.normal_(0.0, 3.0)
    fast.measure_length()
    exact = copy.deepcopy(fast).double()
    points = torch.rand(500, 3) * 1.96 - 0.98
    directions = torch.nn.functional.normalize(torch.randn(500, 3), dim=-1)
    weights = torch.randn(500, 4)
    gradients = []
    for model, kind in ((fast, torch.float32), (exact, torch.float64)):
        density, rgb, _ = model.query(points.to(kind), directions.to(kind))
        values = torch.cat([density[:, None], rgb], dim=-1)
        found = torch.autograd.grad((values * weights.to(kind)).sum(), list(model.parameters()))
        gradients.append((values.detach().double(), *(g.double() for g in found)))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4 * float(theirs.abs().max()))
