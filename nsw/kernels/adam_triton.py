"""The step of `MaskedAdam` on a GPU: one sweep over memory, which passes over what received no gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsw.kernels import saturation
from nsw.kernels.triton_launch import launch

BLOCK = 1024
LARGEST_STEP = tl.constexpr(float(saturation.LARGEST_STEP))


def step(
    values: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rate: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    correction: float,
    eps: float,
    skip_zero: bool,
) -> None:
    """Do what `nsw.kernels.masked_adam.adam_update` does, with contiguous float32 tensors of one device."""
    n, every = values.numel(), 0
    if rate is not None:
        along_last = rate.dim() > 0 and rate.shape == (*values.shape[:-1], 1)
        every = values.shape[-1] if along_last else 1
        rate = (rate if along_last else rate.expand_as(values)).to(torch.float32).contiguous()
    if n == 0:
        return
    numbers = [float(x) for x in (lr, beta1, beta2, correction, eps)]
    tensors = (values, grad, exp_avg, exp_avg_sq, values if rate is None else rate)
    launch(_sweep, (triton.cdiv(n, BLOCK),), *tensors, n, *numbers, EVERY=every, SKIP=bool(skip_zero), BLOCK=BLOCK)


@triton.jit
def _sweep(
    values,
    grad,
    exp_avg,
    exp_avg_sq,
    rates,
    n,
    lr,
    beta1,
    beta2,
    correction,
    eps,
    EVERY: tl.constexpr,  # a rate serves as many numbers; 0: there are no rates
    SKIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(grad + at, mask=inside, other=0.0)
    touched = inside & (g != 0.0) if SKIP else inside
    g = tl.where(g > LARGEST_STEP, LARGEST_STEP, tl.where(g < -LARGEST_STEP, -LARGEST_STEP, g))
    m = beta1 * tl.load(exp_avg + at, mask=touched, other=0.0) + (1.0 - beta1) * g
    v = beta2 * tl.load(exp_avg_sq + at, mask=touched, other=0.0) + (1.0 - beta2) * g * g
    change = lr * m
    if EVERY > 0:
        change *= tl.load(rates + at // EVERY, mask=touched, other=0.0)
    change = tl.div_rn(change, tl.sqrt_rn(v * correction) + eps)
    tl.store(values + at, tl.load(values + at, mask=touched, other=0.0) - change, mask=touched)
    tl.store(exp_avg + at, m, mask=touched)
    tl.store(exp_avg_sq + at, v, mask=touched)
    tl.store(grad + at, tl.zeros([BLOCK], tl.float32), mask=touched)
