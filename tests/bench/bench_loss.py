"""Ratio of the compiled SSIM + L1 loss to the plain torch one, and of Adam's variants, forward and backward, in this one run.

python tests/bench/bench_loss.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from nsw.kernels.masked_adam import MaskedAdam
from nsw.losses import loss_l1, loss_photometric, loss_ssim

SIZES = ((100, 100), (256, 256), (384, 512), (800, 800))
SPLATS = {"means": 3, "scales": 3, "quats": 4, "opacities": 1, "sh0": 3, "shN": 9}


def plain(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 0.8 * loss_l1(predicted, target) + 0.2 * loss_ssim(predicted, target, compiled=False)


def seconds(calls: dict[str, Callable[[], object]], repeats: int = 15) -> dict[str, float]:
    """Return each call's median time, the calls taking turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: median(values[1:]) for name, values in times.items()}


def losses() -> None:
    print(f"{'picture':>10} {'plain fwd':>11} {'fused':>9} {'ratio':>6} {'plain f+b':>11} {'fused':>9} {'ratio':>6}")
    for height, width in SIZES:
        target = torch.rand(1, height, width, 3)
        predicted = (target + 0.1 * torch.rand_like(target)).clamp(0, 1).requires_grad_()
        row = f"{width:>5}x{height:<4}"
        for backward in (False, True):

            def call(loss, backward=backward, predicted=predicted, target=target):
                value = loss(predicted, target)
                if backward:
                    torch.autograd.grad(value, predicted)

            t = seconds({"plain": lambda: call(plain), "fused": lambda: call(loss_photometric)})
            row += f" {1e3 * t['plain']:8.2f} ms {1e3 * t['fused']:6.2f} ms {t['plain'] / t['fused']:5.1f}x"
        print(row, flush=True)


def optimisers() -> None:
    print("\nAdam over the parameters of splats, and of a small network (ms a step)")
    print(f"{'parameters':>20} {'for-loop':>9} {'foreach':>9} {'fused':>9} {'MaskedAdam':>11} {'fused is faster by':>19}")
    shapes = {f"{n // 1000}k splats": [(n, k) for k in SPLATS.values()] for n in (10_000, 140_000)}
    shapes["network 3 x 128"] = [(128, 39), (128,), (128, 128), (128,), (3, 128), (3,)]
    for name, sizes in shapes.items():
        calls = {}
        for kind, make in {
            "for-loop": lambda p: torch.optim.Adam(p, lr=1e-3, foreach=False),
            "foreach": lambda p: torch.optim.Adam(p, lr=1e-3, foreach=True),
            "fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
            "masked": lambda p: MaskedAdam([{"params": p, "skip_zero": False}], lr=1e-3),
        }.items():
            parameters = [torch.nn.Parameter(torch.rand(size)) for size in sizes]
            optimizer, gradients = make(parameters), [torch.rand(size) for size in sizes]

            def step(parameters=parameters, optimizer=optimizer, gradients=gradients):
                for p, g in zip(parameters, gradients, strict=True):
                    p.grad = g
                optimizer.step()

            calls[kind] = step
        t = seconds(calls)
        cells = "".join(f" {1e3 * t[k]:9.3f}" for k in ("for-loop", "foreach", "fused", "masked"))
        print(f"{name:>20}{cells}   {min(t['for-loop'], t['foreach']) / t['fused']:16.1f}x", flush=True)


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    losses()
    optimisers()
