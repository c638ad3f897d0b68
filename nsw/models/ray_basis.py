"""Fixed functions on [0, 1] whose weighted sums describe density and colour along a whole ray."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def fourier_basis(tau: Float[Tensor, "*s"], n_terms: int) -> Float[Tensor, "*s K"]:
    r"""Return the first K functions of a Fourier series of period 1.

    $$\phi_k(\tau) = \cos(k\pi\tau)\ \text{for even}\ k, \qquad \phi_k(\tau) = \sin((k+1)\pi\tau)\ \text{for odd}\ k$$
    (NeRDF) Every one of them has the same value at 0 and at 1: what touches the far end comes back at the near end.

    >>> fourier_basis(torch.tensor([0.0, 0.25, 1.0]), 3).round(decimals=3).abs()
    tensor([[1., 0., 1.],
            [1., 1., 0.],
            [1., 0., 1.]])
    """
    k = torch.arange(n_terms, device=tau.device, dtype=tau.dtype)
    odd = k % 2
    return torch.cos((k + odd) * math.pi * tau[..., None] - odd * (math.pi / 2))


def cosine_basis(tau: Float[Tensor, "*s"], n_terms: int) -> Float[Tensor, "*s K"]:
    r"""Return the first K cosines, $\phi_k(\tau) = \cos(k\pi\tau)$: a period of 2, so that near and far end are apart.

    >>> cosine_basis(torch.tensor([0.0, 1.0]), 2).tolist()
    [[1.0, 1.0], [1.0, -1.0]]
    """
    return torch.cos(torch.arange(n_terms, device=tau.device, dtype=tau.dtype) * math.pi * tau[..., None])


def gaussian_basis(tau: Float[Tensor, "*s"], n_terms: int) -> Float[Tensor, "*s K"]:
    r"""Return K equal bumps side by side.

    $$\phi_k(\tau) = e^{-(\tau - \mu_k)^2 / (2 s^2)}, \qquad \mu_k = (k + \tfrac12) / K, \quad s = 1 / K$$

    >>> gaussian_basis(torch.tensor([0.25]), 2)[0, 0].item()
    1.0
    """
    centres = (torch.arange(n_terms, device=tau.device, dtype=tau.dtype) + 0.5) / n_terms
    return torch.exp(-0.5 * ((tau[..., None] - centres) * n_terms).square())
