"""The chain of 3DGS-MCMC: jumps keep the picture, noise has the covariance it promises, rows stay in step."""

from __future__ import annotations

import pytest
import torch

from nsw import scenes
from nsw.cameras import orbit
from nsw.kernels.projection_reference import covariance
from nsw.methods import gaussian_splatting as gs
from nsw.methods import mcmc, mcmc_chain, mcmc_inspect
from nsw.methods.density_control import new_rows
from nsw.models.gaussians import NAMES, Gaussians
from nsw.renderers.splats import render_view
from nsw.runs import checkpoints

BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
N = 60


def a_model(n: int = N, n_dead: int = 15, seed: int = 0):
    """Return splats of which the first n_dead are dead, with moments that name their row: exp_avg = row + 1 everywhere."""
    generator = torch.Generator().manual_seed(seed)
    splats = Gaussians.random(BOX, n, generator, sh_degree=1)
    with torch.no_grad():
        splats.scales.copy_(torch.log(0.05 + 0.2 * torch.rand(n, 3, generator=generator)))
        splats.quats.copy_(torch.randn(n, 4, generator=generator))
        splats.opacities.copy_(torch.logit(0.05 + 0.9 * torch.rand(n, generator=generator)))
        splats.opacities[:n_dead] = -8.0
    optimizers = gs.make_optimizers(splats)
    for name, optimizer in optimizers.items():
        splats.params[name].grad = torch.ones_like(splats.params[name])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        moments = optimizer.state[splats.params[name]]["exp_avg"]
        moments.copy_(torch.arange(1.0, n + 1).reshape(n, *[1] * (moments.dim() - 1)).expand_as(moments))
    return splats, optimizers, new_rows(n)


def values(splats):
    return {name: splats.params[name].detach().clone() for name in NAMES}


def moments(splats, optimizers, name):
    return optimizers[name].state[splats.params[name]]["exp_avg"]


@pytest.mark.parametrize(("o", "n", "new", "shrink"), [(0.5, 2, 0.292893, 0.952152), (0.95, 2, 0.776393, 0.843281),
                         (0.95, 4, 0.527129, 0.772804), (0.1, 2, 0.051317, 0.992346), (0.99, 50, 0.087989, 0.642245)])  # fmt: skip
def test_shared_golden_values(o, n, new, shrink):
    opacities, scales = mcmc.shared(torch.tensor([o]), torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([n]))
    assert opacities.item() == pytest.approx(new, abs=1e-5)
    assert torch.allclose(scales, shrink * torch.tensor([[1.0, 2.0, 3.0]]), atol=3e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 20, 51])
def test_shared_keeps_centre_and_line_integral(n):
    """N copies composite to the old opacity, and the integral of the stack's opacity along a line to the old integral."""
    o = torch.linspace(0.02, 0.99, 30, dtype=torch.float64)
    counts = torch.full((30,), n)
    new, scales = mcmc.shared(o, torch.ones(30, 3, dtype=torch.float64), counts)
    assert torch.equal(counts, torch.full((30,), n))  # compute_relocation clamps in place; callers' counts stay
    assert torch.allclose(1 - (1 - new) ** n, o, atol=1e-12)
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    before = torch.trapezoid(o[:, None] * torch.exp(-0.5 * x**2), x)
    stack = 1 - (1 - new[:, None] * torch.exp(-0.5 * (x / scales[:, :1]) ** 2)) ** n
    assert torch.allclose(torch.trapezoid(stack, x), before, rtol=1e-8)


@pytest.mark.parametrize(
    ("o", "n", "naive", "full"), [(0.5, 2, 0.0748, 0.0023), (0.95, 2, 0.0902, 0.0191), (0.95, 4, 0.1846, 0.0281)]
)
def test_relocation_changes_the_image_far_less_than_copies(o, n, naive, full):
    axis = torch.linspace(-4, 4, 401, dtype=torch.float64)
    r2 = axis[:, None] ** 2 + axis**2
    before = o * torch.exp(-0.5 * r2)
    given = torch.tensor([o], dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64), torch.tensor([n])
    errors = []
    for alpha, s in (mcmc.copied(*given), mcmc.shared(*given)):
        stack = 1 - (1 - alpha * torch.exp(-0.5 * r2 / s[0, 0] ** 2)) ** n
        errors.append(float((stack - before).square().mean().sqrt()))
    assert errors == pytest.approx([naive, full], abs=1e-4) and errors[1] < 0.35 * errors[0]


def test_jumps_and_growth_keep_the_rendered_picture():
    view = orbit(1, 4.0, 20.0, width=48, height=48)
    pictures = {}
    for rule in (mcmc.shared, mcmc.copied):
        splats, optimizers, rows = a_model()
        before = render_view(splats, view).rgb.detach()
        mcmc.relocate(splats.params, optimizers, rule=rule, generator=torch.Generator().manual_seed(0))
        mcmc.add(splats.params, optimizers, rows, 20, rule=rule, generator=torch.Generator().manual_seed(1))
        pictures[rule] = float((render_view(splats, view).rgb.detach() - before).square().mean().sqrt())
    assert pictures[mcmc.shared] < 0.02 and pictures[mcmc.shared] < 0.35 * pictures[mcmc.copied], pictures


def test_dead_splats_land_on_live_ones_and_moments_follow():
    splats, optimizers, _ = a_model()
    before = values(splats)
    dead, target = mcmc.relocate(splats.params, optimizers, generator=torch.Generator().manual_seed(0))
    assert dead.tolist() == list(range(15)) and bool((target >= 15).all()) and len(splats) == N
    for name in NAMES:
        assert torch.equal(splats.params[name][dead], splats.params[name][target])
        assert optimizers[name].param_groups[0]["params"] == [splats.params[name]]
        m = moments(splats, optimizers, name)
        assert torch.all(m[target] == 0) and torch.all(m[3] == 4)
    untouched = torch.ones(N, dtype=torch.bool)
    untouched[dead] = untouched[target] = False
    for name in NAMES:
        assert torch.equal(splats.params[name][untouched], before[name][untouched])
    assert bool((splats.activated_opacities > 0.005).all())
    assert torch.all(splats.opacities[target] < before["opacities"][target])


def test_the_more_opaque_are_drawn_more_often_and_the_dead_never():
    splats, _, _ = a_model()
    alive = splats.activated_opacities > 0.005
    picks = mcmc.draw(splats.params, 60_000, alive, torch.Generator().manual_seed(0))
    shares = torch.bincount(picks, minlength=N) / 60_000
    wanted = splats.activated_opacities.detach() * alive
    assert torch.all(shares[:15] == 0)
    assert torch.allclose(shares, wanted / wanted.sum(), atol=4e-3)


def test_nothing_moves_when_nobody_lives_or_nobody_is_dead():
    for n_dead in (0, N):
        splats, optimizers, _ = a_model(n_dead=n_dead)
        before = values(splats)
        dead, target = mcmc.relocate(splats.params, optimizers)
        assert len(dead) == len(target) == 0
        assert all(torch.equal(splats.params[name], before[name]) for name in NAMES)


def test_a_row_drawn_twice_becomes_one_of_three():
    splats, _, _ = a_model(n_dead=0)
    before = values(splats)
    mcmc.share(splats.params, torch.tensor([7, 7, 20]))
    o = before["opacities"].sigmoid()
    opacity = {7: 1 - (1 - o[7]) ** (1 / 3), 20: 1 - (1 - o[20]) ** (1 / 2)}
    for row, wanted in opacity.items():
        assert float(splats.activated_opacities[row].detach()) == pytest.approx(float(wanted), rel=1e-4)
        assert bool((splats.scales[row] < before["scales"][row]).all())
    others = torch.ones(N, dtype=torch.bool)
    others[[7, 20]] = False
    assert all(torch.equal(splats.params[name][others], before[name][others]) for name in NAMES)
    assert all(torch.equal(splats.params[name], before[name]) for name in ("means", "quats", "sh0", "shN"))


def test_growth_appends_copies_without_moments():
    splats, optimizers, rows = a_model()
    mcmc.add(splats.params, optimizers, rows, 12, generator=torch.Generator().manual_seed(0))
    assert len(splats) == N + 12 and {len(value) for value in rows.values()} == {N + 12}
    for name in NAMES:
        m = moments(splats, optimizers, name)
        assert torch.all(m[N:] == 0) and torch.all(m[20] == 21)
        assert splats.params[name].shape == m.shape
    same = (splats.means[N:, None] == splats.means[:N]).all(dim=-1)
    assert torch.all(same.sum(dim=1) == 1)
    assert torch.equal(splats.opacities[N:], splats.opacities[:N][same.nonzero()[:, 1]])


def test_noise_has_covariance_of_sigma_squared_times_the_gate():
    n, size = 40_000, 3.0
    quat, scale = torch.tensor([0.8, 0.2, -0.4, 0.4]), torch.tensor([0.3, 0.1, 0.02])
    splats = Gaussians.from_values(
        torch.zeros(n, 3), scale.expand(n, 3), quat.expand(n, 4), torch.full((n,), 0.004), torch.ones(n, 3)
    )
    mcmc.add_noise(splats.params, size, generator=torch.Generator().manual_seed(0))
    step = splats.means.detach().double() / (size * mcmc.noise_gate(torch.tensor(0.004)).double())
    Sigma = covariance(quat[None].double(), scale[None].double())[0]
    found, wanted = step.T @ step / n, Sigma @ Sigma
    assert torch.allclose(found, wanted, atol=0.02 * float(wanted.diagonal().max()))
    assert step.mean(dim=0).abs().max() < 4 * float(wanted.diagonal().max()) ** 0.5 / n**0.5


def test_noise_goes_with_length_squared_and_spares_the_opaque():
    moved = []
    for k in (1.0, 2.0):
        scales = torch.full((2, 3), 0.1 * k)
        splats = Gaussians.from_values(torch.zeros(2, 3), scales, [[1.0, 0, 0, 0]] * 2, [0.004, 0.5], torch.ones(2, 3))
        mcmc.add_noise(splats.params, 1.0, generator=torch.Generator().manual_seed(0))
        moved.append(splats.means.detach().norm(dim=1))
    assert float(moved[1][0]) == pytest.approx(4 * float(moved[0][0]), rel=1e-5)
    assert max(float(m[1]) for m in moved) < 1e-18 < 1e-3 < float(moved[0][0])


def test_gate_values_of_the_paper():
    o = torch.tensor([0.0, 0.005, 0.01, 0.05, 0.1], dtype=torch.float64)
    assert mcmc.noise_gate(o).tolist() == pytest.approx([0.6225, 0.5, 0.3775, 0.01099, 7.48e-5], rel=1e-3)


def train_a_little(n_steps=24, fresh=None, **changes):
    view = orbit(1, 4.0, 20.0, width=32, height=32)
    splats, _, _ = a_model(n_dead=5)
    sampling = mcmc_chain.Sampling(max_splats=70, start=2, stop=20, every=4, noise_lr=1e2, **changes)
    training, moves = mcmc_chain.Chain(splats, 1.0, n_steps, sampling, seed=3), []
    for step in range(n_steps):
        if fresh is not None and step == 11:
            fresh.load_state_dict(training.state_dict())
            training = fresh
        render = render_view(training.gaussians, view)
        ((render.rgb - 0.2).abs().mean() + training.penalty(step)).backward()
        moves.append(training.step(step, render.extras["meta"]))
    return training, moves


def test_the_chain_moves_on_time_and_never_beyond_the_limit():
    training, moves = train_a_little()
    happened = [step for step, moved in enumerate(moves) if moved is not None]
    assert happened == [4, 8, 12, 16]
    first = moves[4]
    assert len(first.dead) == 5 and first.places.shape == (5, 3) and first.added == 3
    assert [moves[step].n for step in happened] == [63, 66, 69, 70] and len(training.gaussians) == 70
    assert (training.rows["origin"] == mcmc_chain.ADDED).sum() >= 10 - 5 and set(training.rows["origin"].tolist()) <= {0, 1, 2}


def test_one_refinement_books_who_jumped_and_who_was_added():
    splats, _, _ = a_model()
    before = splats.means.detach().clone()
    chain = mcmc_chain.Chain(splats, 1.0, 10, mcmc_chain.Sampling(max_splats=62), seed=0)
    moved = chain.refine(4, torch.Generator().manual_seed(0))
    assert moved.dead.tolist() == list(range(15)) and torch.equal(moved.places, before[:15]) and (moved.added, moved.n) == (2, 62)
    assert torch.equal(chain.gaussians.means[:15], before[moved.target])
    origin, born = chain.rows["origin"], chain.rows["born"]
    assert set(origin[:15].tolist()) == {mcmc_chain.JUMPED} and set(origin[60:].tolist()) == {mcmc_chain.ADDED}
    assert set(origin[15:60].tolist()) == {0} and born[:15].tolist() == [4] * 15 and born[60:].tolist() == [4, 4]


def test_an_interrupted_chain_ends_where_an_uninterrupted_one_ends():
    whole, _ = train_a_little()
    other = mcmc_chain.Chain(Gaussians.random(BOX, 3, sh_degree=1), 1.0, 24, whole.sampling, seed=3)
    resumed, _ = train_a_little(fresh=other)
    assert resumed is other and all(torch.equal(whole.gaussians.params[name], resumed.gaussians.params[name]) for name in NAMES)


def test_penalty_shrinks_and_fades_by_the_mean():
    splats, _, _ = a_model()
    chain = mcmc_chain.Chain(splats, 1.0, 10, mcmc_chain.Sampling(100, opacity_weight=0.3, scale_weight=0.7))
    wanted = 0.3 * splats.opacities.sigmoid().mean() + 0.7 * splats.scales.exp().mean()
    assert float(chain.penalty(3).detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    chain.penalty(3).backward()
    assert torch.all(splats.opacities.grad > 0) and torch.all(splats.scales.grad > 0) and splats.means.grad is None


def test_stack_curves_are_those_of_the_formula():
    x, curves = mcmc_inspect.stack_profiles(0.95, 4)
    assert list(curves) == ["one splat", "copies", "opacity shared", "opacity and scale shared"]
    one, copies, opacity, both = curves.values()
    middle = len(x) // 2
    assert abs(float(x[middle])) < 1e-6 and float(one[middle]) == pytest.approx(0.95)
    assert float(copies[middle]) == pytest.approx(1 - 0.05**4) and float(opacity[middle]) == pytest.approx(0.95)
    areas = [float(torch.trapezoid(curve, x)) for curve in curves.values()]
    assert areas[3] == pytest.approx(areas[0], rel=1e-3) and areas[1] > areas[2] > 1.05 * areas[0]


def test_expected_jump_is_the_root_mean_square_of_the_noise():
    n, scale, quat = 30_000, torch.tensor([0.3, 0.1, 0.02]), torch.tensor([0.8, 0.2, -0.4, 0.4])
    splats = Gaussians.from_values(
        torch.zeros(n, 3), scale.expand(n, 3), quat.expand(n, 4), torch.full((n,), 0.03), torch.ones(n, 3)
    )
    expected = mcmc_inspect.expected_jump(splats, 2.0, 0.05)
    mcmc.add_noise(splats.params, 2.0, 0.05, torch.Generator().manual_seed(0))
    assert float(splats.means.detach().square().sum(dim=1).mean().sqrt()) == pytest.approx(float(expected[0]), rel=0.02)


def test_melting_leaves_the_original_and_spares_the_opaque():
    splats, _, _ = a_model(n_dead=0)
    before = values(splats)
    still = mcmc_inspect.melted(splats, 1.0, -1.0, n_steps=3)
    soft = mcmc_inspect.melted(splats, 1.0, 2.0, n_steps=3)
    assert torch.equal(still.means, before["means"]) and not torch.allclose(soft.means, before["means"], atol=1e-3)
    assert all(torch.equal(splats.params[name], before[name]) for name in NAMES)


def test_strays_are_the_visible_splats_outside_the_box():
    means = [[0.0, 0, 0], [3, 0, 0], [3, 0, 0], [0, 0, -2]]
    splats = Gaussians.from_values(means, torch.full((4, 3), 0.1), [[1.0, 0, 0, 0]] * 4, [0.9, 0.05, 0.5, 0.5], torch.ones(4, 3))
    assert mcmc_inspect.strays(splats, BOX) == 0.5


def test_fit_adds_the_penalty_of_every_step():
    scene = scenes.load("toybox", size=16)
    seen, faded = [], {}

    def penalty(step):
        seen.append(step)
        return 10 * mcmc.loss_opacity(training.gaussians)

    for name, extra in (("with", penalty), ("without", None)):
        splats = Gaussians.random(scene.aabb, 50, torch.Generator().manual_seed(0), sh_degree=0, opacity=0.5)
        training = gs.Training(splats, scene.scale, 4)
        gs.fit(training, scene, range(4), penalty=extra)
        faded[name] = float(splats.activated_opacities.detach().mean())
    assert seen == [0, 1, 2, 3] and faded["with"] < 0.475 < faded["without"]


def test_a_round_of_jumps_empties_the_bins_of_the_dead():
    opacities = torch.tensor([0.01] * 6 + [0.9] * 4)
    means = torch.rand(10, 3, generator=torch.Generator().manual_seed(0))
    where = means, torch.full((10, 3), 0.1), torch.tensor([[1.0, 0, 0, 0]] * 10)
    splats = Gaussians.from_values(*where, opacities, torch.full((10, 3), 0.5))
    (middle, before), (_, after) = mcmc_inspect.opacity_histograms(splats, 0.05).values()
    assert before[0] == 6 and before[middle > 0.85].sum() == 4 and before.sum() == after.sum() == 10 and after[0] == 0
    torch.testing.assert_close(splats.activated_opacities, opacities)


def test_the_chain_remembers_its_deaths_and_a_checkpoint_keeps_them(tmp_path):
    splats, _, _ = a_model()
    sampling = mcmc_chain.Sampling(N, start=0, stop=100, every=10, noise_lr=0.0)
    training = mcmc_chain.Chain(splats, 1.0, 100, sampling)
    training.refine(10)
    assert training.deaths == [(10, 15 / N)] and training.refine(20).added == 0 and len(training.deaths) == 2
    other = mcmc_chain.Chain(a_model()[0], 1.0, 100, sampling)
    path = tmp_path / "chain.ckpt"
    checkpoints.save_checkpoint(path, {"chain": training}, {}, torch.Generator())
    checkpoints.restore_objects({"chain": other}, checkpoints.load_checkpoint(path)["objects"], path)
    assert other.deaths == training.deaths


def test_pictures_of_the_chain():
    places = [[0, 0, 0], [2.0, 0, 0], [0, 3.0, 0]]
    splats = Gaussians.from_values(places, [[0.1] * 3] * 3, [[1.0, 0, 0, 0]] * 3, [0.9, 0.9, 0.01], [[0.5] * 3] * 3)
    assert mcmc_inspect.floating(splats, BOX).tolist() == [False, True, False]
    assert mcmc_inspect.strays(splats, BOX) == pytest.approx(1 / 3)
    assert torch.allclose(mcmc_inspect.floaters(splats, BOX, 0.1).base_rgb[1], torch.tensor([0.90, 0.62, 0.0]), atol=1e-5)
    arrows = mcmc_inspect.arrows(splats, 1.0, 0.05, 0.01)
    jump = (mcmc_inspect.melted(splats, 1.0, 0.05, 1).means - splats.means).norm(dim=1)
    assert torch.allclose(4 * arrows.activated_scales[:, 0], jump.clamp_min(1e-6), rtol=1e-3)
    assert arrows.base_rgb[2, 2] < 0.1 and torch.allclose(arrows.base_rgb[0], torch.full((3,), 0.7), atol=1e-3)  # open, and shut
    opacity, jumps = mcmc_inspect.jump_curve(splats, 1.0, 0.05, n=3)
    assert opacity == sorted(opacity) and jumps[0] > jumps[-1] == pytest.approx(1e-3)
    training = mcmc_chain.Chain(a_model()[0], 1.0, 100, mcmc_chain.Sampling(N, start=0, stop=100, every=10))
    view, moved = orbit(1, 4.0, width=20, height=16), training.refine(10)
    plain, threads = (mcmc_inspect.film_frame(training, view, 2.0, *more) for more in ((), (moved,)))
    assert plain.shape == threads.shape == (16, 40, 3) and torch.equal(plain[:, :20], threads[:, :20])
    assert not torch.equal(plain[:, 20:], threads[:, 20:])
