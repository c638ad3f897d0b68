"""On a GPU: Plenoxels' kernels against float64, and nothing is compiled, copied or waited for from step to step."""

from __future__ import annotations

import pytest
import torch

from nsw.kernels import triton_launch
from nsw.kernels.row_rmsprop import RowRMSProp, rmsprop_rows
from nsw.kernels.voxel_march import RowGradient, march_voxels
from nsw.kernels.voxel_march_reference import march_voxels_reference, n_channels, total_variation_reference
from nsw.kernels.voxel_tv import total_variation

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not triton_launch.runs_triton(), reason="no CUDA GPU with Triton here: its kernels cannot run"
)
BOX = torch.tensor([[-1.0, -2.0, 0.5], [2.0, 1.0, 1.5]])


def _grid(shape=(9, 7, 8), degree: int = 1, keep: float = 0.7):
    """Random rows for a random part of the vertices, half of the densities negative."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(shape, generator=generator) < keep
    links = torch.zeros(shape, dtype=torch.int32)
    links[kept] = torch.arange(1, int(kept.sum()) + 1, dtype=torch.int32)
    values = torch.randn(int(kept.sum()) + 1, n_channels(degree), generator=generator)
    values[:, 0] *= 3
    values[0] = 0
    return values.cuda(), links.cuda()


def _rays(n: int) -> dict:
    """Rays from all around, some of which miss, some of which start inside, some of length zero."""
    generator = torch.Generator().manual_seed(1)
    origins = 3 * torch.randn(n, 3, generator=generator)
    targets = BOX[0] + torch.rand(n, 3, generator=generator) * (BOX[1] - BOX[0])
    near = torch.rand(n, generator=generator)
    far = near + 8 * torch.rand(n, generator=generator) - 0.5
    far[::7] = near[::7]
    rays = dict(origins=origins, directions=torch.nn.functional.normalize(targets - origins, dim=-1), near=near, far=far)
    return {name: ray.cuda() for name, ray in (rays | dict(offset=torch.rand(n, generator=generator))).items()}


def _run(march, values, links, rays, dtype, degree, upstream, stop=1e-4, nearest=False, **more):
    table = values.to(dtype, copy=True).requires_grad_()
    given = {name: ray.to(dtype) for name, ray in rays.items()} | dict(aabb=BOX.to("cuda", dtype), stop=stop, nearest=nearest)
    out = march(table, links, **given, step=0.11, delta=0.15, sh_degree=degree, **more)
    torch.autograd.backward(out[:2], [u.to(dtype) for u in upstream])
    return [*(x.detach() for x in out), table.grad if table.grad is None else table.grad[1:]]


def _upstream(n: int):
    generator = torch.Generator("cuda").manual_seed(2)
    return torch.randn(n, 3, generator=generator, device="cuda"), torch.randn(n, generator=generator, device="cuda")


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("stop", [0.2, 1e-4])
@pytest.mark.parametrize("n", [0, 1, 3000])
def test_values_and_gradients_match_float64(degree, nearest, stop, n):
    (values, links), rays, upstream = _grid(degree=degree), _rays(n), _upstream(n)
    arguments = (degree, upstream, stop, nearest)
    ours = _run(march_voxels, values, links, rays, torch.float32, *arguments)
    reference = _run(march_voxels_reference, values, links, rays, torch.float64, *arguments)
    for a, b in zip(ours, reference, strict=True):
        error = (a.double() - b).abs() / max(1.0, float(b.abs().max()) if b.numel() else 1.0)
        # as on the CPU: a sample within rounding of a voxel's border, of far or of the ReLU may fall on the other side
        assert a.shape == b.shape and bool(a.isfinite().all())
        assert error.numel() == 0 or float((error > 1e-4).double().mean()) < 2e-3


def test_a_given_buffer_receives_the_gradient_and_the_marks():
    (values, links), rays, upstream = _grid(), _rays(3000), _upstream(3000)
    expected = _run(march_voxels, values, links, rays, torch.float32, 1, upstream)[-1]
    into = RowGradient.like(values)
    assert _run(march_voxels, values, links, rays, torch.float32, 1, upstream, into=into)[-1] is None
    torch.testing.assert_close(into.values[1:], expected, rtol=1e-4, atol=1e-4)  # atomics add in another order each time
    assert bool(((into.values != 0).any(1) <= (into.touched == 1)).all()) and 0 < int(into.touched.sum()) < len(values)
    assert not bool(into.values[0].any())


@pytest.mark.parametrize("first, count", [(1, 10**6), (100, 60), (250, 200)])
def test_total_variation_matches_float64(first, count):
    values, links = _grid()
    vertices = torch.cat([links.new_zeros(1).long(), (links.reshape(-1) > 0).nonzero()[:, 0]])
    rates, n_rows = torch.rand(values.shape[1], generator=torch.Generator().manual_seed(3)).cuda(), len(values) - 1
    exact, ours, into = values.double().requires_grad_(), values.clone().requires_grad_(), RowGradient.like(values)
    rows = (torch.arange(min(count, n_rows), device="cuda") + first - 1) % n_rows + 1
    reference = total_variation_reference(exact, links, rows, rates.double())
    (expected,) = torch.autograd.grad(3 * reference, exact)
    for where in (first, torch.tensor([first], device="cuda")):
        into.values.zero_()
        value = total_variation(ours, links, vertices, where, count, rates, into)
        (3 * value).backward()
        torch.testing.assert_close(value.double(), reference, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(into.values.double(), expected, rtol=1e-4, atol=1e-7)
    assert ours.grad is None and bool(((into.values != 0).any(1) <= (into.touched == 1)).all())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_of_rmsprop_matches_float64(momentum):
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(3000, 16, generator=generator).cuda() for _ in range(4)]
    tables[2] = tables[2].abs() * (torch.rand(3000, 16, generator=generator) < 0.5).cuda()
    touched, rates = (torch.rand(3000, generator=generator) < 0.3).byte().cuda(), torch.rand(16, generator=generator).cuda()
    exact, marks = [table.double() for table in tables], touched.clone()
    rmsprop_rows(*tables, touched, rates, 0.95, 1e-8, momentum)
    rmsprop_rows(*exact, marks, rates.double(), 0.95, 1e-8, momentum)
    for ours, reference in zip(tables, exact, strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-5)
    assert not bool(touched.any())


def test_steps_of_other_sizes_compile_and_wait_for_nothing():
    from nsw.kernels import voxel_march_triton, voxel_rows_triton

    values, links = _grid(degree=2)
    vertices = torch.cat([links.new_zeros(1).long(), (links.reshape(-1) > 0).nonzero()[:, 0]])
    table, into, rays, box = torch.nn.Parameter(values), RowGradient.like(values), _rays(4000), BOX.cuda()
    table.grad, optimizer, rates = into.values, RowRMSProp(table, 0.1, 0.01), torch.ones(32, device="cuda")
    kernels = voxel_march_triton._march_forward, voxel_march_triton._march_backward, voxel_rows_triton._rmsprop
    kernels += voxel_rows_triton._variation, voxel_rows_triton._variation_backward
    count = lambda: [sum(len(cached[0]) for cached in kernel.device_caches.values()) for kernel in kernels]  # noqa: E731
    first = torch.randint(1, len(values), (1,), device="cuda")

    def step(n: int) -> None:
        some = {name: ray[:n] for name, ray in rays.items()}
        out = march_voxels(table, links, **some, aabb=box, step=0.1 + 1e-5 * n, delta=0.1, sh_degree=2, stop=1.0 / n, into=into)
        loss = out[0].square().mean() + total_variation(table, links, vertices, first, max(1, n // 16), rates, into)
        loss.backward()
        optimizer.param_groups[0]["lr"] = 1.0 / n
        optimizer.step(into.touched)

    step(2048)
    before = count()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for n in (1, 16, 777, 3999):
            step(n)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert count() == before
