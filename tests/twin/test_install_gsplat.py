"""`nsw.kernels.install()`: code written for gsplat and nerfacc, with the real libraries imported, runs on CPU tensors."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from nsw import kernels

gsplat = pytest.importorskip("gsplat", reason="gsplat is not installed")
from gsplat import rasterization as imported_before  # noqa: E402
from gsplat import spherical_harmonics as harmonics_before  # noqa: E402

SIZE = 32


@pytest.fixture(autouse=True)
def served():
    with kernels.install() as handle:
        yield handle


def camera(turn: float = 0.0):
    view = torch.eye(4)
    view[0, 0] = view[2, 2] = math.cos(turn)
    view[0, 2], view[2, 0], view[2, 3] = math.sin(turn), -math.sin(turn), 4.0
    return view, torch.tensor([[1.1 * SIZE, 0, SIZE / 2], [0, 1.1 * SIZE, SIZE / 2], [0, 0, 1]])


def start(n=120, spread=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        "means": (torch.rand(n, 3, generator=g) * 2 - 1) * spread, "scales": torch.full((n, 3), 0.12).log(),
        "quats": torch.randn(n, 4, generator=g), "opacities": torch.logit(torch.full((n,), 0.5)),
        "sh0": torch.randn(n, 1, 3, generator=g), "shN": torch.zeros(n, 3, 3),
    }  # fmt: skip


def draw(splats, views, Ks, **options):
    colors = torch.cat([splats["sh0"], splats["shN"]], dim=1)
    return gsplat.rasterization(
        splats["means"], splats["quats"], splats["scales"].exp(), splats["opacities"].sigmoid(), colors, views, Ks, SIZE, SIZE,
        sh_degree=1, **options,
    )  # fmt: skip


def test_outside_the_block_the_library_is_as_it_was(served):
    code, text = imported_before.__code__, str(inspect.signature(imported_before))
    assert len(served.names) > 15 and "calls" in repr(served)
    with kernels.install() as again:
        assert not again.fresh
    assert imported_before.__code__ is code  # the inner block took nothing away
    kernels.uninstall()
    assert imported_before.__code__ is not code and str(inspect.signature(imported_before)) == text
    assert imported_before.__defaults__[0] == 0.01
    kernels.uninstall()
    kernels.install()
    assert str(inspect.signature(imported_before)) == text


def test_every_way_to_reach_a_function_takes_the_detour():
    import gsplat.cuda._wrapper as wrapper
    import gsplat.rendering as rendering
    from gsplat import rasterization as imported_after

    view, K = camera()
    splats = start(20)
    expected = kernels.rasterization(splats["means"], splats["quats"], splats["scales"].exp(), splats["opacities"].sigmoid(),
                                     splats["sh0"][:, 0], view[None], K[None], SIZE, SIZE)[0]  # fmt: skip
    for function in (imported_before, imported_after, gsplat.rasterization, rendering.rasterization):
        picture, _, meta = function(splats["means"], splats["quats"], splats["scales"].exp(), splats["opacities"].sigmoid(),
                                    splats["sh0"][:, 0], view[None], Ks=K[None], width=SIZE, height=SIZE)  # fmt: skip
        assert torch.equal(picture, expected) and meta["n_cameras"] == 1
    directions, coefficients = torch.randn(5, 3), torch.randn(5, 4, 3)
    for function in (harmonics_before, wrapper.spherical_harmonics, rendering.spherical_harmonics):
        assert torch.equal(function(1, directions, coefficients), kernels.spherical_harmonics(1, directions, coefficients))
    covars, _ = wrapper.quat_scale_to_covar_preci(splats["quats"], splats["scales"].exp())
    assert covars.shape == (20, 3, 3)
    radii, means2d, depths, *_ = gsplat.fully_fused_projection(splats["means"], None, splats["quats"], splats["scales"].exp(),
                                                               view[None], K[None], SIZE, SIZE)  # fmt: skip
    _, isect_ids, _ = wrapper.isect_tiles(means2d, radii, depths, 16, 2, 2)  # decorated with torch.no_grad
    assert gsplat.isect_offset_encode(isect_ids, 1, 2, 2).shape == (1, 2, 2)


def test_tensors_elsewhere_go_to_the_library():
    with pytest.raises(Exception) as error:  # gsplat's own code meets tensors without data
        harmonics_before(0, torch.zeros(2, 3, device="meta"), torch.zeros(2, 1, 3, device="meta"))
    assert any("gsplat" in str(entry.path) for entry in error.traceback)


def test_image_fitting():
    """What gsplat's image-fitting example does: flat colours, one camera, mean squared error, every parameter under one Adam."""
    torch.manual_seed(0)
    n, (view, K) = 150, camera()
    target = torch.ones(SIZE, SIZE, 3)
    target[: SIZE // 2, : SIZE // 2] = torch.tensor([1.0, 0.0, 0.0])
    target[SIZE // 2 :, SIZE // 2 :] = torch.tensor([0.0, 0.0, 1.0])
    means = torch.nn.Parameter(4 * (torch.rand(n, 3) - 0.5))
    scales, rgbs, quats = (torch.nn.Parameter(t) for t in (0.3 * torch.rand(n, 3), torch.rand(n, 3), torch.randn(n, 4)))
    opacities = torch.nn.Parameter(torch.ones(n))
    optimizer, losses = torch.optim.Adam([means, scales, rgbs, quats, opacities], lr=0.02), []
    for _ in range(40):
        renders, _, _ = imported_before(means, quats / quats.norm(dim=-1, keepdim=True), scales, torch.sigmoid(opacities),
                                        torch.sigmoid(rgbs), view[None], K[None], SIZE, SIZE, packed=False)  # fmt: skip
        loss = torch.nn.functional.mse_loss(renders[0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def train(strategy, initialize, steps, *, packed=False, post):
    """A simple trainer: random view, random background, L1, one Adam a parameter, the strategy's two calls. Losses and counts."""
    torch.manual_seed(0)
    views, Ks = (torch.stack(x) for x in zip(*(camera(0.5 * i) for i in range(6)), strict=True))
    truth = start(80, 0.8, seed=1)
    with torch.no_grad():
        pictures = torch.cat([draw(truth, views[i : i + 1], Ks[i : i + 1])[0] for i in range(6)])
        alphas = torch.cat([draw(truth, views[i : i + 1], Ks[i : i + 1])[1] for i in range(6)])
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in start().items()})
    rates = {"means": 4e-3, "scales": 1e-2, "quats": 1e-2, "opacities": 5e-2, "sh0": 2e-2, "shN": 1e-3}
    optimizers = {
        name: torch.optim.Adam([{"params": params[name], "lr": lr, "name": name}], eps=1e-15) for name, lr in rates.items()
    }
    strategy.check_sanity(params, optimizers)
    state, losses, counts = initialize(strategy), [], []
    for step in range(steps):
        i, behind = step % 6, torch.rand(1, 3)
        renders, _, info = draw(params, views[i : i + 1], Ks[i : i + 1], packed=packed, backgrounds=behind, absgrad=False)
        strategy.step_pre_backward(params, optimizers, state, step, info)
        loss = (renders - (pictures[i] + (1 - alphas[i]) * behind)).abs().mean()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        strategy.step_post_backward(params, optimizers, state, step, info, **post)
        losses.append(loss.item())
        counts.append(len(params["means"]))
    return losses, counts, params


@pytest.mark.parametrize("packed", [False, True])
def test_simple_trainer_with_the_default_strategy(packed):
    strategy = gsplat.DefaultStrategy(refine_start_iter=10, refine_every=20, refine_stop_iter=50, grow_grad2d=5e-4, verbose=False)
    losses, counts, _ = train(strategy, lambda s: s.initialize_state(scene_scale=1.0), 60, packed=packed, post={"packed": packed})
    assert sum(losses[-6:]) < 0.75 * sum(losses[:6])
    changes = [step for step in range(1, 60) if counts[step] != counts[step - 1]]
    assert changes and set(changes) <= {20, 40}  # every 20 steps, after step 10 and before step 50
    assert max(counts) > 120


def test_simple_trainer_with_mcmc():
    strategy = gsplat.MCMCStrategy(cap_max=150, refine_start_iter=10, refine_every=20, refine_stop_iter=50, noise_lr=1e3)
    losses, counts, params = train(strategy, lambda s: s.initialize_state(), 60, post={"lr": 4e-3})
    assert sum(losses[-6:]) < 0.75 * sum(losses[:6])
    assert counts[19] == 120 and counts[20] == 126 and counts[39] == 126 and counts[40] == 132 and counts[-1] == 132
    assert all(torch.isfinite(p).all() for p in params.values())


def test_mcmc_moves_dead_splats_onto_live_ones():
    from gsplat.strategy.ops import relocate

    torch.manual_seed(0)
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in start(30).items()})
    with torch.no_grad():
        params["opacities"][:10] = -9.0
    optimizers = {name: torch.optim.Adam([params[name]], lr=1e-3) for name in params}
    binoms = gsplat.MCMCStrategy().initialize_state()["binoms"]
    relocate(params, optimizers, {}, params["opacities"].sigmoid() < 0.005, binoms)
    assert (params["opacities"].sigmoid() > 0.005).all()
    assert (torch.cdist(params["means"][:10], params["means"][10:]) == 0).any(dim=1).all()


def test_selective_adam_of_gsplat():
    x = torch.nn.Parameter(torch.ones(6, 2))
    optimizer = gsplat.SelectiveAdam([{"params": [x], "lr": 0.1}], eps=1e-15, betas=(0.9, 0.999))
    (x**2).sum().backward()
    optimizer.step(torch.arange(6) % 2 == 0)
    assert (x[::2] < 1).all() and torch.equal(x[1::2], torch.ones(3, 2))


def test_surfels_by_gsplat_name():
    view, K = camera()
    s = start(30)
    out = gsplat.rasterization_2dgs(s["means"], s["quats"], s["scales"].exp(), s["opacities"].sigmoid(), s["sh0"][:, 0], view[None],
                                    K[None], SIZE, SIZE, render_mode="RGB+ED", distloss=True)  # fmt: skip
    assert len(out) == 7 and out[0].shape == (1, SIZE, SIZE, 4) and out[2].shape == (1, SIZE, SIZE, 3)


def test_nerfacc_estimators_of_the_real_library_run_on_the_cpu():
    nerfacc = pytest.importorskip("nerfacc", reason="nerfacc is not installed")
    torch.manual_seed(0)
    origins, directions = torch.tensor([[0.0, 0.0, -3.0]]).repeat(8, 1), torch.nn.functional.normalize(
        torch.tensor([0.0, 0.0, 1.0]) + 0.1 * torch.randn(8, 3), dim=-1)  # fmt: skip

    def density(points):
        return 20.0 * (points.norm(dim=-1, keepdim=True) < 0.6)

    grid = nerfacc.OccGridEstimator(roi_aabb=[-1.0, -1, -1, 1, 1, 1], resolution=16)
    grid.train()
    grid.update_every_n_steps(0, lambda x: density(x) * 0.1)
    indices, starts, ends = grid.sampling(origins, directions, render_step_size=0.05)
    assert len(indices) and (ends > starts).all()

    def rgb_sigma(t_starts, t_ends, ray_indices):
        points = origins[ray_indices] + directions[ray_indices] * (0.5 * (t_starts + t_ends))[:, None]
        return torch.ones(len(t_starts), 3), density(points).squeeze(-1)

    colors, opacities, _, _ = nerfacc.rendering(starts, ends, indices, n_rays=8, rgb_sigma_fn=rgb_sigma)
    assert colors.shape == (8, 3) and opacities.max() > 0.9
    proposals = nerfacc.PropNetEstimator()

    def proposal(t_starts, t_ends):
        return density(origins[:, None] + directions[:, None] * (0.5 * (t_starts + t_ends))[..., None])[..., 0] + 0.1

    t_starts, t_ends = proposals.sampling([proposal], [32], 8, n_rays=8, near_plane=1.0, far_plane=5.0)
    assert t_starts.shape == (8, 8) and (t_ends >= t_starts).all()
