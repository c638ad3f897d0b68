r"""`SelectiveAdam`: Adam for the rows a camera has seen.

A splat that no ray met has gradient 0, and plain Adam still moves it along its old momentum and lets its moments fade. Mallick et
al. ("Taming 3DGS", 2024) step only the visible rows and leave the others as they are, moments included:

$$m\leftarrow\beta_1m+(1-\beta_1)g,\quad v\leftarrow\beta_2v+(1-\beta_2)g^2,\quad
\theta\leftarrow\theta-\mathrm{lr}\,\frac{m}{\sqrt v+\epsilon}$$

There is no bias correction, as in gsplat: rows have taken different numbers of steps. `MaskedAdam` is another thing: it looks at
single elements whose gradient is zero, and corrects for the bias.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.errors import CallError
from nsw.kernels.compiling import kernel
from nsw.kernels.saturation import LARGEST_STEP, cut
from nsw.kernels.threads import n_threads, run_shares

ONE = np.float32(1)


class SelectiveAdam(torch.optim.Adam):
    """Adam whose `step(visibility)` updates the visible rows of every parameter; one parameter a group.

    Args:
        params: parameters of N rows each, or groups with a learning rate of their own.
        eps, betas: as in Adam.
    """

    def __init__(self, params, eps, betas):
        super().__init__(params=params, eps=eps, betas=betas)

    @torch.no_grad()
    def step(self, visibility: Bool[Tensor, "n"]) -> None:
        """Take one step in the rows where `visibility` holds."""
        for group in self.param_groups:
            if len(group["params"]) != 1:
                raise CallError(f"SelectiveAdam takes one tensor a group, got {len(group['params'])}.")
            parameter = group["params"][0]
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            moments = (state["exp_avg"], state["exp_avg_sq"])
            adam(parameter, parameter.grad, *moments, visibility, group["lr"], *group["betas"], group["eps"])


@torch.no_grad()
def adam(
    param: Float[Tensor, "n *c"],
    param_grad: Float[Tensor, "n *c"],
    exp_avg: Float[Tensor, "n *c"],
    exp_avg_sq: Float[Tensor, "n *c"],
    valid: Bool[Tensor, "n"],
    lr: float,
    b1: float,
    b2: float,
    eps: float,
) -> None:
    """Update parameter and moments in place in the valid rows: one compiled sweep for float32 on the CPU, torch otherwise."""
    if valid.numel() != param.shape[0]:
        raise CallError(f"visibility must have a value for each of {param.shape[0]} rows, got {valid.numel()}.")
    rows = valid.flatten().to(torch.bool)
    tensors = (param, param_grad, exp_avg, exp_avg_sq)
    if all(t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors):
        flat = [t.detach().view(param.shape[0], -1).numpy() for t in tensors]
        n_shares = n_threads() if param.numel() > 20_000 else 1
        run_shares(_sweep, n_shares, *flat, rows.numpy(), *(np.float32(x) for x in (lr, b1, b2, eps)))
        return
    adam_reference(*tensors, rows, lr, b1, b2, eps)


def adam_reference(param, param_grad, exp_avg, exp_avg_sq, rows, lr, b1, b2, eps) -> None:
    """Do what `adam` does in three lines of torch."""
    m, v = b1 * exp_avg[rows] + (1 - b1) * param_grad[rows], b2 * exp_avg_sq[rows] + (1 - b2) * param_grad[rows] ** 2
    param[rows] -= lr * m / (v.sqrt() + eps)
    exp_avg[rows], exp_avg_sq[rows] = m, v


@kernel
def _sweep(param, grad, exp_avg, exp_avg_sq, rows, lr, b1, b2, eps, share, n_shares):
    n, columns = param.shape
    part = (n + n_shares - 1) // n_shares
    for i in range(share * part, min((share + 1) * part, n)):
        if not rows[i]:
            continue
        for c in range(columns):
            g = cut(grad[i, c], LARGEST_STEP)
            m = b1 * exp_avg[i, c] + (ONE - b1) * g
            v = b2 * exp_avg_sq[i, c] + (ONE - b2) * g * g
            param[i, c] -= lr * m / (np.sqrt(v) + eps)
            exp_avg[i, c], exp_avg_sq[i, c] = m, v
