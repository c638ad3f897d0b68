"""CityGaussianV2: depth without units, needles, seams, and the protocol for surfaces."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from nsw import InputError, scenes
from nsw.methods import citygaussian_v2 as city
from nsw.methods import citygaussian_v2_blocks as blocks
from nsw.methods import citygaussian_v2_depth as depth_of
from nsw.methods import citygaussian_v2_inspect as inspect
from nsw.methods import citygaussian_v2_press as press
from nsw.methods.gaussian_splatting import starting_points
from nsw.methods.gaussian_splatting_2d_inspect import true_mesh
from nsw.models.depth_prior import CorruptedDepth
from nsw.models.surfels import Surfels
from nsw.runs.blocks import Cost
from nsw.scenes.sfm_points import seen_in, sfm_points
from nsw.widgets import city_charts as charts


@pytest.fixture(scope="module")
def town():
    return scenes.load("town", size=32)


def start(town, n=200):
    return Surfels.from_points(starting_points(town, n), sh_degree=2, generator=torch.Generator().manual_seed(0))


def test_estimated_depth_comes_back_in_the_units_of_the_points(town):
    prior = CorruptedDepth(town.pixels(range(len(town))), town.depth, noise=0.0, blur=0)
    points = sfm_points(town, 400, outliers=0.1, noise=0.0).xyz
    inverse = depth_of.aligned_inverse(prior, town, points, seen_in(town, points))
    train = town.splits["train"]
    off = (inverse[train] * town.depth[train].float() - 1).abs()
    assert off.median() < 0.02
    assert not bool(inverse[town.splits["test"]].any())


def test_nothing_is_estimated_behind_a_mask_or_with_too_few_points(town):
    train, points = town.splits["train"], sfm_points(town, 400, noise=0.0).xyz
    usable = torch.ones(town.images.shape[:3], dtype=torch.bool)
    usable[train[0], :5] = False
    masked, seen = dataclasses.replace(town, masks=usable), seen_in(town, points)
    seen[1] = False
    prior = CorruptedDepth(town.pixels(range(len(town))), town.depth, noise=0.0, blur=0)
    with pytest.warns(UserWarning, match="1 of .* pictures have no estimated depth.*8 points"):
        inverse = depth_of.aligned_inverse(prior, masked, points, seen)
    unknown = ~usable
    unknown[train[1]] = True
    assert torch.equal(inverse.isnan(), unknown)
    drawn = torch.full_like(inverse[train[:2]], 2.0).requires_grad_()
    depth_of.loss_depth(drawn, inverse[train[:2]], l1=1.0).backward()
    pull = drawn.grad.abs().amax((1, 2))
    assert bool(pull.isfinite().all()) and pull[1] < 1e-4 * pull[0]
    with pytest.raises(InputError, match="8 points of known depth or more, this picture has 0"):
        depth_of.aligned_inverse(prior, town, points, torch.zeros_like(seen))


def test_needles_are_as_many_and_as_thin_as_asked(town):
    surfels = start(town)
    stretched = inspect.with_needles(surfels, 0.2, 0.005)
    needles = city.axis_ratio(stretched) < 0.0051
    assert int(needles.sum()) == 40 and float(city.axis_ratio(surfels).min()) > 0.9
    areas = [model.scales[:, :2].sum(1) for model in (surfels, stretched)]
    torch.testing.assert_close(*areas)


def test_a_map_says_where_cameras_stand_and_why_they_are_needed(town):
    surfels, cameras = start(town), town.views("train")
    boxes = blocks.quantile_boxes(surfels.means.detach()[:, :2], 2, 1)
    why = torch.arange(len(cameras)) % 4
    drawn = charts.block_map(surfels, cameras, boxes, 1, why)
    traces = {trace.name: trace for trace in drawn.data}
    assert sum(len(traces[words].x) for words, *_ in charts.WHY.values()) == len(cameras)
    assert max(traces["block 1"].x) == max(traces["borders"].x[6:11]) and min(traces["block 1"].x) == max(traces["borders"].x[:5])
    east = blocks.inside(cameras.origins, boxes)[1].tolist()
    cores = traces[""].marker.color
    assert len({(core, there) for core, there in zip(cores, east, strict=True)}) == 2
    assert drawn.layout.xaxis.title.text and drawn.layout.yaxis.title.text


def test_a_threshold_says_how_many_needles_it_spares(town):
    stretched = inspect.with_needles(start(town), 0.2, 0.005)
    drawn = charts.needle_figure({"stretched": city.axis_ratio(stretched).log10()}, -2.0)
    bars, limit = drawn.data
    assert bars.name == "stretched: 40 spared" and sum(bars.y) == 200 and set(limit.x) == {-2.0}


def test_the_line_through_aligned_points_has_their_units():
    g = torch.Generator().manual_seed(0)
    guess, pixels = torch.rand(12, 16, generator=g), torch.rand(40, 2, generator=g) * torch.tensor([16.0, 12.0])
    column, row = pixels.long().unbind(-1)
    points, line = charts.alignment_figure(guess, pixels, 3 * guess[row, column] + 1).data
    assert all(abs(y - 3 * x - 1) < 1e-4 for trace in (points, line) for x, y in zip(trace.x, trace.y, strict=True))


def test_seams_are_the_pixels_near_inner_borders(town):
    everything = torch.tensor([[[-math.inf] * 2, [math.inf] * 2]])
    assert not bool(inspect.near_seam(town, everything, 1.0).any())
    two = blocks.quantile_boxes(torch.tensor([[-1.0, 0], [1.0, 0]]), 2, 1)
    narrow, wide = (inspect.near_seam(town, two, width) for width in (0.1, 0.5))
    assert bool((wide | ~narrow).all()) and 0 < narrow.sum() < wide.sum()
    assert bool(inspect.near_seam(town, two, 100.0).all())


def test_the_true_surface_scores_high_and_a_shifted_one_low(town):
    truth = inspect.visible_truth(town, 0.04)
    mesh = true_mesh(town, 0.08, 0.16)
    precision, recall, f1 = inspect.surface_f1(mesh, truth, 0.08, 5000)
    assert min(precision, recall) > 0.8 and math.isclose(f1, 2 * precision * recall / (precision + recall))
    mesh.apply_translation([0, 0, 0.3])
    assert inspect.surface_f1(mesh, truth, 0.08, 5000)[2] < 0.5 * f1


def test_points_that_few_views_see_are_not_asked_for(town):
    seen = [len(inspect.visible_truth(town, 0.1, least)) for least in (1, 5, 40)]
    assert seen[0] > seen[1] > seen[2] == 0


def test_pulls_add_up_to_that_of_the_loss(town):
    camera, target = town.views("train")[1], town.pixels("train")[1:2]
    found = inspect.pulls(start(town), camera, target)
    assert set(found) == {"l1", "ssim"} and all(float(pull.discs.max()) > 0 for pull in found.values())
    assert found["ssim"].picture.shape == (camera.height, camera.width)
    assert int(inspect.strongest(found["ssim"].discs, 0.1).sum()) == 20


def test_importance_per_pixel_is_the_mean_weight(town):
    surfels, view = start(town), town.views("train")[:1]
    weight, pixels = press.contributions(surfels, view)
    torch.testing.assert_close(press.scores_of(surfels, view, per_pixel=True), weight / pixels)
    torch.testing.assert_close(press.scores_of(surfels, view), weight.clamp_min(0))


def test_training_with_another_filter_reports_its_number_of_discs(town):
    plan = blocks.fine_plan(8, 2, growth=1e-6, all_bands=True)
    inverse = 1 / town.depth.float()
    stretched = inspect.with_needles(start(town), 0.5)
    ours, counts = inspect.grown(stretched, town, inverse, plan, 0.01, range(8))
    _, free = inspect.grown(stretched, town, inverse, plan, 0.0, range(8))
    assert len(counts) == 8 and counts[-1] == len(ours) and free[-1] > counts[-1] > 0
    assert len(stretched) == 200


def test_two_models_are_compared_by_what_a_claim_needs_to_know():
    ours, theirs = (inspect.Judged(psnr, 1.0, 1.0, 0.1 * psnr, 0.5, 0.5, 0.5, 7) for psnr in (3.0, 2.0))
    assert inspect.versus(ours, theirs, "psnr") == dict(ours=3.0, baseline=2.0)
    assert inspect.versus(ours, theirs, "f1") == dict(ours=0.5, baseline=0.5, unit="F1")
    for field, unit in (("depth", "units"), ("n", "discs")):
        told = inspect.versus(ours, theirs, field)
        assert (told["measure"], told["better"], told["unit"]) == ("ratio", "lower", unit)


def test_a_prior_is_found_by_its_name(town, tmp_path):
    assert isinstance(depth_of.prior_of("spoilt", town, 3), CorruptedDepth) and depth_of.prior_of("spoilt", town, 3).seed == 3
    assert "bundled" in depth_of.prior_of("bundled", town).name
    with pytest.raises(InputError):
        depth_of.prior_of(str(tmp_path), town)


def test_the_map_of_a_block_beyond_the_last_is_that_of_the_first(town):
    surfels, cameras = start(town), town.views("train")[:2]
    boxes = blocks.quantile_boxes(surfels.means.detach()[:, :2], 2, 1)
    drawn = [charts.atlas(surfels, cameras, boxes, block, 0.05).to_json() for block in (0, 1, 2)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_nine_tenths_of_a_gradient_are_shown_at_a_half_or_darker(town):
    pulled = inspect.pulls(start(town), town.views("train")[0], town.pixels("train")[:1])
    for picture in inspect.gradients(pulled).values():
        assert picture.shape == town.images.shape[1:3] and abs(float(picture.quantile(0.9)) - 0.5) < 1e-6
        assert float(picture.min()) >= 0 and float(picture.max()) <= 1


def test_what_was_trained_is_shown_in_words_and_curves(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: shown.append(bundle))
    picture, told = torch.rand(4, 6, 3), [dict(own=n, context=1, held_mb=2.0) for n in (3, 4, 9)]
    charts.show_prior("toy", picture, picture[..., 0], picture)
    charts.show_importance(torch.linspace(1e-3, 1, 9))
    charts.show_growth({"with": [1, 2], "without": [1, 4]})
    charts.cost_table(told, [Cost(1.0, 100.0)] * 3)
    assert len(shown) >= 4 and "7 discs" in str(shown[-2:]) and "single run" in str(shown[-2:])


def test_a_pressed_file_is_shown_with_its_size(town, tmp_path):
    file = press.packed(start(town), town.views("train")[:2], tmp_path / "town.safetensors", 16, 0.4)
    drawn = charts.pressed_pair(file, torch.rand(4, 6, 3), torch.rand(4, 6, 3))
    assert drawn.layout.title.text == f"{file.stat().st_size / 1000:.0f} kB" and len(drawn.data[0].z[0]) == 12
