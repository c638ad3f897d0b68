"""Which points are nearest to others."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def nearest(queries: Float[Tensor, "M 3"], points: Float[Tensor, "N 3"], k: int) -> tuple[Float[Tensor, "M k"], Int[Tensor, "M k"]]:
    """Return distances to the k nearest points, and which they are, the nearest first; all of them when there are fewer than k.

    >>> nearest(torch.zeros(1, 3), torch.tensor([[2.0, 0, 0], [0, 1.0, 0]]), 2)
    (tensor([[1., 2.]]), tensor([[1, 0]]))
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(points.detach().cpu().double().numpy())
    ranks = range(1, min(k, len(points)) + 1)
    distances, ids = tree.query(queries.detach().cpu().double().numpy(), k=ranks, workers=torch.get_num_threads())
    return torch.from_numpy(distances).to(queries), torch.from_numpy(ids).to(queries.device)
