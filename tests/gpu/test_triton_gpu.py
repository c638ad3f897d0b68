"""On a GPU: the hash encoding's and Adam's kernels against float64, and nothing is compiled or copied from step to step."""

from __future__ import annotations

import pytest
import torch

from nsw.kernels import triton_launch
from nsw.kernels.hash_encoding import hash_encode, hash_encode_reference, hash_levels
from nsw.kernels.masked_adam import MaskedAdam, adam_update

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not triton_launch.runs_triton(), reason="no CUDA GPU with Triton here: its kernels cannot run"
)

SHAPES = [(1, 4, 4, 8, 2), (4, 4, 32, 9, 2), (6, 8, 96, 12, 1), (5, 16, 200, 10, 4), (3, 3, 50, 6, 3), (4, 16, 2048, 14, 8)]
SHAPES += [(16, 16, 2048, 19, 2)]
NEAR = dict(atol=1e-5, rtol=1e-5)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _of(table, points, levels, upstream, encode=hash_encode):
    table, points = (t.clone().requires_grad_() for t in (table, points))
    out = encode(table, points, levels)
    return (out.detach(), *torch.autograd.grad(out, (table, points), upstream))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [0, 1, 255, 5000])
def test_values_and_gradients_match_float64(shape, n):
    *sizes, n_features = shape
    levels = hash_levels(*sizes)
    points = torch.rand(n, 3, generator=torch.Generator().manual_seed(n)) * 1.2 - 0.1
    tensors = _random(levels.n_rows, n_features), points, _random(n, len(levels) * n_features, seed=1)
    table, points, upstream = (t.cuda() for t in tensors)
    found = _of(table, points, levels, upstream)
    expected = _of(table.double(), points.double(), levels, upstream.double(), hash_encode_reference)
    for ours, reference in zip(found, expected, strict=True):
        assert ours.is_cuda and ours.shape == reference.shape and bool(torch.isfinite(ours).all())
        if reference.numel():
            error = (ours.double() - reference).abs() / max(1.0, float(reference.abs().max()))
            assert float((error > 1e-4).double().mean()) < 2e-3  # as on the CPU: points at a cell's border


def test_broken_and_distant_points_stay_inside_the_table():
    levels, far = hash_levels(4, 4, 32, 8), [[float("nan")] * 3, [float("inf")] * 3, [-1e30, 1e30, 0.5]]
    table, points = _random(levels.n_rows, 2), torch.tensor(far)
    upstream = torch.ones(3, 8)
    found = _of(table.cuda(), points.cuda(), levels, upstream.cuda())
    for ours, cpu in zip(found, _of(table, points, levels, upstream), strict=True):
        assert float((ours.cpu() - cpu).norm()) <= 1e-5 * float(cpu.norm())  # slopes are as steep as a level has cells


def test_a_given_buffer_and_known_values_are_used():
    levels, points = hash_levels(4, 4, 32, 8), torch.rand(500, 3, device="cuda")
    table = _random(levels.n_rows, 2).cuda().requires_grad_()
    hash_encode(table, points, levels).square().sum().backward()
    expected, table.grad = table.grad, None
    into, known = torch.ones_like(expected), hash_encode(table, points.T.contiguous().T, levels).detach()
    hash_encode(table, points, levels, into, known).square().sum().backward()
    assert table.grad is None
    torch.testing.assert_close(into - 1, expected, **NEAR)


@pytest.mark.parametrize("skip_zero", [True, False])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (5000, 2), (1000, 7), (1,), (), (0, 3)])
def test_the_step_equals_the_torch_calls(shape, skip_zero):
    first = [_random(*shape, seed=seed).abs() for seed in range(4)]
    if first[1].dim() > 0:
        first[1][::2] = 0.0
    rates = [None, *([first[0][..., :1].sigmoid(), first[0].sigmoid()] if first[0].numel() > 1 else [])]
    for rate in rates:
        ours, reference = ([t.to(device="cuda", dtype=dtype, copy=True) for t in first] for dtype in (torch.float32, torch.float64))
        for tensors in (ours, reference):
            factor = None if rate is None else rate.to(tensors[0])
            adam_update(*tensors, factor, 0.1, 0.9, 0.99, 1.5, 1e-8, skip_zero)
        for a, b in zip(ours, reference, strict=True):
            torch.testing.assert_close(a.double(), b, **NEAR)


def test_gradients_too_large_to_square_move_as_on_the_cpu():
    grad, moved = torch.tensor([3e38, -3e38, 0.0, -0.0, 1.0]), []
    for device in ("cpu", "cuda"):
        tensors = [t.clone().to(device) for t in (torch.ones(5), grad, torch.zeros(5), torch.zeros(5))]
        adam_update(*tensors, None, 0.1, 0.9, 0.99, 1.0, 1e-8, True)
        moved.append([t.cpu() for t in tensors])
    for cpu, gpu in zip(*moved, strict=True):
        torch.testing.assert_close(gpu, cpu, **NEAR)


def test_steps_of_other_sizes_compile_and_wait_for_nothing():
    from nsw.kernels import adam_triton, hash_encoding_triton

    levels = hash_levels(4, 4, 32, 8)
    table = torch.nn.Parameter(_random(levels.n_rows, 2).cuda())
    table.grad = torch.zeros_like(table)
    optimizer, points = MaskedAdam([table], lr=0.01), torch.rand(5000, 3, device="cuda")
    kernels = adam_triton._sweep, hash_encoding_triton._read, hash_encoding_triton._scatter
    count = lambda: [sum(len(cached[0]) for cached in kernel.device_caches.values()) for kernel in kernels]  # noqa: E731

    def step(n: int) -> None:
        hash_encode(table, points[:n], levels, table.grad).square().sum().backward()
        optimizer.step()

    step(4096)
    before = count()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for n in (1, 16, 777, 4096, 4999):
            step(n)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert count() == before
