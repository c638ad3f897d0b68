"""3D Gaussian Splatting as Markov Chain Monte Carlo (Kheradmand, Rebain, Sharma, Sun, Tseng, Isack, Kar, Tagliasacchi,
Yi, NeurIPS 2024).

Splats are read as samples of a Markov chain whose target density is exp(-loss): an Adam step plus shaped noise explores,
and dead splats jump onto live ones in a way that leaves the picture, hence the density, unchanged. It replaces the clone,
split, prune and reset rules of `density_control.py`; renderer, image loss and learning rates stay those of 3DGS.

Here stand the moves; `mcmc_chain.py` says when each is made. All work on raw parameters, on the CPU or a CUDA device. The
order of edits and the treatment of Adam's moments are gsplat's (release 1.5.3, `MCMCStrategy`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.kernels import compute_relocation
from nsw.kernels.projection_reference import covariance
from nsw.methods.density_control import Optimizers, Params, Rows, regroup
from nsw.models.gaussians import Gaussians

N_MAX = 51  # at most so many splats share a place, as in gsplat


def noise_gate(opacities: Float[Tensor, "N"], gate_at: float = 0.005) -> Float[Tensor, "N"]:
    r"""Return the share of noise that a splat feels: all but nothing when it is opaque.

    $$g(o) = 1 / (1 + e^{-100\,((1 - o) - 0.995)})$$  (Kheradmand et al. 2024, eq. 8; 0.995 = 1 - gate_at)

    >>> noise_gate(torch.tensor([0.0, 0.005, 0.05]))
    tensor([0.6225, 0.5000, 0.0110])
    """
    return torch.sigmoid(100 * (gate_at - opacities))


@torch.no_grad()
def add_noise(
    params: Params,
    size: float,
    gate_at: float = 0.005,
    generator: torch.Generator | None = None,
) -> None:
    r"""Move every centre at random, within its splat's own shape, the less the more opaque it is.

    $$\mu \leftarrow \mu + \lambda\,g(o)\,\Sigma\,\eta, \qquad \eta \sim \mathcal N(0, I)$$  (Kheradmand et al. 2024, eq. 7)

    It is Sigma itself and not its square root: a splat twice as large jumps four times as far.

    Args:
        size: lambda, the current learning rate of the means times `Sampling.noise_lr`.
    """
    means = params["means"]
    eta = torch.randn(means.shape, generator=generator, device=means.device, dtype=means.dtype)
    eta = eta * noise_gate(params["opacities"].sigmoid(), gate_at)[:, None] * size
    means += torch.einsum("nij,nj->ni", covariance(params["quats"], params["scales"].exp()), eta)


@cache
def _binomials(device: torch.device) -> Float[Tensor, "m m"]:
    rows = [[float(math.comb(n, k)) for k in range(N_MAX)] for n in range(N_MAX)]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def shared(
    opacities: Float[Tensor, "n"], scales: Float[Tensor, "n 3"], counts: Int[Tensor, "n"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]:
    r"""Return what each of `counts` splats in one place must be, so that together they look like the one that stood there.

    $$o' = 1 - (1 - o)^{1/N}, \qquad s' = s\,o / D, \qquad
    D = \sum_{m=1}^{N} \binom Nm \frac{(-1)^{m-1}}{\sqrt m}\,o'^m$$  (Kheradmand et al. 2024, eq. 9)

    The centre keeps its opacity exactly; the line integral through it is kept by the scale. `compute_relocation` takes
    the paper's double sum, which is the same number.

    >>> o, s = shared(torch.tensor([0.5]), torch.ones(1, 3), torch.tensor([2]))
    >>> round(float(1 - (1 - o) ** 2), 6), round(float(s[0, 0]), 4)
    (0.5, 0.9522)
    """
    return compute_relocation(opacities, scales, counts.clone(), _binomials(opacities.device))


def copied(opacities: Tensor, scales: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return opacity and scale as they are: what 3DGS does when it clones. Two copies are more opaque than one."""
    return opacities, scales


@torch.no_grad()
def draw(params: Params, n: int, alive: Tensor | None = None, generator: torch.Generator | None = None) -> Int[Tensor, "n"]:
    """Return n rows drawn with replacement in proportion to opacity, among those `alive`."""
    opacities = params["opacities"].sigmoid()
    rows = torch.arange(len(opacities), device=opacities.device) if alive is None else alive.nonzero()[:, 0]
    return rows[torch.multinomial(opacities[rows], n, replacement=True, generator=generator)]


@torch.no_grad()
def share(params: Params, target: Int[Tensor, "n"], min_opacity: float = 0.005, rule: Callable = shared) -> None:
    """Prepare the drawn rows for company: a row drawn n times becomes one of n + 1 splats.

    Args:
        rule: opacity, scale and count to new opacity and scale; `copied` shows what the correction is worth.
    """
    counts = torch.bincount(target, minlength=len(params["opacities"]))[target] + 1
    opacities, scales = rule(params["opacities"].sigmoid()[target], params["scales"].exp()[target], counts)
    eps = torch.finfo(torch.float32).eps
    params["opacities"][target] = torch.logit(opacities.clamp(max(min_opacity, eps), 1 - eps))
    params["scales"][target] = torch.log(scales)


@torch.no_grad()
def relocate(
    params: Params,
    optimizers: Optimizers,
    min_opacity: float = 0.005,
    rule: Callable = shared,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "D"], Int[Tensor, "D"]]:
    """Teleport dead splats onto live ones; the picture stays, and no row is born or lost.

    Moments of the live ones are forgotten; the dead keep theirs, as in both public codes.

    Returns:
        The dead rows, and the rows they now copy.
    """
    alive = params["opacities"].sigmoid() > min_opacity
    dead = (~alive).nonzero()[:, 0]
    if len(dead) == 0 or not bool(alive.any()):
        return dead[:0], dead[:0]
    target = draw(params, len(dead), alive, generator)
    share(params, target, min_opacity, rule)
    for name, value in params.items():
        value[dead] = value[target]
        moments = optimizers[name].state.get(value, {}) if name in optimizers else {}
        for key in moments.keys() - {"step"}:
            moments[key][target] = 0
    return dead, target


@torch.no_grad()
def add(
    params: Params,
    optimizers: Optimizers,
    rows: Rows,
    n: int,
    min_opacity: float = 0.005,
    rule: Callable = shared,
    generator: torch.Generator | None = None,
) -> None:
    """Append n splats on top of drawn ones; the picture stays. Only the new rows start without moments, as in gsplat."""
    if n <= 0:
        return
    old = len(params["opacities"])
    target = draw(params, n, None, generator)
    share(params, target, min_opacity, rule)
    source = torch.cat([torch.arange(old, device=target.device), target])
    regroup(params, optimizers, rows, source, fresh=torch.arange(old + n, device=target.device) >= old)


def loss_opacity(gaussians: Gaussians) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_i o_i$: what no picture asks for fades, dies and is used elsewhere (section 3.3)."""
    return gaussians.activated_opacities.mean()


def loss_scale(gaussians: Gaussians) -> Float[Tensor, ""]:
    r"""Return $\frac1{3N} \sum_{i,k} s_{ik}$: what no picture asks for shrinks (section 3.3)."""
    return gaussians.activated_scales.mean()
