"""Active learning in the small: what the released pairing finds, and what mining does to a student of one row of rays."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.methods.pvd_al import hardest

Row = Callable[[Float[Tensor, "N"]], tuple[Float[Tensor, "N"], Float[Tensor, "N"]]]


def hits_of_released_pairing(errors: Float[Tensor, "C"], order: Int[Tensor, "C"], share: float = 0.1) -> float:
    """Return which share of the poses that the official code calls hard are so: it reads the i-th error served as pose i's.

    Args:
        errors: of the poses, in their order. order: in which the loader served them.

    >>> hits_of_released_pairing(torch.arange(10.0), torch.arange(10).roll(1), 0.2)
    0.5
    """
    right, called = hardest(errors, share), hardest(errors[order], share)
    return float(torch.isin(called, right).float().mean())


def mining_gain(row: Row, n_steps: int = 400, n_batch: int = 64, n_waves: int = 32, seed: int = 0) -> float:
    """Return by how many dB of PSNR against the truth a pool of hard rays helps a student; below 0 it hurts.

    Two students, sums of cosines up to n_waves half waves, see as many labels; for one, a tenth of each batch comes from a pool
    of the hardest, as in `ActiveLearner`.

    Args:
        row: from the places of N rays in [0, 1] to what is true there, and to what the teacher says, both [N] in [0, 1].

    >>> mining_gain(lambda x: (0 * x, 0 * x))
    0.0
    """
    x = torch.linspace(0, 1, 1024)
    truth, labels = row(x)
    waves = torch.cos(math.pi * torch.arange(n_waves) * x[:, None])
    found = [_student(waves, labels, mined, n_steps, n_batch, seed) for mined in (False, True)]
    plain, mining = ((waves @ weights - truth).square().mean().clamp_min(1e-10).log10() for weights in found)
    return float(10 * (plain - mining))


def _student(waves: Float[Tensor, "N W"], labels: Float[Tensor, "N"], mined: bool, n_steps: int, n_batch: int, seed: int) -> Tensor:
    """Return the weights [W] of a trained student."""
    generator, n_old = torch.Generator().manual_seed(seed), round(0.1 * n_batch)
    pool, weights = torch.randint(len(waves), (4 * n_batch,), generator=generator), torch.zeros(waves.shape[1])
    for k in range(n_steps):
        rays = torch.randint(len(waves), (n_batch,), generator=generator)
        slots = torch.randperm(len(pool), generator=generator)[:n_old]
        if mined:
            rays[:n_old] = pool[slots]
        wrong = waves[rays] @ weights - labels[rays]
        pool[slots] = rays[hardest(wrong.abs(), 0.1)]
        weights -= 0.8 * (1 - k / n_steps) / waves.shape[1] * (waves[rays].T @ wrong) / n_batch * 2
    return weights
