"""The chain takes the very steps of gsplat's own MCMCStrategy, which runs on the CPU through `nsw.kernels.install()`."""

from __future__ import annotations

import pytest
import torch

from nsw import kernels
from nsw.methods import gaussian_splatting as gs
from nsw.methods import mcmc_chain
from nsw.models.gaussians import NAMES, Gaussians

gsplat = pytest.importorskip("gsplat", reason="gsplat is not installed")


def a_chain(n: int = 80) -> mcmc_chain.Chain:
    generator = torch.Generator().manual_seed(0)
    splats = Gaussians.random(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), n, generator, sh_degree=1)
    with torch.no_grad():
        splats.scales.copy_(torch.log(0.02 + 0.2 * torch.rand(n, 3, generator=generator)))
        splats.quats.copy_(torch.randn(n, 4, generator=generator))
        splats.opacities.copy_(6 * torch.rand(n, generator=generator) - 4)
        splats.opacities[::6] = -6.5
    return mcmc_chain.Chain(splats, 1.5, 12, mcmc_chain.Sampling(96, noise_lr=2e3, start=1, stop=11, every=3))


def pretend_gradients(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for value in params.values():
        value.grad = torch.randn(value.shape, generator=generator)


def test_twelve_steps_equal_those_of_gsplat(monkeypatch):
    ours, theirs = a_chain(), a_chain()
    strategy = gsplat.MCMCStrategy(cap_max=96, noise_lr=2e3, refine_start_iter=1, refine_stop_iter=11, refine_every=3)
    state, params, optimizers = strategy.initialize_state(), theirs.gaussians.params, theirs.optimizers
    strategy.check_sanity(dict(params), optimizers)
    jumps = 0
    with kernels.install():
        for step in range(12):
            pretend_gradients(ours.gaussians.params, step)
            moved = ours.step(step)
            jumps += 0 if moved is None else len(moved.dead)
            pretend_gradients(params, step)
            for name, rate in theirs.rates.at(step, 12, 1.5).items():
                optimizers[name].param_groups[0]["lr"] = rate
                optimizers[name].step()
            # gsplat draws from the global generator: give it the numbers that the chain's own generator starts from
            torch.manual_seed(gs.generator_at(0, step, 4).initial_seed())
            strategy.step_post_backward(params, optimizers, state, step, {}, lr=optimizers["means"].param_groups[0]["lr"])
            assert len(theirs.gaussians) == len(ours.gaussians)
    assert jumps >= 14 and len(ours.gaussians) == 92
    for name in NAMES:
        assert torch.allclose(ours.gaussians.params[name], params[name], atol=2e-5), name
        mine, other = (o[name].state[p[name]] for o, p in ((ours.optimizers, ours.gaussians.params), (optimizers, params)))
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.allclose(mine[key], other[key], atol=1e-5), (name, key)
