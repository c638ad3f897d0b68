"""Compact 3DGS: the mask's gradient is the sigmoid's, codes get better stage by stage, and the trained model obeys its mask."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from nsw import metrics, scenes
from nsw.cameras import orbit
from nsw.methods import compact_3dgs as compact
from nsw.methods import compact_3dgs_inspect as inspect
from nsw.models import io
from nsw.models import residual_codebooks as codebooks
from nsw.models.compact_gaussians import CompactGaussians, CompactSettings, binary_mask
from nsw.models.gaussians import NAMES, Gaussians
from nsw.models.neural_colour import NeuralColour, NeuralColourSettings, contract, network_sizes
from nsw.models.sh import sh_basis
from nsw.renderers import render_view
from nsw.widgets import codes_figure

BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
COLOUR = NeuralColourSettings(n_levels=3, log2_entries=8, n_min=4, n_max=16, width=16)
VIEW = orbit(1, 4.0, 20.0, width=32, height=32)
N = 80


def a_model(n: int = N, seed: int = 0, ready: bool = True, **settings) -> CompactGaussians:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    start = Gaussians.random(BOX, n, generator, sh_degree=2, opacity=0.5)
    model = CompactGaussians.from_gaussians(start, CompactSettings(**settings))
    with torch.no_grad():
        model.scales.copy_(torch.log(0.05 + 0.2 * torch.rand(n, 3, generator=generator)))
        model.quats.copy_(torch.randn(n, 4, generator=generator))
        if model.field is not None:
            model.field.table.normal_(std=1.0 if ready else 1e-4, generator=generator)
            model.field.ready.fill_(ready)
    return model


def test_the_mask_is_binary_forwards_and_a_sigmoid_backwards():
    m = torch.linspace(-8, 4, 25, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(25, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (binary_mask(m) * weights).sum().backward()
    straight, m.grad = m.grad.clone(), None
    (m.sigmoid() * weights).sum().backward()
    assert torch.allclose(straight, m.grad, rtol=1e-12)
    assert torch.equal(binary_mask(m).round(), (m.sigmoid() > 0.01).double())
    assert torch.allclose(binary_mask(m), binary_mask(m).round(), atol=1e-12)


def test_masked_splats_vanish_from_the_picture_as_if_removed():
    model = a_model(sh_degree=1)
    with torch.no_grad():
        model.mask[::3] = -9.0
    fewer = CompactGaussians(model.settings).fill(**{name: model.params[name][model.kept] for name in NAMES})
    assert len(fewer) == N - 27
    assert torch.allclose(render_view(model, VIEW).rgb, render_view(fewer, VIEW).rgb, atol=1e-5)


def test_a_model_without_cures_draws_what_plain_gaussians_draw():
    model = a_model(sh_degree=2)
    plain = Gaussians.random(BOX, 3, sh_degree=2).fill(**{name: model.params[name] for name in NAMES})
    assert torch.allclose(render_view(model, VIEW).rgb, render_view(plain, VIEW).rgb, atol=1e-5)


def test_pictures_of_several_cameras_are_those_of_each():
    model, cameras = a_model(colour=COLOUR, sh_degree=0), orbit(3, 4.0, 20.0, width=24, height=16)
    together = model.render_view(cameras)
    assert together.rgb.shape == (3, 16, 24, 3)
    assert all(torch.equal(together.rgb[i], model.render_view(cameras[i]).rgb[0]) for i in range(3))


def test_space_is_folded_into_the_cube_without_a_tear():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 3, 500)[:, None]
    u = contract(x)
    assert bool(((u > 0) & (u < 1)).all())
    near = x[x.norm(dim=1) <= 1]
    assert torch.allclose(contract(near), near / 4 + 0.5)
    edge = torch.tensor([[1.0, 0, 0], [1.0 + 1e-6, 0, 0]])
    assert torch.allclose(contract(edge)[0], contract(edge)[1], atol=1e-5)


def test_colour_depends_on_place_and_direction_and_the_place_gets_no_gradient_from_the_grid():
    torch.manual_seed(0)
    field = NeuralColour(COLOUR)
    points = torch.rand(5, 3, requires_grad=True)
    d = normalize(torch.randn(5, 3), dim=-1).requires_grad_()
    field.sh0(field.features(points), d).sum().backward()
    assert points.grad is None and float(d.grad.abs().sum()) > 0 and float(field.table.grad.abs().sum()) > 0
    assert sum(p.numel() for p in field.network.parameters()) == sum(a * b for a, b in network_sizes(COLOUR))


def test_each_stage_of_a_code_leaves_less():
    x = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    book = codebooks.ResidualCodebooks(4, 16, 3)
    assert torch.equal(book(x), x) and not bool(book.ready)
    book.fit(x)
    errors = codebooks.stage_errors(x, book.codewords.detach())
    assert len(errors) == 5 and all(b < 0.75 * a for a, b in zip(errors, errors[1:], strict=False))
    assert errors[0] == pytest.approx(float(x.square().sum(1).mean().sqrt()), rel=1e-6)


def test_the_nearest_codeword_is_taken_at_every_stage():
    generator = torch.Generator().manual_seed(0)
    x, words = torch.randn(50, 4, generator=generator), torch.randn(3, 8, 4, generator=generator)
    indices, left = codebooks.assign(x, words), x
    for stage, index in zip(words, indices.T, strict=True):
        distance = (left[:, None] - stage).square().sum(-1)
        assert torch.equal(index, distance.argmin(1))
        left = left - stage[index]
    assert torch.allclose(x - left, codebooks.total(indices, words), atol=1e-6)
    assert torch.equal(codebooks.total(indices, words, 0), torch.zeros(50, 4))


def test_codes_pass_the_gradient_straight_and_their_loss_moves_codewords_alone():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    book = codebooks.ResidualCodebooks(2, 4, 3)
    book.fit(x)
    (3 * book(x)).sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 3.0)) and book.codewords.grad is None
    x.grad = None
    loss = book.loss(x)
    loss.backward()
    assert x.grad is None and float(book.codewords.grad.abs().sum()) > 0
    errors = codebooks.stage_errors(x.detach(), book.codewords.detach())
    assert float(loss.detach()) == pytest.approx(sum(e**2 for e in errors[1:]), rel=1e-4)


def test_few_vectors_fit_into_many_codewords():
    x = torch.tensor([[1.0, 2, 3]]).repeat(3, 1)
    book = codebooks.ResidualCodebooks(2, 8, 3)
    book.fit(x)
    assert torch.allclose(book(x), x, atol=1e-6)


@pytest.mark.parametrize("settings", [dict(sh_degree=1), dict(sh_degree=0, colour=COLOUR, n_stages=2, log2_codewords=4)])
def test_a_model_is_kept_and_loaded_whole(settings, tmp_path):
    model = a_model(**settings)
    model.fit_codebooks()
    with torch.no_grad():
        model.mask[:5] = -9.0
    again = io.load(io.save(model, tmp_path / "model"))
    assert isinstance(again, CompactGaussians) and torch.equal(again.mask, model.mask)
    assert torch.equal(again.render_view(VIEW).rgb, model.render_view(VIEW).rgb)


def test_the_field_takes_over_what_the_harmonics_said():
    model = a_model(sh_degree=2, colour=COLOUR, ready=False)
    with torch.no_grad():
        model.sh0.copy_(model.means[:, None])  # a colour that changes from place to place
        model.shN.copy_(0.2 * torch.tensor([1.0, -0.5, 0.3]).expand_as(model.shN))
    cameras = orbit(6, 4.0, 20.0, width=32, height=32)
    before = model.render_view(cameras[0]).rgb.detach()
    error = compact.learn_colours(model, cameras.origins, 150)
    assert model.has_field and error < 1e-3
    assert metrics.psnr(model.render_view(cameras[0]).rgb.detach(), before.clamp(0, 1)) > 30


def test_the_field_is_asked_from_its_step_on():
    for start in (0, 4):
        plan = compact.Compression(field_from=start, field_lessons=2)
        model = a_model(sh_degree=1, colour=COLOUR, ready=False)
        training = compact.Compact(model, 1.0, 10, plan, origins=orbit(3, 4.0, 20.0).origins)
        asked = []
        for step in range(6):
            asked.append(model.has_field)
            render = model.render_view(VIEW)
            (render.rgb.mean() + training.penalty(step)).backward()
            training.step(step, render.extras["meta"])
        assert asked == [step >= start for step in range(6)]


def trained(n_steps=30, fresh_at=None, weight=0.5, **settings):
    scene = scenes.load("toybox", size=24)
    plan = compact.Compression(mask_weight=weight, lr_mask=0.5, prune_every=10, quantise_last=8, warm_up=3)

    def make():
        return compact.Compact(a_model(**settings), scene.scale, n_steps, plan, seed=3)

    training = make()
    for part in (range(fresh_at or n_steps), range(fresh_at or n_steps, n_steps)):
        if len(part) and part.start:
            state, training = training.state_dict(), make()
            training.load_state_dict(state)
        compact.fit(training, scene, part)
    return training


FULL = dict(sh_degree=0, colour=COLOUR, n_stages=2, log2_codewords=4)


def test_the_penalty_prunes_and_the_guard_holds():
    training = trained(**FULL)
    assert 16 <= len(training.gaussians) < N and bool(training.gaussians.kept.all())
    assert {len(value) for value in training.rows.values()} == {len(training.gaussians)}
    assert bool(training.gaussians.scale_codes.ready)
    assert len(trained(weight=0.0, sh_degree=1).gaussians) > len(training.gaussians)


def test_the_mask_presses_between_its_steps():
    model = a_model(sh_degree=1)
    training = compact.Compact(model, 1.0, 10, compact.Compression(mask_weight=0.3, press_from=3, relax=6))
    pressed = 0.3 * float(torch.sigmoid(torch.ones(())))
    assert [float(training.penalty(step).detach()) for step in (2, 3, 5, 6)] == pytest.approx([0, pressed, pressed, 0], rel=1e-6)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_ends():
    whole, resumed = trained(**FULL), trained(fresh_at=25, **FULL)
    state, again = whole.gaussians.state_dict(), resumed.gaussians.state_dict()
    assert state.keys() == again.keys() and all(torch.equal(state[name], again[name]) for name in state)


def test_parts_are_the_most_opaque_and_the_rest():
    model = a_model(sh_degree=1)
    with torch.no_grad():
        model.opacities.copy_(torch.randn(N, generator=torch.Generator().manual_seed(1)))
    opaque, faint = inspect.parted(model, 0.25)
    assert len(opaque) == 20 and len(faint) == N - 20 and float(opaque.opacities.min()) >= float(faint.opacities.max())
    flat = inspect.truncated(opaque, 0)
    assert torch.equal(flat.sh0, opaque.sh0) and flat.shN.shape == (20, 0, 3) and flat.settings.sh_degree == 0


def test_baked_harmonics_show_the_fields_colours():
    model = a_model(sh_degree=0, colour=COLOUR)
    with torch.no_grad():  # a field of low harmonics only, so that degree 2 can hold it: one linear layer, no ReLU in the way
        for weight in (model.field.network[0].weight, model.field.network[2].weight):
            weight.abs_().mul_(0.02)
        model.field.table.abs_()
    flat = inspect.baked(model, degree=3, n_directions=100)
    assert isinstance(flat, Gaussians) and not isinstance(flat, CompactGaussians) and len(flat) == N
    assert float((render_view(flat, VIEW).rgb - render_view(model, VIEW).rgb).detach().abs().max()) < 0.02
    maps = [inspect.colour_map(one, 5, rows=8) for one in (model, flat)]
    assert maps[0].shape == (8, 16, 3) and float((maps[0] - maps[1]).abs().max()) < 0.03


def test_colour_maps_of_harmonics_are_the_harmonics():
    model = a_model(sh_degree=2)
    up = inspect.colour_map(model, 3, rows=200)[0, 0]
    wanted = (0.5 + sh_basis(2, torch.tensor([[0.0, 0, 1]])) @ model.sh[3]).clamp_min(0)[0]
    assert torch.allclose(up, wanted, atol=0.02)


def test_directions_cover_the_sphere():
    d = inspect.directions_on_sphere(200)
    assert torch.allclose(d.norm(dim=1), torch.ones(200), atol=1e-5)
    assert torch.allclose(d.T @ d / 200, torch.eye(3) / 3, atol=0.01)


def test_red_marks_the_masked_and_a_higher_threshold_draws_fewer():
    model = a_model(sh_degree=0)
    with torch.no_grad():
        model.mask.copy_(torch.linspace(-9, 3, N))
    red = (inspect.marked(model).base_rgb[:, 1] < 0.3).sum()
    assert int(red) == int((~model.kept).sum()) > 0
    for threshold in (0.01, 0.5, 0.9):
        assert int(inspect.subset(model, threshold).kept.sum()) == int((model.mask.sigmoid() > threshold).sum())


def test_thinned_scenes_draw_the_share_of_which_the_mask_is_surest():
    splats = a_model(sh_degree=2)
    splats.mask.data = torch.linspace(-2, 2, len(splats))
    kept = inspect.thinned(splats, 0.25).kept
    assert int(kept.sum()) == pytest.approx(0.25 * len(splats), abs=1) and bool(kept[-1]) and not bool(kept[0])
    assert [one.settings.sh_degree for one in inspect.bands(splats)] == list(range(splats.settings.sh_degree + 1))


def test_a_short_plan_keeps_the_shares_of_its_steps():
    press = dict(mask_weight=0.1, press_from=700, relax=1000, lr_mask=0.05)
    plan = compact.Compression.for_budget(1500, 75, **press, lr_field=1e-3)
    assert (plan.mask_weight, plan.press_from, plan.relax, plan.lr_mask) == (0.1, 700, 1000, 0.05)
    assert (plan.prune_every, plan.quantise_last, plan.warm_up, plan.lr_field) == (75, 50, 16, 1e-3)


def test_histograms_of_masks_are_kept_by_step():
    model, masks, again = a_model(sh_degree=0), inspect.MaskHistory(n_bins=4), inspect.MaskHistory(n_bins=4)
    for step, value in ((0, -9.0), (10, 0.0), (20, 9.0)):
        with torch.no_grad():
            model.mask.fill_(value)
        masks.add(step, model)
    again.load_state_dict(masks.state_dict())
    curves = again.curves(5, 20)
    assert list(curves) == ["step 10", "step 20"] and again.curves(21, 30) == {}
    assert [counts.argmax().item() for _, counts in curves.values()] == [2, 3]
    middles, counts = masks.curves(0, 0)["step 0"]
    assert middles.tolist() == [0.125, 0.375, 0.625, 0.875] and counts.tolist() == [N, 0, 0, 0]


def test_all_stages_of_a_code_are_drawn_where_they_say():
    scales = a_model(sh_degree=0).own_scales.detach()
    words = codebooks.ResidualCodebooks(3, 8, 3).fit(scales, 0).codewords.detach()
    own, said = codes_figure(scales, words, 3).data
    assert list(own.x) == scales[:, 0].tolist()
    assert list(said.y) == codebooks.total(codebooks.assign(scales, words), words)[:, 1].tolist()


def test_a_heavier_mask_leaves_fewer_splats_in_a_refit():
    scene = scenes.load("toybox", size=24)
    start = Gaussians.random(BOX, N, torch.Generator().manual_seed(0), sh_degree=1, opacity=0.5)
    plan, told = compact.Compression(mask_weight=0.5), []
    found = compact.sweep(start, scene, plan, 80, lambda n, name: told.append((n, name)) or range(n))
    assert told == [(20, f"weight {times}") for times in ("0.5", "1", "2", "4")]
    counts = [len(one) for one in found.values()]
    assert counts == sorted(counts, reverse=True) and counts[-1] < N and all(one.kept.all() for one in found.values())
