"""RMSProp that visits only the rows of a table that a gradient touched: voxels no ray of the batch met keep value and memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nsw.kernels.compiling import kernel
from nsw.kernels.saturation import LARGEST_STEP, cut
from nsw.kernels.threads import n_threads, run_shares
from nsw.kernels.triton_launch import serves


class RowRMSProp(torch.optim.Optimizer):
    r"""RMSProp without bias correction, as Plenoxels trains its voxels.

    $$v \leftarrow \begin{cases} g^2 & \text{at the first touch}\\ \beta v + (1-\beta) g^2\end{cases}, \qquad
    \theta \leftarrow \theta - \mathrm{lr}\, \frac{g}{\sqrt v + \epsilon}$$  (official code, rmsprop kernel)

    Only rows with a gradient move or forget. `step` empties the gradients in place.

    Args:
        values: one parameter [K, C].
        lr: of channel 0, density. lr_colour: of the other channels. Set them in `param_groups[0]` as the schedule asks.
        momentum: share of the old direction in the new one, 0 for RMSProp; with it this is Adam without bias correction.
    """

    def __init__(
        self, values: Tensor, lr: float, lr_colour: float, beta: float = 0.95, eps: float = 1e-8, momentum: float = 0.0
    ) -> None:
        super().__init__([values], dict(lr=lr, lr_colour=lr_colour, beta=beta, eps=eps, momentum=momentum))

    def replace(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
        """Train another table in the place of the old one, with fresh memory."""
        self.param_groups[0]["params"] = list(new)
        self.state.clear()

    @torch.no_grad()
    def step(self, touched: UInt8[Tensor, "K"] | None = None) -> None:
        """Update the touched rows and set their gradient, and their mark, to zero.

        Args:
            touched: 1 for rows that may have a gradient; without it all rows are looked at.
        """
        group = self.param_groups[0]
        (values,) = group["params"]
        if values.grad is None:
            return
        state = self.state[values]
        if not state:
            state["square"] = torch.zeros_like(values)
            if group["momentum"]:
                state["mean"] = torch.zeros_like(values)
        touched = (values.grad != 0).any(1).byte() if touched is None else touched
        rates = torch.full((values.shape[1],), group["lr_colour"], dtype=values.dtype, device=values.device)
        rates[:1].fill_(group["lr"])  # `rates[0] =` would copy it from the host's memory
        memory = (state["square"], state.get("mean"))
        rmsprop_rows(values, values.grad, *memory, touched, rates, group["beta"], group["eps"], group["momentum"])


def rmsprop_rows(
    values: Float[Tensor, "K C"],
    grad: Float[Tensor, "K C"],
    square: Float[Tensor, "K C"],
    mean: Float[Tensor, "K C"] | None,
    touched: UInt8[Tensor, "K"],
    rates: Float[Tensor, "C"],
    beta: float,
    eps: float,
    momentum: float = 0.0,
) -> None:
    """Take one step in place for the touched rows, empty their gradient and marks, in kernels where there are some."""
    if values.device.type == "cpu" and values.dtype == torch.float32:
        mean = torch.empty(0, values.shape[1]) if mean is None else mean
        tables = [table.detach().numpy() for table in (values, grad, square, mean, touched, rates)]
        run_shares(_rows, n_threads(), *tables, *(np.float32(x) for x in (beta, eps, momentum)))
        torch.autograd.graph.increment_version(values)  # numpy's writing goes unseen
        return
    if all(table.is_contiguous() for table in (values, grad, square)) and serves(values, grad, square):
        from nsw.kernels.voxel_rows_triton import rmsprop_step

        return rmsprop_step(values, grad, square, mean, touched, rates, beta, eps, momentum)
    rows = touched.nonzero()[:, 0]
    g, old = grad[rows], square[rows]
    new = torch.where(old == 0, g * g, beta * old + (1 - beta) * g * g)
    square[rows] = new
    if momentum:
        g = momentum * mean[rows] + (1 - momentum) * g
        mean[rows] = g
    values[rows] -= rates * g / (new.sqrt() + eps)
    grad[rows] = 0
    touched.zero_()


@kernel
def _rows(values, grad, square, mean, touched, rates, beta, eps, momentum, share, n_shares):
    n_rows, n = values.shape
    one, zero = np.float32(1), np.float32(0)
    for row in range((n_rows * share) // n_shares, (n_rows * (share + 1)) // n_shares):
        if touched[row] == 0:
            continue
        touched[row] = 0
        for c in range(n):
            g = cut(grad[row, c], LARGEST_STEP)
            old = square[row, c]
            new = g * g if old == zero else beta * old + (one - beta) * g * g
            square[row, c] = new
            if momentum > zero:
                g = momentum * mean[row, c] + (one - momentum) * g
                mean[row, c] = g
            values[row, c] -= rates[c] * g / (np.sqrt(new) + eps)
            grad[row, c] = zero
