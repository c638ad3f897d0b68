"""Adam that leaves alone what received no gradient: voxels that no ray of the batch touched keep value and moments."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nsw.kernels import triton_launch
from nsw.kernels.compiling import kernel
from nsw.kernels.saturation import LARGEST_STEP, cut
from nsw.kernels.simd_rows import take
from nsw.kernels.threads import n_threads, run_shared

_BLOCK = 1 << 14
_PIECE = 1 << 24  # numbers that torch calls take at once: the terms of a step would need several times a grid's own memory


class MaskedAdam(torch.optim.Optimizer):
    r"""Adam (Kingma and Ba 2015) for voxel grids.

    $$m \leftarrow \beta_1 m + (1-\beta_1) g,\ v \leftarrow \beta_2 v + (1-\beta_2) g^2,\
    \theta \leftarrow \theta - \mathrm{lr}\, r\, \frac{m / (1-\beta_1^k)}{\sqrt{v / (1-\beta_2^k)} + \epsilon}$$

    Where g is zero nothing happens, moments included, unlike in torch.optim.Adam, which goes on along an old momentum.
    `step` empties the gradients in place, so that a caller can add the next ones into the same memory.

    Args:
        groups: parameters or groups, each with its own lr; a group with `skip_zero=False` is plain Adam.
        rates: r, for some parameters a tensor of their shape (or broadcastable along the last axis) that scales lr.
    """

    def __init__(self, groups, lr: float = 0.1, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8):
        super().__init__(groups, dict(lr=lr, betas=betas, eps=eps, skip_zero=True))
        self.rates: dict[Tensor, Tensor] = {}

    # torch wraps this method in one that loads its compiler, a second on a laptop, to say that it is not to be compiled
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)

    def replace(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
        """Train `new` parameters in the place of `old` ones, for example of another shape, with fresh moments for all."""
        swap = {id(a): b for a, b in zip(old, new, strict=True)}
        for group in self.param_groups:
            group["params"] = [swap.get(id(parameter), parameter) for parameter in group["params"]]
        self.rates = {b: self.rates[a] for a, b in zip(old, new, strict=True) if a in self.rates and a.shape == b.shape}
        self.state.clear()

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, and set the gradients to zero."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] += 1
                lr = group["lr"] / (1 - beta1 ** state["step"])
                correction = 1 / (1 - beta2 ** state["step"])
                moments = (state["exp_avg"], state["exp_avg_sq"])
                constants = (lr, beta1, beta2, correction, group["eps"], group["skip_zero"])
                adam_update(parameter, parameter.grad, *moments, self.rates.get(parameter), *constants)


def adam_update(
    values: Float[Tensor, "*n C"],
    grad: Float[Tensor, "*n C"],
    exp_avg: Float[Tensor, "*n C"],
    exp_avg_sq: Float[Tensor, "*n C"],
    rate: Float[Tensor, "*n c"] | None,
    lr: float,
    beta1: float,
    beta2: float,
    correction: float,
    eps: float,
    skip_zero: bool,
) -> None:
    """Take one step in place and empty the gradient.

    Contiguous float32 takes one sweep over memory, on the CPU and on a GPU where Triton runs; everything else takes torch calls.

    Args:
        rate: scales lr for each element.
        lr: learning rate, divided by 1 - beta1^k already.
        correction: 1 / (1 - beta2^k).
    """
    flat, constants = (values, grad, exp_avg, exp_avg_sq), (lr, beta1, beta2, correction, eps)
    contiguous = all(t.is_contiguous() for t in flat)
    if contiguous and triton_launch.serves(*flat):
        from nsw.kernels.adam_triton import step

        return step(*flat, rate, *constants, skip_zero)
    if contiguous and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in flat):
        arrays = [t.detach().view(-1).numpy() for t in flat]
        rates = np.ones(1, np.float32) if rate is None else rate.expand_as(values).contiguous().view(-1).numpy()
        numbers = [np.float32(x) for x in constants]
        run_shared(_sweep, n_threads() if values.numel() > 4 * _BLOCK else 1, *arrays, rates, *numbers, skip_zero)
        return
    flat = [torch.atleast_1d(t) for t in flat]
    n_rows = max(_PIECE // max(flat[0][:1].numel(), 1), 1)
    parts = [t.split(n_rows) for t in flat]
    rates = [None] * len(parts[0]) if rate is None else rate.split(n_rows)
    for *some, factor in zip(*parts, rates, strict=True):
        _update(*some, factor, *constants, skip_zero)


def _update(values, grad, exp_avg, exp_avg_sq, rate, lr, beta1, beta2, correction, eps, skip_zero) -> None:
    """Take the step of `adam_update` with torch calls."""
    touched = grad != 0 if skip_zero else torch.ones_like(grad, dtype=torch.bool)
    exp_avg.copy_(torch.where(touched, beta1 * exp_avg + (1 - beta1) * grad, exp_avg))
    exp_avg_sq.copy_(torch.where(touched, beta2 * exp_avg_sq + (1 - beta2) * grad * grad, exp_avg_sq))
    change = lr * exp_avg / ((exp_avg_sq * correction).sqrt() + eps)
    values.sub_(torch.where(touched, change if rate is None else change * rate, 0.0))
    grad.zero_()


@kernel
def _sweep(next_block, values, grad, exp_avg, exp_avg_sq, rates, lr, beta1, beta2, correction, eps, skip_zero):
    n = values.shape[0]
    one = np.float32(1.0)
    same_rate = rates.shape[0] == 1
    block = take(next_block)
    while block * _BLOCK < n:
        for i in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):
            g = cut(grad[i], LARGEST_STEP)
            if g == 0 and skip_zero:
                continue
            m = beta1 * exp_avg[i] + (one - beta1) * g
            v = beta2 * exp_avg_sq[i] + (one - beta2) * g * g
            rate = rates[0] if same_rate else rates[i]
            values[i] -= lr * rate * m / (np.sqrt(v * correction) + eps)
            exp_avg[i], exp_avg_sq[i], grad[i] = m, v, np.float32(0.0)
        block = take(next_block)
