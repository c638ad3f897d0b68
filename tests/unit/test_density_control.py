"""Density control keeps parameters, moments and statistics in step, and does what gsplat's strategy does."""

from __future__ import annotations

import threading

import pytest
import torch

from nsw.cameras import orbit
from nsw.methods import density_control as dc
from nsw.methods.gaussian_splatting import make_optimizers
from nsw.models.gaussians import NAMES, Gaussians
from nsw.renderers.splats import render_view

BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])


def a_model(n: int = 40, seed: int = 0):
    """Return splats of mixed size and opacity, with moments that name their row: exp_avg = row + 1 everywhere."""
    generator = torch.Generator().manual_seed(seed)
    splats = Gaussians.random(BOX, n, generator, sh_degree=1)
    with torch.no_grad():
        splats.scales.copy_(torch.log(0.002 + 0.3 * torch.rand(n, 3, generator=generator) ** 4))
        splats.opacities.copy_(torch.logit(0.001 + 0.6 * torch.rand(n, generator=generator) ** 3))
        splats.quats.copy_(torch.randn(n, 4, generator=generator))
    optimizers = make_optimizers(splats)
    for name, optimizer in optimizers.items():
        splats.params[name].grad = torch.ones_like(splats.params[name])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        moments = optimizer.state[splats.params[name]]
        shape = (n,) + (1,) * (splats.params[name].dim() - 1)
        moments["exp_avg"].copy_(torch.arange(1.0, n + 1).reshape(shape).expand_as(moments["exp_avg"]))
    rows = dc.new_rows(n)
    rows["count"] += torch.randint(0, 5, (n,), generator=generator)
    rows["grad2d"] += 4e-4 * torch.rand(n, generator=generator) * rows["count"]
    return splats, optimizers, rows


def moments(splats, optimizers, name, key="exp_avg"):
    return optimizers[name].state[splats.params[name]][key]


def assert_in_step(splats, optimizers, rows):
    n = len(splats)
    for name in NAMES:
        parameter = splats.params[name]
        assert parameter.shape[0] == n
        assert optimizers[name].param_groups[0]["params"] == [parameter]
        assert list(optimizers[name].state) == [parameter]
        assert moments(splats, optimizers, name).shape == parameter.shape
        assert moments(splats, optimizers, name, "exp_avg_sq").shape == parameter.shape
    assert {len(value) for value in rows.values()} == {n}


def test_clone_appends_exact_copies_without_moments():
    splats, optimizers, rows = a_model()
    before = {name: splats.params[name].detach().clone() for name in NAMES}
    chosen = torch.zeros(40, dtype=torch.bool)
    chosen[[3, 17]] = True
    dc.clone(splats.params, optimizers, rows, chosen)
    assert len(splats) == 42
    assert_in_step(splats, optimizers, rows)
    for name in NAMES:
        assert torch.equal(splats.params[name][:40], before[name])
        assert torch.equal(splats.params[name][40:], before[name][[3, 17]])
        assert torch.all(moments(splats, optimizers, name)[40:] == 0)
        assert torch.all(moments(splats, optimizers, name)[17] == 18)


def test_split_replaces_parents_by_smaller_children_inside_them():
    splats, optimizers, rows = a_model(2000)
    chosen = torch.ones(2000, dtype=torch.bool)
    chosen[:10] = False
    before = {name: splats.params[name].detach().clone() for name in NAMES}
    parent_covariance = splats.covariances.detach()[10:]
    dc.split(splats.params, optimizers, rows, chosen, torch.Generator().manual_seed(0))
    assert len(splats) == 10 + 2 * 1990
    assert_in_step(splats, optimizers, rows)
    assert torch.equal(splats.means[:10], before["means"][:10])
    assert torch.allclose(splats.scales[10:2000], before["scales"][10:] - torch.log(torch.tensor(1.6)))
    assert torch.equal(splats.opacities[2000:], before["opacities"][10:])
    assert torch.all(moments(splats, optimizers, "means")[10:] == 0)
    assert torch.all(moments(splats, optimizers, "means")[9] == 10)
    # Whitened by the parent's covariance, the offsets are standard normal
    offset = (splats.means[10:2000] - before["means"][10:]).double()
    white = torch.linalg.solve(torch.linalg.cholesky(parent_covariance.double()), offset[..., None])[..., 0]
    assert torch.allclose(white.T @ white / len(white), torch.eye(3, dtype=torch.double), atol=0.12)


def test_revised_opacity_keeps_what_two_children_let_through():
    splats, optimizers, rows = a_model()
    o = splats.activated_opacities.detach()
    dc.split(splats.params, optimizers, rows, torch.ones(40, dtype=torch.bool), revised_opacity=True)
    child = splats.activated_opacities[:40]
    assert torch.allclose((1 - child) ** 2, 1 - o, atol=1e-5)


def test_prune_drops_rows_and_their_moments():
    splats, optimizers, rows = a_model()
    doomed = torch.arange(40) % 3 == 0
    dc.prune(splats.params, optimizers, rows, doomed)
    assert_in_step(splats, optimizers, rows)
    assert moments(splats, optimizers, "opacities").tolist() == [i + 1.0 for i in range(40) if i % 3]


def test_adam_moves_clones_like_a_fresh_parameter():
    """After growth a step uses the kept moments for old rows and none for new ones: compare with two separate Adams."""
    splats, optimizers, rows = a_model(6)
    chosen = torch.tensor([True, False, False, False, False, True])
    old = moments(splats, optimizers, "sh0").clone(), moments(splats, optimizers, "sh0", "exp_avg_sq").clone()
    dc.clone(splats.params, optimizers, rows, chosen)
    gradient = torch.randn(8, 1, 3)
    splats.sh0.grad = gradient.clone()
    optimizers["sh0"].param_groups[0]["lr"] = 0.1
    before = splats.sh0.detach().clone()
    optimizers["sh0"].step()
    m = 0.9 * torch.cat([old[0], torch.zeros(2, 1, 3)]) + 0.1 * gradient
    v = 0.999 * torch.cat([old[1], torch.zeros(2, 1, 3)]) + 0.001 * gradient**2
    expected = before - 0.1 * (m / (1 - 0.9**2)) / ((v / (1 - 0.999**2)).sqrt() + 1e-15)
    assert torch.allclose(splats.sh0, expected, atol=1e-5)


def test_opacity_reset_clamps_and_forgets():
    splats, optimizers, _ = a_model()
    faint = splats.activated_opacities.detach() < 0.01
    before = splats.opacities.detach().clone()
    dc.reset_opacity(splats.params, optimizers, 0.01)
    assert torch.equal(splats.opacities[faint], before[faint])
    assert torch.allclose(splats.activated_opacities[~faint], torch.tensor(0.01))
    assert torch.all(moments(splats, optimizers, "opacities") == 0)
    assert torch.all(moments(splats, optimizers, "means") != 0)


def fake_meta(n: int, cameras: int = 2, absgrad: bool = False) -> dict:
    means2d = torch.zeros(cameras, n, 2, requires_grad=True)
    means2d.grad = torch.randn(cameras, n, 2) * 1e-6
    if absgrad:
        means2d.absgrad = means2d.grad.abs() * 3
    radii = torch.randint(0, 3, (cameras, n, 2), dtype=torch.int32)
    return {"means2d": means2d, "radii": radii, "width": 120, "height": 80, "n_cameras": cameras, "gaussian_ids": None}


@pytest.mark.parametrize("absgrad", [False, True])
def test_statistics_are_those_of_gsplat(absgrad):
    from gsplat.strategy import DefaultStrategy

    torch.manual_seed(0)
    splats, _, _ = a_model()
    strategy = DefaultStrategy(absgrad=absgrad)
    state, rows = strategy.initialize_state(), dc.new_rows(40)
    for _ in range(3):
        meta = fake_meta(40, absgrad=absgrad)
        strategy._update_state(splats.params, state, meta, packed=False)
        dc.accumulate(rows, meta, absgrad)
    assert torch.equal(rows["count"], state["count"])
    assert torch.allclose(rows["grad2d"], state["grad2d"], rtol=1e-5)
    assert float(rows["grad2d"].sum()) > 0


@pytest.mark.parametrize("revised_opacity", [False, True])
@pytest.mark.parametrize("step", [600, 3600])
def test_refinement_is_that_of_gsplat(step, revised_opacity):
    """Same counts, and with the same random numbers the same splats in the same order with the same moments."""
    from gsplat.strategy import DefaultStrategy

    ours, our_optimizers, rows = a_model()
    theirs, their_optimizers, their_rows = a_model()
    strategy = DefaultStrategy(revised_opacity=revised_opacity)
    state = {"grad2d": their_rows["grad2d"], "count": their_rows["count"], "scene_scale": 1.7}
    torch.manual_seed(11)
    cloned, split = strategy._grow_gs(theirs.params, their_optimizers, state, step)
    pruned = strategy._prune_gs(theirs.params, their_optimizers, state, step)
    control = dc.DensityControl(revised_opacity=revised_opacity)
    generator = torch.Generator().manual_seed(11)
    refined = dc.refine(ours.params, our_optimizers, rows, step, control, 1.7, generator)
    assert (refined.cloned, refined.split, refined.pruned) == (cloned, split, pruned)
    assert min(cloned, split, pruned) > 0
    assert_in_step(ours, our_optimizers, rows)
    for name in NAMES:
        assert torch.allclose(ours.params[name], theirs.params[name], atol=1e-6), name
        assert torch.equal(moments(ours, our_optimizers, name), moments(theirs, their_optimizers, name)), name


def test_refinement_remembers_where_splats_come_from_and_starts_counting_anew():
    splats, optimizers, rows = a_model()
    refined = dc.refine(splats.params, optimizers, rows, 700, dc.DensityControl(prune_opacity=0.0), 1.0)
    origin = rows["origin"].tolist()
    assert origin.count(dc.CLONE) == refined.cloned > 0
    assert origin.count(dc.SPLIT) == 2 * refined.split > 0
    assert set(rows["born"][rows["origin"] != dc.START].tolist()) == {700}
    assert float(rows["grad2d"].sum() + rows["count"].sum()) == 0


def test_growth_stops_at_the_cap_and_takes_the_strongest():
    splats, optimizers, rows = a_model()
    strongest = torch.argsort(rows["grad2d"] / rows["count"].clamp_min(1), descending=True)[:5]
    to_clone, to_split = dc.choose_growth(splats.params, rows, dc.DensityControl(max_splats=45), 1.0)
    assert sorted((to_clone | to_split).nonzero()[:, 0].tolist()) == sorted(strongest.tolist())
    to_clone, to_split = dc.choose_growth(splats.params, rows, dc.DensityControl(max_splats=40), 1.0)
    assert not bool((to_clone | to_split).any())


def test_pruning_never_empties_the_model():
    splats, optimizers, rows = a_model()
    refined = dc.refine(splats.params, optimizers, rows, 700, dc.DensityControl(prune_opacity=1.1), 1.0)
    assert refined.pruned == 0
    assert len(splats) == refined.n > 0


def test_the_calendar():
    control = dc.DensityControl()
    assert [s for s in range(0, 900) if control.due(s)] == [600, 700, 800]
    assert [s for s in range(0, 16_000) if control.reset_due(s)] == [3000, 6000, 9000, 12_000]
    short = control.for_budget(1000)
    assert not any(short.reset_due(s) for s in range(1000))
    assert [s for s in range(10_000) if control.for_budget(10_000).reset_due(s)] == [3000]  # 7,000 steps to come back
    assert sum(short.due(s) for s in range(1000)) >= 8
    assert max(s for s in range(1000) if short.due(s)) < 500


def test_a_viewer_never_sees_half_a_growth(monkeypatch):
    """A picture asked for while rows are being replaced waits for all of them; halves of two sizes would not even compose."""
    splats, camera = Gaussians.random(torch.tensor([[-1.0] * 3, [1.0] * 3]), 20, sh_degree=1), orbit(1, 3.0, width=16, height=16)
    halfway, go_on, pictures, made = threading.Event(), threading.Event(), [], []
    parameter = dc.nn.Parameter
    render_view(splats, camera)  # what follows takes a millisecond

    def slow(*args, **options):
        made.append(parameter(*args, **options))
        if len(made) == 2:
            halfway.set()
            go_on.wait(20)
        return made[-1]

    monkeypatch.setattr(dc.nn, "Parameter", slow)
    rows = dc.new_rows(20)
    growing = threading.Thread(target=dc.clone, args=(splats.params, {}, rows, torch.ones(20, dtype=torch.bool)))
    looking = threading.Thread(target=lambda: pictures.append(render_view(splats, camera)))
    growing.start()
    assert halfway.wait(20)
    looking.start()
    looking.join(0.5)
    assert looking.is_alive() and not pictures
    go_on.set()
    growing.join(20)
    looking.join(20)
    assert len(pictures) == 1 and len(splats) == 40
