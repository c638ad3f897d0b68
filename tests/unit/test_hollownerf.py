"""HollowNeRF: the gate, saliency, the multiplier on problems with known answers, pruning, packing and the instruments."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch

from nsw import models
from nsw.cameras import Rays, camera_rays
from nsw.errors import InputError
from nsw.methods import hollownerf as hollow
from nsw.methods import hollownerf_charts as charts
from nsw.methods import hollownerf_cut as cutting
from nsw.methods import hollownerf_fit as fitting
from nsw.methods import hollownerf_inspect as look
from nsw.methods import hollownerf_pack as packing
from nsw.methods import instant_ngp as ngp
from nsw.methods import instant_ngp_inspect as hash_look
from nsw.methods.instant_ngp_fit import Plan
from nsw.models.hash_grid import HashGrid, HashGridSettings
from nsw.models.hollow_grid import HollowGrid, HollowGridSettings, soft_gate

SIZES = dict(n_levels=4, n_features=2, log2_entries=9, n_min=8, n_max=32, width=16, n_cells=16, n_saliency=9)
PLAN = Plan(n_steps=60, n_samples=4096, skip=False)
PRUNING = hollow.Pruning(limit=0.3, rho=5e-3)


@pytest.fixture(scope="module")
def trained(scene):
    pixels = ngp.training_pixels(scene, ngp.cube_around(scene.aabb))
    return pixels, fitting.retrained(scene, pixels, PLAN, PRUNING, steps_across=32, **SIZES)


def _grid(**changes) -> HollowGrid:
    torch.manual_seed(0)
    settings = dict(n_levels=3, n_features=2, log2_entries=9, n_min=4, n_max=16, width=8, n_cells=8, n_saliency=5, step=0.05)
    model = HollowGrid(HollowGridSettings(**(settings | changes)))
    model.table.data.normal_(generator=torch.Generator().manual_seed(1))
    model.measure_length()
    return model


def _points(n: int = 60) -> torch.Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(2)) * 1.98 - 0.99


def _rays(n: int = 50) -> Rays:
    generator = torch.Generator().manual_seed(3)
    origins = 3 * torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    aims = torch.rand(n, 3, generator=generator) - 0.5
    return Rays(origins, torch.nn.functional.normalize(aims - origins, dim=-1), torch.ones(n))


def test_the_gate_is_tanh_of_the_length_with_a_finite_slope_at_zero():
    v = torch.tensor([[0.0, 0.0], [3e-3, 4e-3], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    g = soft_gate(v, 100.0)
    torch.testing.assert_close(g, torch.tanh(100.0 * torch.tensor([0.0, 5e-3, 5.0], dtype=torch.float64)), atol=1e-5, rtol=0)
    (slope,) = torch.autograd.grad(g.sum(), v)
    assert bool(torch.isfinite(slope).all()) and slope[0].abs().max() == 0
    assert torch.autograd.gradcheck(lambda x: soft_gate(x, 2.0), (v[1:].detach() * 100 + 0.1).requires_grad_())


@pytest.mark.parametrize("gate, least, most", [(10.0, 0.0, 1e-6), (0.0, 0.1, 0.2)])
def test_zero_features_are_zero_density_through_the_gate_alone(gate, least, most):
    model, points = _grid(gate=gate), _points()
    model.logits.data.fill_(-40.0)
    density, _ = model.geometry(points)
    assert least <= float(density.detach().min()) and float(density.detach().max()) <= most
    torch.testing.assert_close(model.density(points), density)


def test_saliency_near_one_is_the_plain_hash_grid():
    model, points = _grid(gate=0.0), _points()
    model.logits.data.fill_(30.0)
    settings = {f.name: getattr(model.settings, f.name) for f in dataclasses.fields(HashGridSettings)}
    plain = HashGrid(HashGridSettings(**settings))
    plain.load_state_dict(model.state_dict(), strict=False)
    for ours, theirs in zip(model.query(points, points), plain.query(points, points), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_logits_are_interpolated_before_the_sigmoid_unless_told_otherwise():
    sharp, soft = _grid(), _grid(sigmoid_first=True)
    for model in (sharp, soft):
        model.logits.data.fill_(-8.0)
        model.logits.data[2:] = 24.0
    point = torch.tensor([[-0.25, 0.0, 0.0]])  # half-way between vertices 1 and 2
    assert float(sharp.saliency(point).detach()) == pytest.approx(1 / (1 + 2.718281828**-8), rel=1e-4)
    assert float(soft.saliency(point).detach()) == pytest.approx(0.5, abs=1e-3)


def test_gradients_reach_logits_and_table_but_the_gate_moves_the_saliency_alone():
    model, points = _grid(), _points()
    density, rgb, _ = model.query(points, points)
    (density.sum() + rgb.sum()).backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())
    features = torch.randn(7, 6, requires_grad=True)
    saliency = torch.full((7,), 0.01, requires_grad=True)
    model.gate(saliency, features).sum().backward()
    assert features.grad is None and float(saliency.grad.min()) > 0


def test_saliency_gradient_in_place_is_the_ordinary_one():
    model, points = _grid(), _points()
    (expected,) = torch.autograd.grad(model.saliency(points).square().sum(), model.logits)
    model.logits.grad = torch.zeros_like(model.logits)
    model.gradients_in_place = True
    model.saliency(points).square().sum().backward()
    torch.testing.assert_close(model.logits.grad, expected)


def test_the_multiplier_rises_while_violated_falls_after_and_is_never_negative():
    gamma, seen = torch.tensor(0.0), []
    for mean in (0.9, 0.6, 0.4, 0.2, 0.1, 0.0, 0.0, 0.0):
        gamma = hollow.dual_step(gamma, torch.tensor(mean), 0.3, 1.0, ceiling=0.95)
        seen.append(float(gamma))
    assert seen == pytest.approx([0.6, 0.9, 0.95, 0.85, 0.65, 0.35, 0.05, 0.0])


def test_loss_of_the_constraint_pays_for_excess_and_never_for_thrift_squared():
    m = torch.tensor([0.5, 0.1], dtype=torch.float64, requires_grad=True)
    term = hollow.loss_constraint(m, 0.3, 0.02, 4.0)
    torch.testing.assert_close(term.detach(), torch.tensor([0.5 * 4 * 0.04 + 0.02 * 0.2, -0.02 * 0.2], dtype=torch.float64))
    (slope,) = torch.autograd.grad(term.sum(), m)
    torch.testing.assert_close(slope, torch.tensor([4 * 0.2 + 0.02, 0.02], dtype=torch.float64))


@pytest.mark.parametrize("limit", [0.2, 0.5])
def test_a_convex_problem_ends_at_its_constrained_optimum(limit):
    means, prices = look.thermostat(rho=2.0, limit=limit, n_steps=600)
    assert means[-1] == pytest.approx(limit, abs=2e-3) and prices[-1] == pytest.approx(0.8 - limit, abs=5e-3)
    free, price = look.thermostat(limit=0.9)
    assert free[-1] == pytest.approx(0.8) and price[-1] == 0.0


def _two_kinds_of_cells(limit: float, n_steps: int = 400) -> tuple[torch.Tensor, float]:
    """One cell in ten is asked for; the others only ever so little, yet Adam makes large steps of small gradients."""
    logits, gamma, asked = torch.full((10,), -2.0, requires_grad=True), torch.tensor(0.0), torch.tensor([1.0] + [1e-3] * 9)
    adam = torch.optim.Adam([logits], lr=0.1, eps=1e-15)
    for _ in range(n_steps):
        m = logits.sigmoid().mean()
        (hollow.loss_constraint(m, limit, gamma, 0.02) - (asked * logits.sigmoid()).mean()).backward()
        adam.step()
        adam.zero_grad()
        gamma = hollow.dual_step(gamma, m, limit, 0.02)
    return logits.detach().sigmoid(), float(gamma)


def test_a_limit_that_binds_keeps_empty_what_pictures_hardly_ask_for_and_a_slack_one_fills():
    saliency, price = _two_kinds_of_cells(limit=0.1)
    assert float(saliency[0]) > 0.9 and float(saliency[1:].max()) < 0.05 and price > 1e-3
    saliency, price = _two_kinds_of_cells(limit=1.0)
    assert float(saliency.min()) > 0.9 and price == 0.0


def test_the_constraint_waits_and_can_be_a_fixed_price():
    model = _grid()
    assert float(hollow.constraint(model, hollow.Pruning(start=0.5), 0.4)) == 0.0 and float(model.multiplier) == 0.0
    excess = float(hollow.mean_saliency(model.logits)) - 0.15
    first = hollow.constraint(model, hollow.Pruning(limit=0.15, rho=2.0, ceiling=9.0), 0.5)
    assert float(first) == pytest.approx(excess**2, rel=1e-4) and float(model.multiplier) == pytest.approx(2 * excess, rel=1e-4)
    fixed = hollow.constraint(model, hollow.Pruning(weight=0.5), 0.5)
    assert float(fixed) == pytest.approx(0.5 * (excess + 0.15), rel=1e-4)


def test_training_keeps_the_limit_and_empties_what_nobody_sees(scene, trained):
    _, model = trained
    saliency = look.saliencies(model)
    beside, far = hollow.shell(scene, model.aabb, 9)
    assert float(saliency.mean()) <= 1.2 * PRUNING.limit
    assert float(saliency[far].mean()) < 0.5 * float(saliency[beside].mean())


def test_training_repeats_bit_by_bit(scene, trained):
    pixels, _ = trained
    short = dataclasses.replace(PLAN, n_steps=5, n_samples=1024)
    first, second = (fitting.retrained(scene, pixels, short, PRUNING, steps_across=16, **SIZES) for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_shell_and_far_are_apart(scene):
    beside, far = hollow.shell(scene, scene.aabb, 13)
    assert 0.05 < float(beside.float().mean()) < 0.7 and bool(far.any()) and not bool((beside & far).any())


def test_hidden_vertices_lie_behind_surfaces_for_every_camera(scene):
    hidden = look.hidden(scene, scene.aabb, 17)
    corners = hidden[::16, ::16, 16]
    assert 0 < float(hidden.float().mean()) < 0.3 and not bool(corners.any())


def test_rows_that_no_cell_reads_change_no_picture():
    model, rays = _grid(), _rays()
    model.occupancy.binaries.fill_(False)
    model.occupancy.binaries[0, 2:4, 3:6, 1:7] = True
    before = ngp.render(model, rays).rgb
    read = packing.read_rows(model)
    assert 0.1 < float(read.float().mean()) < 0.9
    model.table.data[~read] = 1e6
    model.logits.data[~packing.read_logits(model)] = 1e3
    assert torch.equal(ngp.render(model, rays).rgb, before)


def test_read_rows_do_not_depend_on_how_many_vertices_are_walked_at_once(monkeypatch):
    model = _grid(n_max=16)
    model.occupancy.binaries.fill_(True)
    whole = packing.read_rows(model)
    monkeypatch.setattr(packing, "_around", partial(packing._around, most=200))
    assert torch.equal(packing.read_rows(model), whole) and 0.9 < float(whole.float().mean()) <= 1.0


def test_every_read_row_is_read():
    """The count is not generous either: a vertex counts only where a cell that is on reaches into its eight cells."""
    model = _grid(n_max=16)
    model.occupancy.binaries.fill_(False)
    model.occupancy.binaries[0, 2, 3, 1] = True
    low = model.aabb[0] + torch.tensor([2, 3, 1]) / 8 * 2.0
    points = low + torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) * 0.25
    model.table.grad = None
    model.encode(points).sum().backward()
    assert torch.equal(model.table.grad.abs().sum(-1) > 0, packing.read_rows(model))


def test_packed_and_unpacked_it_renders_the_same():
    model, rays = _grid(), _rays()
    model.logits.data.normal_(0.0, 12.0, generator=torch.Generator().manual_seed(5))
    packing.hollow_out(model, 0.5)
    share = float(model.occupancy.binaries.float().mean())
    packed = packing.pack(model)
    again = packing.unpack(packed, model.settings)
    assert 0.1 < share < 0.99 and packed.n_parameters < packing.n_parameters(model) + 8**3 // 32 + 1
    assert torch.equal(ngp.render(again, rays).rgb, ngp.render(model, rays).rgb)


def test_hollowing_out_switches_off_what_saliency_has_emptied():
    model = _grid()
    model.logits.data.fill_(-30.0)
    model.logits.data[0:2] = 5.0
    packing.hollow_out(model, 0.01)
    found = model.occupancy.binaries[0].any(-1).any(-1)
    assert found.tolist() == [True] * 3 + [False] * 5  # between vertices 1 and 2 the logit falls below -4.6 in cell 3 only
    outside = torch.tensor([[0.5, 0.0, 0.0]])
    assert float(model.density(outside)) < 1e-6


def test_cells_come_back_when_saliency_does():
    model = _grid()
    model.logits.data.fill_(-30.0)
    hollow.skip_empty(model, hollow.Pruning(every=4), 3, 0.9)  # not due
    hollow.skip_empty(model, hollow.Pruning(every=4), 4, 0.01)  # too early
    assert bool(model.occupancy.binaries.all())
    hollow.skip_empty(model, hollow.Pruning(every=4), 4, 0.9)
    assert not bool(model.occupancy.binaries.any())
    model.logits.data.fill_(0.0)
    hollow.skip_empty(model, hollow.Pruning(every=4), 8, 0.9)
    assert bool(model.occupancy.binaries.all())


def test_saved_and_loaded_it_says_the_same(tmp_path):
    model, points = _grid(), _points()
    model.logits.data.normal_(generator=torch.Generator().manual_seed(4))
    loaded = models.load(models.save(model, tmp_path / "hollow"))
    assert isinstance(loaded, HollowGrid) and torch.equal(loaded.density(points), model.density(points))


def test_pull_counts_what_reaches_the_table(trained, scene):
    """Where saliency is nothing, an entry feels nothing, whatever the networks would like."""
    pixels, model = trained
    fields = {"hollow": model, "nothing": hash_look.up_to_level(model, len(model.levels))}
    fields["nothing"].logits.data.fill_(-60.0)
    truth = ngp.true_cells(scene, model.aabb, 16)
    pull = hash_look.pull_on(fields["nothing"], pixels, 3, scene.near, n_rays=128)
    assert float(pull.mass.sum()) < 1e-9
    rows = look.collisions({"hollow": model}, pixels, scene.near, 3, truth)
    assert rows[0]["vertices pulled"] > 10 and rows[0]["in collision"].endswith("%")
    (unknown,) = look.collisions({"hollow": model}, pixels, scene.near, 3, None)
    assert set(rows[0]) - set(unknown) == {"gradient at surfaces", "vertices at surfaces"}


def test_rows_of_the_table_of_ablations(trained):
    pixels, model = trained
    field = hash_look.up_to_level(model, len(model.levels))
    field.occupancy.binaries.fill_(True)
    row = look.summary("hollow", field, lambda model: 20.0)
    assert row["PSNR (dB)"] == 20.0 and float(row["density of nothing"]) < 1e-6
    assert packing.n_stored(field) == row["numbers to store"] <= packing.n_parameters(field) + 16**3 // 32 + 1
    plain = HashGrid(HashGridSettings(n_levels=3, n_features=2, log2_entries=9, n_min=4, n_max=16, n_cells=8))
    plain.occupancy.binaries.fill_(False)
    empty = packing.n_stored(plain)
    assert empty == sum(p.numel() for name, p in plain.named_parameters() if "_net" in name) + 8**3 // 32


def test_film_survives_its_checkpoint(trained):
    _, model = trained
    film, again = look.Film(), look.Film()
    film.take(model)
    film.take(model)
    again.load_state_dict(film.state_dict())
    assert len(again) == 2 and torch.equal(again[1], look.saliencies(model))
    cuts = film.slices(0, 0.5, 1.0)
    assert list(cuts) == ["from above", "from the side"] and {cut.shape for cut in cuts.values()} == {(9, 9, 3)}
    assert sum(look.histogram(film[0]).values()) == pytest.approx(1.0)


def test_an_oracle_is_not_trained(scene):
    beside, _ = hollow.shell(scene, scene.aabb, 5)
    model = look.oracle(_grid(), beside)
    assert not model.logits.requires_grad and torch.equal(model.logits[..., 0] > 0, beside)


def test_a_saliency_grid_has_at_least_a_cell():
    with pytest.raises(InputError, match="2 vertices"):
        HollowGrid(HollowGridSettings(n_saliency=1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_cut_takes_away_what_stands_before_its_plane_whatever_the_side(trained, scene, axis):
    _, model = trained
    view = scene.views("test")[0]
    whole, draw = (
        ngp.render_view(model, view, scene.near),
        lambda share: cutting.Cut(model, axis, share, near=scene.near).render_view(view),
    )
    high = bool(view.origins[0, axis] > model.aabb[:, axis].mean())
    torch.testing.assert_close(draw(float(high)).rgb, whole.rgb)
    assert float(draw(float(not high)).alpha.max()) == 0.0
    behind = draw(0.5)
    assert float(whole.alpha.max()) > 0.5 and float((behind.alpha - whole.alpha).max()) < 60 * 1e-4  # of samples dropped
    points = _points()
    kept = dataclasses.replace(cutting.Cut(model, axis, 0.5), above=high).density(points) > 0
    assert not bool((kept & ((points[:, axis] > model.aabb[:, axis].mean()) == high)).any())


def test_the_sheet_is_seen_on_the_plane_alone_and_is_clear_where_it_is_zero(trained, scene):
    _, model = trained
    view = scene.views("test")[0]
    draw = lambda value: cutting.cut_open(model, view, scene.near, "z", 0.5, value, view.width)  # noqa: E731
    plain, ones = draw(None), torch.ones(9, 9, 9)
    torch.testing.assert_close(draw(0 * ones), plain)
    picture = draw(ones)
    yellow = (picture - torch.tensor([253, 231, 55]) / 255).abs().amax(-1) < 0.15
    rays = camera_rays(view)
    t = (model.aabb[:, 2].mean() - rays.origins[:, 2]) / rays.directions[:, 2]
    crossing = rays.origins + t[:, None] * rays.directions
    inside = ((crossing - model.aabb.mean(0)).abs() <= (model.aabb[1] - model.aabb[0]) / 2 + 1e-4).all(-1) & (t > 0)
    assert bool(inside.any()) and not bool(inside.all())
    assert bool((yellow.view(-1) == inside).float().mean() > 0.99)
    torch.testing.assert_close(picture.view(-1, 3)[~inside], plain.view(-1, 3)[~inside])


def test_precision_and_recall_of_the_shell_itself_are_one_and_fall_with_what_is_added_or_lost():
    shell = torch.rand(6, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.7
    assert look.agreement(shell.float(), shell) == (1.0, 1.0)
    everything, nothing = look.agreement(torch.ones(6, 6, 6), shell), look.agreement(torch.zeros(6, 6, 6), shell)
    assert everything == (pytest.approx(float(shell.float().mean())), 1.0) and nothing == (1.0, 0.0)
    recall, _ = look.agreement_curve(torch.rand(6, 6, 6, generator=torch.Generator().manual_seed(1)), shell)
    assert recall == sorted(recall, reverse=True)


def test_more_steps_under_a_tighter_limit_empty_a_copy_and_leave_the_field_as_it_was(trained, scene):
    pixels, model = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tight = fitting.squeezed(model, pixels, PLAN, dataclasses.replace(PRUNING, limit=0.0, rho=1.0, ceiling=1.0), 20, scene.near)
    free = fitting.squeezed(model, pixels, PLAN, dataclasses.replace(PRUNING, limit=1.0), 20, scene.near)
    assert float(look.saliencies(tight).mean()) < 0.5 * float(look.saliencies(free).mean())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_claims_on_the_shell_compare(scene):
    beside, far, hidden = look.known_vertices(scene, scene.aabb, 9)
    assert not bool((beside & far).any()) and bool((hidden <= far).all())
    assert look.known_vertices(dataclasses.replace(scene, depth=None), scene.aabb, 9) == (None, None, None)
    found = charts.shell_numbers(beside.float(), torch.ones(9, 9, 9), beside, far, hidden)
    assert found["far"] == dict(ours=0.0, baseline=1.0) and found["precision"]["ours"] == found["recall"]["baseline"] == 1.0
    assert found["precision"]["baseline"] == pytest.approx(float(beside.float().mean()))


def test_fields_are_emptied_and_told_and_cut_by_name(trained, scene):
    pixels, model = trained
    field, view = hash_look.up_to_level(model, len(model.levels)), scene.views("test")[0]
    found = charts.emptied({9: field}, lambda one: 20.0)
    assert found == {9: (packing.n_stored(field), 20.0)}
    curves = charts.size_curves({"hollow": found, "none": {}})
    assert curves == {"hollow": ((found[9][0],), (20.0,))}
    beside, _, _ = look.known_vertices(scene, model.aabb, 9)
    told = fitting.retrained(scene, pixels, dataclasses.replace(PLAN, n_steps=2), PRUNING, steps_across=16, told=beside, **SIZES)
    assert torch.equal(told.logits[..., 0] > 0, beside)
    pair = cutting.cut_pair({"one": model, "other": told}, view, scene.near, beside, 0.5, "z", "true shell")
    alone = cutting.cut_by_name(model, beside, scene.near, 0.5, "z", "true shell").render_view(view.resized(96, 96)).rgb[0]
    assert list(pair) == ["one", "other"] and torch.equal(pair["one"], alone)
    rows = packing.count_rows(field, model, packing.pack(field), {"a": 1.0, "b": 2.0, "c": 3.0})
    assert [row["numbers"] for row in rows][0] >= rows[2]["numbers"] and rows[1]["PSNR (dB)"] == 2.0


def test_the_thermostat_at_work_is_drawn_in_shares():
    history = {"m": ([0, 1], [0.5, 0.2]), "multiplier": ([0, 1], [0.0, 4.0]), "psnr": ([1], [20.0])}.__getitem__
    curves = charts.thermostat_at_work(history, 0.3)
    assert curves["limit C"] == ([0, 1], [0.3, 0.3]) and curves["multiplier / largest"][1] == [0.0, 1.0]
