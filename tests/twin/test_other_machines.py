"""The kernels as other processors run them, and in forked processes: in processes of their own, since all is settled at import."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCENE = """
import os, sys, torch
from nsw.kernels import rasterization, rasterization_reference, rasterization_2dgs, render_weight_from_density, simd
from nsw.kernels.grid_lookup import grid_lookup
g = torch.Generator().manual_seed(0)
n, view = 300, torch.eye(4)[None]
view[0, 2, 3] = 2.5
splats = [torch.rand(n, 3, generator=g) * 2 - 1, torch.randn(n, 4, generator=g), 0.02 + 0.2 * torch.rand(n, 3, generator=g),
          torch.rand(n, generator=g), torch.rand(n, 3, generator=g)]
camera = (view, torch.tensor([[[40.0, 0, 20], [0, 42, 21], [0, 0, 1]]]), 45, 37)
"""
COMPARE = """
def pulled(draw, dtype):
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in splats]
    picture = draw(*leaves, *(t.to(dtype) for t in camera[:2]), *camera[2:], packed=False)[0]
    (picture ** 2).sum().backward()
    return [picture.detach().double(), *(leaf.grad.double() for leaf in leaves)]
for ours, truth in zip(pulled(rasterization, torch.float32), pulled(rasterization_reference, torch.float64)):
    assert (ours - truth).abs().max() < 2e-4 * max(1.0, float(truth.abs().max())), float((ours - truth).abs().max())
t = torch.linspace(0, 1, 201).repeat(7, 1)
weights, _, _ = render_weight_from_density(t[:, :-1], t[:, 1:], 5 * torch.rand(7, 200, generator=g))
total = weights.sum(dim=-1)
assert (total > 0.8).all() and (total < 1).all()
flat = rasterization_2dgs(*splats, *camera)[0]
assert torch.isfinite(flat).all() and flat.max() > 0.1
print("lanes", simd.LANES)
"""
FORK = """
box = torch.tensor([[0.0, 0, 0], [1, 1, 1]])
grid, points = torch.rand(8, 8, 8, 4, generator=g), torch.rand(9000, 3, generator=g)
def work():
    with torch.no_grad():
        return rasterization(*[torch.cat([t] * 10) for t in splats], *camera)[0], grid_lookup(grid, points, box)
torch.set_num_threads(2)
expected = work()
child = os.fork()
if child == 0:
    os._exit(0 if all(torch.equal(a, b) for a, b in zip(work(), expected)) else 7)
assert all(torch.equal(a, b) for a, b in zip(work(), expected))
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=200, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(("lanes", "processor"), [("8", "haswell"), ("4", "nehalem")], ids=["AVX2", "128 bits"])
def test_vectors_of_another_width(lanes, processor):
    of_intel = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""} if platform.machine() in ("x86_64", "AMD64") else {}
    assert f"lanes {lanes}" in run(SCENE + COMPARE, NSW_SIMD_LANES=lanes, **of_intel)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_draws():
    assert "child 0" in run(SCENE + FORK)
