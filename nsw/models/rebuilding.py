"""Grids that grow, shrink or are pruned while they are trained: the new parameters take the place of the old in the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn


class Replacing(Protocol):
    """An optimiser that can go on with other parameters, as `MaskedAdam` and `RowRMSProp` of `nsw.kernels` can."""

    def replace(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> None: ...


def rebuild(model: nn.Module, optimizer: Replacing | None, change: Callable[[], object]) -> None:
    """Let `change` give a model other parameters under the same names, and train those from now on, with fresh moments for all.

    Args:
        optimizer: of the model; None where it is not being trained.
        change: for example `lambda: model.resize(n_voxels)`.

    >>> from nsw.kernels.masked_adam import MaskedAdam
    >>> from nsw.models.dense_grid import DenseGrid, DenseGridSettings
    >>> model = DenseGrid(DenseGridSettings(n_voxels=8**3))
    >>> optimizer = MaskedAdam(model.parameters())
    >>> rebuild(model, optimizer, lambda: model.resize(16**3))
    >>> [tuple(p.shape[:3]) for p in optimizer.param_groups[0]["params"]]
    [(16, 16, 16), (16, 16, 16)]
    """
    old = dict(model.named_parameters())
    change()
    if optimizer is not None:
        new = {name: p for name, p in model.named_parameters() if p is not old[name]}
        optimizer.replace([old[name] for name in new], list(new.values()))
