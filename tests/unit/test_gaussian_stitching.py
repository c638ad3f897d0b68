"""Stitching: the boundary against brute force, terms against closed forms, frozen what must stay, and the seam that goes."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from nsw.errors import InputError
from nsw.methods import gaussian_stitching as stitch
from nsw.methods import gaussian_stitching_fit as fitting
from nsw.methods import gaussian_stitching_inspect as inspect
from nsw.methods import gaussian_stitching_mixer as mixing
from nsw.methods import gaussian_stitching_palette as palettes
from nsw.methods import gaussian_stitching_parts as parts
from nsw.models.gaussians import NAMES, Gaussians
from nsw.models.parts import joined, part_of
from nsw.models.sh import sh_basis
from nsw.renderers.splats import render_view
from nsw.widgets import assembly_bench
from nsw.widgets.gauges import gauged
from nsw.widgets.palette_strip import OPENED, palette_panel

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def vases():
    """Two looks of a vase as a few splats each, the lower half of one and the upper half of the other."""
    first, second = (parts.vase(look, 1_500) for look in (parts.ORIGINAL, parts.OTHER))
    low = first.means[:, 2] < 0
    return part_of(first, low), part_of(second, ~low), first


@pytest.fixture(scope="module")
def cameras():
    return parts.vase_scene(parts.ORIGINAL, 32, 6, 2).cameras


def test_the_boundary_is_what_brute_force_finds(vases):
    source, target, _ = vases
    boundary = stitch.find_boundary(source, target, beta=0.05, tau=0.5, k=4)
    with torch.no_grad():
        both = torch.cat([source.means, target.means])
        size = (both.max(0).values - both.min(0).values).norm()
        distance, ids = torch.cdist(target.means.double(), source.means.double()).topk(4, largest=False)
        expected = ((distance.mean(1) < 0.05 * size) & (target.activated_opacities > 0.5)).nonzero()[:, 0]
    assert 10 < len(boundary.rows) < len(target) / 2 and torch.equal(boundary.rows, expected)
    assert torch.allclose(boundary.wanted, source.sh[ids[expected]].mean(1))
    with pytest.raises(InputError, match="raise beta or lower tau"):
        stitch.find_boundary(source, target, tau=0.999)


def test_drivers_are_boundary_splats_near_the_shaken_place(vases):
    source, target, _ = vases
    boundary = stitch.find_boundary(source, target)
    still = stitch.find_drivers(target, boundary, gamma=0.0, k=3)
    assert set(still.rows.tolist()).isdisjoint(boundary.rows.tolist())
    assert len(still.rows) + len(boundary.rows) == len(target)
    edge = target.means[boundary.rows].double()
    nearest = torch.cdist(target.means[still.rows].double(), edge).topk(3, largest=False).indices
    assert torch.equal(still.driving.sort(1).values, nearest.sort(1).values)
    x, distance = torch.randn(5, 3, generator=GENERATOR), torch.rand(5, generator=GENERATOR)
    assert torch.allclose(stitch.shaken_place(x, distance, 10.0) - x, torch.sin(10 * distance)[:, None].expand(5, 3), atol=1e-6)
    assert not torch.equal(stitch.find_drivers(target, boundary, gamma=10.0, k=3).driving, still.driving)


def test_terms_are_zero_at_their_goals_and_gradients_stop_where_they_should():
    n, k = 12, 4
    harmonics = torch.randn(n, k, 3, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
    boundary = stitch.Boundary(torch.tensor([0, 3]), harmonics.detach()[[0, 3]])
    assert float(stitch.loss_feature(harmonics, boundary)) == 0.0
    drivers = stitch.Drivers(torch.tensor([1, 2, 5]), torch.tensor([[0, 1], [0, 0], [1, 1]]))
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=GENERATOR, dtype=torch.float64), dim=1)
    weights = torch.rand(n, generator=GENERATOR, dtype=torch.float64)
    loss = stitch.loss_color(harmonics, directions, boundary, drivers, weights)
    basis, expected = sh_basis(1, directions), 0.0
    for row, driving in zip((1, 2, 5), ((0, 3), (0, 0), (3, 3)), strict=True):
        wanted = sum(basis[row] @ harmonics[d] for d in driving) / 2
        expected = expected + weights[row] * (basis[row] @ harmonics[row] - wanted).square().sum()
    assert torch.allclose(loss, expected / weights[[1, 2, 5]].sum())
    loss.backward()
    assert float(harmonics.grad[[0, 3]].abs().max()) == 0.0 and float(harmonics.grad[[1, 2, 5]].abs().min()) > 0.0


def test_sobel_measures_slopes_and_its_loss_is_zero_for_another_brightness():
    ramp = 0.1 * torch.arange(8.0)[None, None, :, None].expand(1, 6, 8, 3)
    slopes = stitch.sobel(ramp)
    assert torch.allclose(slopes[:, :, 1:-1, 0::2].amax(-1), torch.full((1, 6, 6), 0.2), atol=1e-6)
    assert torch.allclose(slopes[:, :, 1:-1].sum(-1), torch.full((1, 6, 6), 0.6), atol=1e-5)  # x only
    covered = torch.ones(1, 6, 8, dtype=torch.bool)
    assert float(stitch.loss_grad(ramp + 0.3, slopes, covered)) < 1e-10
    assert float(stitch.loss_grad(2 * ramp, slopes, covered)) > 0.05
    assert float(stitch.loss_grad(2 * ramp, slopes, ~covered)) == 0.0


def test_a_palette_finds_the_colours_counts_votes_and_forgets():
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.5, 0.5, 0.5]])
    pixels = colours.repeat_interleave(torch.tensor([40, 30, 20, 10]), 0)
    pixels = pixels + 0.01 * torch.randn(pixels.shape, generator=GENERATOR)
    palette = stitch.Palette.start(pixels)
    for _ in range(4):
        palette.see(pixels)
        assert math.isclose(float(palette.weights.sum()), 1.0, abs_tol=1e-6)
        assert float(torch.cdist(pixels, palette.centres).min(1).values.max()) < 0.12
    found = torch.cdist(colours, palette.centres).min(1)
    assert float(found.values.max()) < 0.03
    before = len(palette.centres)
    for _ in range(palette.patience):
        palette.see(pixels[:40])
    assert len(palette.centres) < before and float((palette.centres - colours[0]).norm(dim=1).max()) < 0.2
    image = colours[0].expand(1, 3, 3, 3).clone().requires_grad_(True)
    assert float(stitch.loss_tune(image, torch.ones(1, 3, 3, dtype=torch.bool), palette).detach()) < 0.01
    assert float(stitch.loss_tune(image, torch.zeros(1, 3, 3, dtype=torch.bool), palette).detach()) == 0.0


def test_a_palette_is_watched_as_it_is_built(vases, cameras):
    source, target, _ = vases
    watch, n = palettes.PaletteWatch(source, {"target": target}, cameras), len(cameras)
    whole, stages = fitting.source_palette(source, cameras), [watch.after(i) for i in range(n)]
    assert torch.equal(stages[-1].colours, whole.centres) and torch.equal(stages[-1].shares, whole.weights)
    for before, after in pairwise(stages):  # every bin was there before or was opened now, unless it expired
        assert len(after.colours) == len(before.colours) + after.opened - (after.expired - before.expired)
    hasty = watch.after(n - 1, reach=0.05, patience=1)
    assert hasty.expired > 0 and bool((hasty.idle == 0).all())
    image, seen = watch.views[n - 1]
    assert torch.equal(stages[-1].shown["source"], image) and set(stages[-1].shown) == {"source", "its bins", "target"}
    distance = torch.cdist(stages[-1].shown["its bins"][seen], whole.centres).amin(1)
    assert float(distance.max()) < 1e-3 and bool((stages[-1].shown["its bins"][~seen] == 1).all())
    panel = palette_panel(**vars(stages[0]), side=40)
    assert stages[0].opened > 0 and bool((torch.from_numpy(panel) == torch.tensor(OPENED)).all(-1).any())


def test_threads_lead_from_splats_to_their_nearest_driver(vases):
    source, target, _ = vases
    edge = stitch.find_boundary(source, target, 0.1, 0.3)
    drawn, drivers = inspect.driven(target, edge, 10.0, n_threads=5), stitch.find_drivers(target, edge, 10.0)
    assert len(drawn) == len(target) + 5
    middles = (target.means[drivers.rows] + target.means[edge.rows[drivers.driving[:, 0]]]) / 2
    assert float(torch.cdist(drawn.means[-5:].detach(), middles.detach()).amin(1).max()) < 1e-5
    leftmost = edge.rows[target.means[edge.rows, 0].argmin()]
    assert torch.allclose(drawn.base_rgb[leftmost], torch.tensor([0.84, 0.37, 0.0]), atol=1e-3)


def test_only_the_targets_harmonics_change(vases, cameras):
    source, target, _ = vases
    stitching = fitting.Stitching(source, target, cameras, fitting.Stitch(tau=0.5)).fit(3)
    for part, now in ((source, stitching.source), (target, stitching.target)):
        for name in NAMES:
            same = torch.equal(part.params[name], now.params[name])
            assert same == (name != "sh0" or part is source), name
    assert len(stitching.result()) == len(source) + len(target)
    assert set(stitching.losses(0, 2)) == {"feature", "color", "grad"} and "tune" in stitching.losses(1, 2)
    again = fitting.Stitching(source, target, cameras, fitting.Stitch(tau=0.5))
    again.load_state_dict(stitching.state_dict())
    assert torch.equal(again.target.sh0, stitching.target.sh0)


def test_the_seam_goes_and_the_veins_stay(vases, cameras):
    source, target, whole = vases
    stitching = fitting.Stitching(source, target, cameras, fitting.Stitch(tau=0.5)).fit(120)
    seam = {"paste": target, "transfer": fitting.transferred(source, target), "stitched": stitching.target}
    seam["poisson"] = fitting.poisson(source, target, stitching.boundary)
    measured = {name: inspect.seam_contrast(joined(source, part), source, part, whole, cameras) for name, part in seam.items()}
    assert measured["paste"] > 0.1 and measured["stitched"] < 0.5 * measured["paste"]
    assert measured["stitched"] < measured["transfer"] and measured["poisson"] < measured["paste"]
    assert inspect.texture_kept(target, stitching.target, cameras) > 0.6
    assert math.isclose(inspect.texture_kept(target, target, cameras), 1.0, abs_tol=1e-5)
    assert abs(inspect.seam_contrast(whole, source, target, whole, cameras)) < 1e-6


def test_poisson_keeps_differences_when_the_boundary_asks_for_a_shift(vases):
    source, target, _ = vases
    boundary = stitch.find_boundary(source, target)
    shifted = stitch.Boundary(boundary.rows, target.sh[boundary.rows] + 0.3)
    moved = fitting.poisson(source, target, shifted).sh0 - target.sh0
    assert torch.allclose(moved, torch.full_like(moved, 0.3), atol=2e-3)


def test_a_step_of_tone_far_from_the_seam_is_what_was_added(vases, cameras):
    source, target, whole = vases
    above = part_of(whole, whole.means[:, 2] >= 0)
    measure = lambda part: inspect.far_step(joined(source, part), source, part, whole, cameras, 0.05)  # noqa: E731
    assert measure(above) < 1e-3
    darker = part_of(above)
    darker.sh0.data -= 0.1 / 0.28209479
    assert math.isclose(measure(darker), 0.1 * math.sqrt(3), abs_tol=0.01)
    near = part_of(darker)
    far = stitch.gaps(source, above)[0] > 0.09
    near.sh0.data[far] = above.sh0[far]  # wrong at the seam only
    assert measure(near) < 0.3 * measure(darker)
    assert inspect.target_psnr(joined(source, above), source, above, whole, cameras) > 60
    assert math.isclose(inspect.target_psnr(joined(source, darker), source, darker, whole, cameras), 20.0, abs_tol=0.5)
    with pytest.raises(InputError, match="No view shows splats"):
        inspect.far_step(joined(source, above), source, above, whole, cameras, 0.9)


def test_flicker_is_the_spread_of_a_colour_over_views(cameras):
    start = Gaussians.from_points(torch.zeros(1, 3), torch.full((1, 3), 0.5), sh_degree=1)
    assert inspect.flicker(start, cameras) == 0.0
    start.shN.data[0, 1] = 0.2  # along z
    z = -torch.nn.functional.normalize(cameras.origins, dim=1)[:, 2]
    assert math.isclose(inspect.flicker(start, cameras), 0.2 * 0.48860251 * float(z.std(unbiased=False)), rel_tol=1e-4)


def test_an_object_is_lifted_from_pictures_where_it_stands():
    scene = parts.vase_scene(parts.ORIGINAL, 32, 3, 2)
    left = torch.where(torch.arange(32) < 16, 0, -1).expand(5, 32, 32)
    scene = replace(scene, ids=left, id_names=("wall",), depth=torch.full((5, 32, 32), 2.0))
    wall = parts.lifted(scene, "wall", 200, sh_degree=1)
    assert len(wall) == 200 and wall.settings.sh_degree == 1
    cameras = scene.views("train")
    ahead = (
        torch.einsum("cij,nj->cni", cameras.cam_from_world[:, :3, :3], wall.means.detach()) + cameras.cam_from_world[:, None, :3, 3]
    )
    column = torch.einsum("cij,cnj->cni", cameras.Ks, ahead / ahead[..., 2:])[..., 0]
    there = ((ahead[..., 2] - 2.0).abs() < 1e-4) & (column < 15) & (column > 0)  # column 15 is its outline
    assert bool(there.any(dim=0).all())
    for wrong in (replace(scene, ids=None), replace(scene, depth=None)):
        with pytest.raises(InputError, match='no object "wall"'):
            parts.lifted(wrong, "wall", 10)
    with pytest.raises(InputError, match="its objects: wall"):
        parts.lifted(scene, "duck", 10)


def test_cached_weights_draw_what_the_renderer_draws_and_mixing_trades_seam_for_texture():
    source, target = parts.halves(1500)
    cameras = parts.vase_scene(parts.ORIGINAL, 40, 12, 4).cameras[torch.tensor([0, 2, 4, 7, 9, 13])]
    mixer = mixing.Mixer(source, target, cameras)
    union = joined(source, target)
    assert torch.allclose(mixer.picture(target.sh0.detach()), render_view(union, cameras[0]).rgb[0].clamp(0, 1), atol=5e-3)
    assert torch.allclose(mixer._alone(0, target.sh0), render_view(target, cameras[0]).rgb, atol=5e-3)
    weights = mixing.blend_weights(union, cameras[0])
    assert torch.allclose(weights.sum(dim=1), render_view(union, cameras[0]).alpha.flatten(), atol=5e-3)
    assert mixer.gauges(mixer.start) == pytest.approx({"seam left": 1.0, "texture kept": 1.0}, abs=1e-5)
    free, held = mixer.mixed(0.0, 2.0)[1], mixer.mixed(20.0, 2.0)[1]
    assert free["seam left"] < held["seam left"] < 1.0 and free["texture kept"] < 0.6 < held["texture kept"]


def test_gauges_fill_with_their_values():
    full, half = (gauged(torch.zeros(4, 4), {"seam left": value}, side=40) for value in (1.0, 0.5))
    orange = lambda sheet: int((sheet == torch.tensor([213, 94, 0]).numpy()).all(-1).sum())  # noqa: E731
    assert orange(full) == 40 * 20 and orange(half) == 20 * 20 and orange(gauged(torch.zeros(4, 4), {"a": -3.0}, side=40)) == 0


def test_looks_differ_in_hue_and_share_their_places():
    first, second = (parts.vase(look, 500) for look in (parts.ORIGINAL, parts.OTHER))
    assert torch.equal(first.means, second.means) and not torch.equal(first.sh0, second.sh0)
    mean = [part.base_rgb.mean(0) for part in (first, second)]
    assert mean[0][0] > mean[0][1] > mean[0][2] and mean[1][1] > mean[1][0]
    with pytest.raises(InputError, match="one kind of splats"):
        joined(first, type(first)(type(first.settings)(sh_degree=1)))


def test_the_bench_places_cuts_and_stitches(vases, cameras, monkeypatch):
    source, target, _ = vases
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: None)
    recolour = lambda s, t: fitting.Stitching(s, t, cameras, fitting.Stitch(tau=0.5)).fit(2).target  # noqa: E731
    bench = assembly_bench.assembly(source, target, recolour)
    try:
        assert {"/source", "/target/splats"} <= set(bench.server.scene._handle_from_node_name)
        assert "touch the source" in bench.told.content
        assert torch.allclose(bench.target().means, target.means, atol=1e-6)
        bench.stitch()
        assert "/stitched" in bench.server.scene._handle_from_node_name and bench.recoloured is not None
        assert len(bench.union()) == len(source) + len(target)
        bench.gizmo.position, bench.scale.value = (0.0, 0.0, 3.0), 0.5
        bench.refresh()
        assert torch.allclose(bench.target().means, 0.5 * target.means + torch.tensor([0.0, 0, 3]), atol=1e-6)
        assert "move the parts together" in bench.told.content and bench.recoloured is None
        bench.target_box.ranges[2].value = (0.2, 0.4)
        assert 0 < len(bench.target()) < len(target)
        kept = source.means[:, 0] <= 0.0
        bench.source_box.ranges[0].value = (float(source.means[:, 0].min()), 0.0)
        assert torch.equal(bench.source().means, source.means[kept]) and 0 < int(kept.sum()) < len(source)
        bench.brush.value, places = 0.2, bench.source().means
        bench.cut_at((0.0, 0.0, 50.0), (1.0, 0.0, 0.0))  # past everything
        assert len(bench.source()) == len(places)
        i = int(bench.source().activated_opacities.argmax())
        bench.cut_at((places[i] - torch.tensor([5.0, 0, 0])).tolist(), (1.0, 0.0, 0.0))
        assert 0 < len(bench.source()) < len(places) and len(bench.target()) > 0
        bench.unbrush()
        assert torch.equal(bench.source().means, places)
    finally:
        bench.stop()
