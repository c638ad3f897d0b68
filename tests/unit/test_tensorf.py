"""TensoRF: its losses, the alpha mask and its guard, the shrinking box, the schedule, and a short training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import nsw.scenes
from nsw import widgets
from nsw.cameras import camera_rays, orbit
from nsw.kernels import masked_adam
from nsw.losses import loss_size, loss_tv
from nsw.methods import instant_ngp as ngp
from nsw.methods import tensorf, tensorf_fit
from nsw.methods import tensorf_charts as charts
from nsw.methods import tensorf_inspect as look
from nsw.methods.instant_ngp_fit import score_hash
from nsw.methods.occupied_cells import run_rows
from nsw.models.factors import CPSizes, VMSizes, VoxelSizes
from nsw.models.vm_grid import VMGrid, VMGridSettings


def _empty(n_cells: int = 8, shift: float = -10.0) -> VMGrid:
    """Return a grid whose raw density is 0 everywhere."""
    torch.manual_seed(0)
    model = VMGrid(VMGridSettings(n_voxels=9**3, factors=VMSizes(2, 2), n_features=3, mlp_width=8, n_cells=n_cells, shift=shift))
    with torch.no_grad():
        for factor in model.factors.density:
            factor.zero_()
    return model


def _with_block() -> VMGrid:
    """Return an empty grid with a solid block of vertices: x 2 to 4, y 3 to 5, z 4 to 6 of 9."""
    model = _empty()
    with torch.no_grad():
        model.factors.density[0][2:5, 3:6, 0] = 30.0
        model.factors.density[3][4:7, 0] = 1.0
    return model


def test_size_is_the_mean_absolute_value_of_planes_and_lines():
    model = _with_block()
    assert float(loss_size(model.factors.density).detach()) == pytest.approx(9 * 30 / (81 * 2) + 3 / 18)


def test_roughness_is_zero_for_constants_and_counts_neighbours():
    assert float(loss_tv([torch.full((4, 5, 2), 3.0)])) == 0.0
    plane, line = torch.arange(4.0)[:, None, None].expand(4, 5, 2), 3 * torch.arange(6.0)[:, None].expand(6, 2)
    assert float(loss_tv([plane, line])) == pytest.approx(1 + 9)
    model = _empty()
    with torch.no_grad():
        for factor in model.factors.colour:
            factor.zero_()
        model.factors.colour[0].copy_(torch.arange(9.0)[:, None, None].expand(9, 9, 2))
    assert float(tensorf.losses(model, tensorf.Plan(l1=0.0, tv_colour=3.0), 0.0)["tv_colour"].detach()) == pytest.approx(3e-2)


def test_terms_of_no_weight_are_left_out_and_the_size_counts_less_after_the_first_mask():
    model, plan = _with_block(), tensorf.Plan(mask_at=(0.5,), l1=2.0, l1_later=1.0)
    before, after = (tensorf.losses(model, plan, share) for share in (0.4, 0.6))
    assert list(before) == ["size"] and float(before["size"].detach()) == pytest.approx(2 * float(after["size"].detach()))
    assert list(tensorf.losses(model, replace(plan, tv_colour=1.0), 0.1)) == ["size", "tv_colour"]


def test_the_mask_holds_the_block_and_its_neighbours_only():
    cells = tensorf.opaque_cells(_with_block(), 0.5)
    solid = torch.zeros(8, 8, 8, dtype=torch.bool)
    solid[2:4, 3:5, 4:6] = True
    assert bool(cells[solid].all())
    assert not bool(cells[:, :, 0].any()) and not bool(cells[7].any())


@pytest.mark.parametrize(("threshold", "learns"), [(tensorf.PAPER.threshold, True), (1e-4, False)])
def test_the_papers_start_is_so_empty_that_a_higher_threshold_leaves_out_every_sample(threshold, learns):
    """What is left out has no gradient: the field would stay as it is, however long it trains."""
    torch.manual_seed(0)
    factors = VMSizes(2, 2)
    model = VMGrid(VMGridSettings(n_voxels=128**3, factors=factors, n_features=3, mlp_width=8, shift=-10.0, step_ratio=0.5))
    rays = camera_rays(orbit(1, 4.0, width=6, height=6))
    assert bool(len(ngp.render(model, rays, threshold=threshold).t)) == learns


def test_an_empty_field_lowers_the_bar_and_then_keeps_everything():
    model = _empty(shift=-5.0)
    thin = float(-torch.expm1(-model.density(torch.zeros(1, 3)).detach() * model.sample_length))
    assert bool(tensorf.opaque_cells(model, thin * 50).all())
    assert bool(tensorf.opaque_cells(_empty(shift=-60.0), 1e-2).all())  # nothing reaches any bar: no crash, no empty mask


def test_box_around_cells():
    cells = torch.zeros(4, 4, 4, dtype=torch.bool)
    cells[1, 2, 0:2] = True
    box = tensorf.box_around(cells, torch.tensor([[0.0, 0, 0], [4, 4, 8]]))
    assert box.tolist() == [[1, 2, 0], [2, 3, 4]]


def test_shrinking_leaves_the_picture_as_it_is():
    model = _with_block()
    rays = camera_rays(orbit(1, radius=4.0, width=16, height=16))
    step = model.sample_length
    with torch.no_grad():
        before = ngp.render(model, rays, threshold=0.0)
        tensorf.shrink(model, tensorf.make_optimizer(model), 1e-2)
        after = ngp.render(model, rays, threshold=0.0)
    assert max(model.shape) < 9 and float(before.left.min()) < 0.01
    assert model.sample_length == pytest.approx(step, rel=1e-5)
    assert float((before.left - after.left).abs().mean()) < 0.02  # samples fall elsewhere on their rays
    assert float((before.rgb - after.rgb).abs().mean()) < 0.02


def test_growth_is_by_equal_factors_and_sets_the_rates_back():
    model = _empty()
    plan = tensorf.Plan(n_voxels=17**3, grow_at=(0.3, 0.6), mask_at=())
    optimizer, seen = tensorf.make_optimizer(model, plan.lr, plan.lr_network), []
    assert not tensorf.maintain(model, optimizer, plan, 0.2, 0.29, seen.append) and model.shape == (9, 9, 9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.1**0.29)
    old = list(model.factors.parameters())
    assert tensorf.maintain(model, optimizer, plan, 0.29, 0.31, seen.append) and model.shape == (12, 12, 12)
    assert seen == ["9 x 9 x 9 before", "12 x 12 x 12 after"]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.1**0.01)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(id(p) in trained for p in model.parameters()) and not any(id(p) in trained for p in old)
    tensorf.maintain(model, optimizer, plan, 0.31, 1.0)
    assert model.shape == (17, 17, 17)


def test_the_plans_momentum_holds_through_growth():
    model, plan = _empty(), tensorf.Plan(n_voxels=17**3, grow_at=(0.3,), mask_at=(), momentum=0.5)
    optimizer = tensorf.make_optimizer(model, plan.lr, plan.lr_network, plan.momentum)
    tensorf.maintain(model, optimizer, plan, 0.2, 0.4)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.5, 0.99)] * 2
    factor = model.factors.density[0]
    for gradient in (1.0, -1.0):  # the second step is the new gradient's alone by as much as momentum lets it
        before = factor.detach().clone()
        factor.grad = torch.full_like(factor, gradient)
        optimizer.step()
    moved = (factor.detach() - before).mean() / optimizer.param_groups[0]["lr"]
    assert float(moved) == pytest.approx((1 - 0.5) / (1 + 0.5), rel=1e-4)  # -m / (1 - 0.5^2), m = 0.5 (0.5 - 1)


@pytest.mark.parametrize("skip_zero", [True, False])
@pytest.mark.parametrize("shape", [(7, 5, 4, 3), ()], ids=["grid", "one number"])
def test_the_optimiser_takes_a_large_grid_in_pieces(shape, skip_zero, monkeypatch):
    generator, constants = torch.Generator().manual_seed(0), (0.1, 0.9, 0.99, 1.5, 1e-8, skip_zero)
    whole = [torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(4)]
    whole[1][whole[1] < 0.5] = 0.0
    for rate in [None, torch.rand(7, 5, 4, 1, generator=generator)] if shape else [None]:
        once, pieces = ([t.clone() for t in whole] for _ in range(2))
        masked_adam.adam_update(*once, rate, *constants)
        monkeypatch.setattr(masked_adam, "_PIECE", 130)
        masked_adam.adam_update(*pieces, rate, *constants)
        monkeypatch.undo()
        assert all(torch.equal(a, b) for a, b in zip(once, pieces, strict=True)) and not torch.equal(once[0], whole[0])


def test_a_shrunken_box_is_met_by_fewer_rays():
    rays = camera_rays(orbit(1, radius=4.0, width=16, height=16))
    pixels, model = ngp.Pixels(rays, torch.zeros(256, 3), torch.zeros(256)), _with_block()
    many = len(tensorf.in_box(pixels, model))
    tensorf.shrink(model, tensorf.make_optimizer(model), 1e-2)
    few = tensorf.in_box(pixels, model)
    assert 0 < len(few) < many and torch.equal(few.index, tensorf.in_box(pixels, model, chunk=10).index)
    copy, generators = pixels.at(ngp.meets(rays, model.aabb)), [torch.Generator().manual_seed(0) for _ in range(2)]
    ours, theirs = (some.draw(9, generator) for some, generator in zip((few, copy), generators, strict=True))
    assert torch.equal(ours.rays.directions, theirs.rays.directions)


@pytest.mark.parametrize(
    ("factors", "lr"), [(VMSizes(8, 8), 0.05), (CPSizes(16, 16), 0.05), (VoxelSizes(), 0.3)], ids=["vm", "cp", "voxels"]
)
def test_a_short_training_learns_the_scene(factors, lr):
    torch.manual_seed(0)
    scene = nsw.scenes.load("toybox", size=16)
    model = tensorf_fit.new_model(scene, n_voxels=12**3, factors=factors, mlp_width=16, n_features=6, n_cells=16)
    pixels, score = ngp.training_pixels(scene, model.aabb), score_hash(model, scene)
    before = score()
    plan = tensorf.Plan(n_steps=60, n_samples=2048, n_voxels=20**3, grow_at=(0.4,), mask_at=(0.3, 0.6), lr=lr)
    out = tensorf_fit.fit(model, pixels, plan, torch.Generator().manual_seed(0), scene.near)
    assert score() > before + 4 and len(out.t) > 0
    assert float(model.occupancy.binaries.float().mean()) < 1.0


def test_gradient_descent_never_beats_the_singular_values_and_comes_near_them():
    volume = look.blocks(12, 20.0)
    least = look.svd_errors(volume, [2, 4])
    for rank, bound in zip((2, 4), least, strict=True):
        found = look.fit_volume(volume, rank, n_steps=400)
        assert bound - 1e-5 <= found.error < bound + 0.03
        assert found.error == pytest.approx(float((found.approximation - volume).norm() / volume.norm()))


def test_three_modes_say_more_than_one_and_a_prism_has_rank_one():
    volume = look.blocks(12, 45.0)
    assert look.fit_volume(volume, 2, modes=3).error < look.fit_volume(volume, 2).error
    prism = torch.rand(6, 6, 1).expand(6, 6, 6)
    assert look.svd_errors(prism, [1])[0] < 1e-6


def test_rotation_raises_the_rank():
    straight, turned = (look.svd_errors(look.blocks(24, degrees), [4])[0] for degrees in (0.0, 45.0))
    assert turned > 2 * straight


def test_the_strongest_component_is_the_block():
    model = _with_block()
    plane, line = look.component(model, 0)
    assert float(plane.max()) == 30.0 and float(line.max()) == 1.0
    pictures = look.gallery(model, 2)
    assert len(pictures) == 6 and all(float(p.min()) >= 0 and float(p.max()) <= 1 for p in pictures.values())
    found = widgets.product_figure(model, 0, n_points=27)
    assert sorted(set(found.data[0].z)) == pytest.approx([0.0, 0.25, 0.5]) and len(found.data[0].x) == 27 and not found.data[1].x


def test_masks_are_drawn_in_the_frame_of_the_first_box():
    model = _with_block()
    whole = look.seen_mask(model)
    cells = torch.zeros_like(whole.cells)
    cells[0, 0] = True  # a column at the lowest corner
    half = look.SeenMask(whole.aabb / 2, cells)
    film = look.mask_film([whole, half])
    assert list(film) == ["from above", "from the front"] and all(len(frames) == 2 for frames in film.values())
    grey, above = torch.full((3,), 0.85), film["from above"][1]
    height, width = above.shape[:2]
    assert torch.equal(above[0, 0], grey) and torch.equal(above[-1, -1], grey)  # outside of the smaller box
    orange = (above == torch.tensor([0.84, 0.37, 0.0])).all(-1).nonzero()
    assert [int(v) for v in orange.amin(0)] == pytest.approx([height // 4, width // 4], abs=2)
    assert [int(v) for v in orange.amax(0)] == pytest.approx([3 * height // 4, 3 * width // 4], abs=2)
    low, high = above[3 * height // 4 - 4, width // 4 + 3], above[height // 4 + 4, 3 * width // 4 - 4]
    assert float(low[0]) == 0.0 and float(high[0]) == 1.0  # the column is at the lower left, all on; nothing elsewhere
    assert not bool((film["from above"][0] == grey).all(-1).any())


def test_the_rank_slider_measures_what_it_shows():
    shades = {1: 0.2, 2: 0.4, 3: 0.45}
    photograph = torch.full((4, 6, 3), 0.5)
    draw = widgets.rank_dial(lambda rank: rank, lambda rank: torch.full((4, 6, 3), shades[rank]), photograph, (1, 3))
    chart = draw(2)
    assert chart.layout.title.text == "2 components a mode: 20.00 dB in this view"
    (curve, dot) = [trace for trace in chart.data if trace.type == "scatter"]
    assert list(curve.x) == [1, 3] and list(curve.y) == pytest.approx([10.458, 26.021], abs=1e-3)
    assert (list(dot.x), list(dot.y)) == ([2], [pytest.approx(20.0, abs=1e-4)])


def test_a_turned_scene_looks_the_same_and_stands_elsewhere():
    scene = nsw.scenes.load("toybox", size=24)
    turned = look.turned_scene(scene, 30.0)
    assert torch.equal(turned.images, scene.images) and torch.equal(turned.aabb, scene.aabb) and turned.normals is None
    rays, others = camera_rays(scene.cameras[:2]), camera_rays(turned.cameras[:2])
    angle, middle = torch.tensor(torch.pi / 6), scene.aabb.mean(0)
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(others.directions, rays.directions @ turn.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(others.origins, middle + (rays.origins - middle) @ turn.T, atol=1e-5, rtol=0)


def test_rank_curves_hold_both_ways():
    shapes = {"one": torch.ones(6, 6, 6)}
    least, curves = look.rank_curves(shapes, (1,))
    assert least == {"one": look.svd_errors(shapes["one"], (1,))} and list(curves) == ["one, least", "one, found"]
    assert curves["one, found"][1][0] >= least["one"][0]


def test_a_truncated_field_is_trained_on_as_a_copy_of_its_size():
    scene = nsw.scenes.load("toybox", size=24)
    model = tensorf_fit.new_model(scene, n_voxels=12**3, factors=VMSizes(4, 4), n_features=4, mlp_width=8, n_cells=8)
    pixels, small = ngp.training_pixels(scene, model.aabb), model.truncated(2, 2)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    plan = tensorf.Plan(n_samples=1024, n_voxels=20**3, threshold=0.0)  # which would grow and mask a field of its own
    longer = tensorf_fit.trained_on(small, pixels, plan, 4, scene.near)
    assert longer.shape == small.shape and torch.equal(longer.occupancy.binaries, small.occupancy.binaries)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    changed = [not torch.equal(a, b) for a, b in zip(longer.parameters(), small.parameters(), strict=True)]
    assert all(changed)


def test_rows_and_curves_of_the_notebook_say_what_was_measured():
    model = _with_block()
    (row,) = charts.rank_rows({2: model}, lambda field: 20.0, lambda field: field)
    assert row == {"components a mode": 2, "MB": model.n_bytes / 1e6, "PSNR (dB)": 20.0, "trained on": 20.0}
    curve, dot = widgets.size_figure({"VM": 0.5}, {"VM": 21.0}, [row, row | {"MB": 1.0}]).data
    assert (list(curve.x), list(curve.y)) == ([row["MB"], 1.0], [20.0, 20.0]) and (dot.name, dot.x, dot.y) == (
        "VM",
        (0.5,),
        (21.0,),
    )
    (raced,) = charts.race_rows({"VM": [(1.0, 18.0), (2.0, 19.0)]}, {"VM": model}, 1000)
    assert (raced["seconds"], raced["PSNR (dB)"], raced["rays"]) == (2.0, 19.0, "1,000")
    (run,) = run_rows({"everything": model}, lambda field: 20.0)
    assert run["cells on"].endswith("%") and run["MB"] == row["MB"]
    assert len(charts.height_lines(model, 2)["component 2"][1]) == model.shape[2]


def test_blocks_stand_beside_what_is_learned_of_them():
    cut, turned = charts.cut_through(2), charts.turned_blocks(45, 1)
    assert [list(shown)[0] for shown in (cut, turned)] == ["the blocks"] * 2 and list(cut)[1].startswith("2 products")
    assert all(0 <= float(p.min()) <= float(p.max()) <= 1 and p.shape == (32, 32) for p in (*cut.values(), *turned.values()))
