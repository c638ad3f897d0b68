"""CityGaussianV2: what must hold of blocks, of the decomposed gradient, of the filter, of importance and of the file."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch

from nsw import scenes
from nsw.cameras import Cameras, intrinsics, look_at
from nsw.errors import InputError
from nsw.losses import loss_l1, loss_ssim
from nsw.methods import citygaussian_v2 as city
from nsw.methods import citygaussian_v2_blocks as blocks
from nsw.methods import citygaussian_v2_depth as depth_of
from nsw.methods import citygaussian_v2_press as press
from nsw.methods import gaussian_splatting_2d as gs2d
from nsw.methods.density_control import DensityControl, new_rows
from nsw.methods.gaussian_splatting import starting_points
from nsw.models.io import pack, unpack
from nsw.models.parts import joined, part_of
from nsw.models.residual_codebooks import assign
from nsw.models.state import load_state, save_state
from nsw.models.surfels import Surfels
from nsw.renderers.surfels import render_view
from nsw.runs.blocks import costs, run_blocks


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def town():
    return scenes.load("town", size=32)


def start(town, n=300, seed=0):
    return Surfels.from_points(starting_points(town, n, seed), sh_degree=2, generator=torch.Generator().manual_seed(seed))


def from_above(x: float, y: float, height: float = 2.0, size: int = 24) -> Cameras:
    eye = torch.tensor([[x, y, height]])
    pose = look_at(eye, eye - torch.tensor([[0.0, 0.0, height]]), up=(0.0, 1.0, 0.0))
    return Cameras(pose, intrinsics(50.0, size, size), size, size)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 2), (1, 4)])
def test_blocks_partition_the_plane_and_share_discs_evenly(shape):
    ground = torch.cat([rand(400, 2), 3 + rand(200, 2, seed=1) ** 2])
    boxes = blocks.quantile_boxes(ground, *shape)
    far = torch.cat([ground, 100 * (rand(500, 2, seed=2) - 0.5), boxes[boxes.isfinite().all(-1)].reshape(-1, 2)])
    assert len(boxes) == math.prod(shape)
    assert bool((blocks.inside(far, boxes).sum(0) == 1).all())
    counts = blocks.inside(ground, boxes).sum(1)
    assert counts.max() - counts.min() <= max(shape) + 1


def test_a_camera_is_assigned_by_place_or_by_what_it_sees():
    """Two discs left and right of x = 0. A camera over the left one sees no other; one in the middle sees both."""
    discs = Surfels.from_values([[-1.0, 0, 0], [1.0, 0, 0]], [[0.3] * 3] * 2, [[1.0, 0, 0, 0]] * 2, [0.95] * 2, [[1.0, 0, 0]] * 2)
    boxes = torch.tensor([[[-math.inf, -math.inf], [0.0, math.inf]], [[0.0, -math.inf], [math.inf, math.inf]]])
    views = [from_above(-1.0, 0.0, 1.0), from_above(-0.1, 0.0, 3.0), from_above(4.0, 0.0, 1.0)]
    cameras = Cameras(torch.cat([v.cam_from_world for v in views]), torch.cat([v.Ks for v in views]), 24, 24)
    why = blocks.reasons(discs, cameras, boxes)
    assert why.tolist() == [[blocks.BOTH, blocks.BOTH, 0], [0, blocks.SSIM, blocks.LOCATION]]


def test_merged_discs_are_those_of_all_blocks(town, tmp_path):
    coarse = start(town)
    boxes = blocks.quantile_boxes(coarse.means.detach()[:, :2], 2, 1)
    why = torch.ones(2, len(town.splits["train"]), dtype=torch.int)
    control = DensityControl(grow_gradient=1e-6, start=1, stop=10, every=2)
    plan = dict(n_steps=6, recipe=city.Recipe.fine(6), control=control)
    work = blocks.blocks_of(coarse, town, boxes, why, None, lambda share: plan)
    paths = [blocks.tune_block(block, tmp_path / f"{i}.safetensors") for i, block in enumerate(work)]
    parts, abouts = zip(*map(blocks.load_block, paths), strict=True)
    whole = blocks.merged(parts)
    assert len(whole) == sum(about["own"] for about in abouts) == sum(map(len, parts)) > len(coarse)
    assert sum(about["context"] for about in abouts) == len(coarse) and all(about["held_mb"] > 0 for about in abouts)
    assert isinstance(whole, Surfels)
    save_state(tmp_path / "input", pack(work[0]), "input")  # as it travels to another process
    sent = unpack(load_state(tmp_path / "input", "input"), "input")
    again = blocks.load_block(blocks.tune_block(sent, tmp_path / "again.safetensors"))[0]
    assert torch.equal(again.means, parts[0].means)


@pytest.mark.skipif(sys.platform == "win32", reason="Ray's clusters run on Linux and macOS")
def test_blocks_of_a_city_are_the_same_from_a_ray_cluster(town, tmp_path, monkeypatch):
    """Two blocks, grown and trimmed with estimated depth: what comes back over Ray is what processes of this machine write."""
    pytest.importorskip("ray", reason="Ray is not installed (extra cluster) or has no wheel for this system")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    coarse, few = start(town), blocks.own_scene(town, town.splits["train"][:4])
    boxes, inverse = blocks.quantile_boxes(coarse.means.detach()[:, :2], 2, 1), torch.full(few.images.shape[:3], 0.3)
    why = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    work = blocks.blocks_of(coarse, few, boxes, why, inverse, lambda share: blocks.fine_plan(8, 2, growth=1e-6, depth_l1=1.0))
    told = dict(threads=1, gpus=0, progress=False)
    found = {where: run_blocks(blocks.tune_block, work, tmp_path / where, where=where, **told) for where in ("processes", "ray")}
    for here, there in zip(found["processes"], found["ray"], strict=True):
        (mine, about), (back, cost) = blocks.load_block(here), blocks.load_block(there)
        assert all(torch.equal(value, back.state_dict()[name]) for name, value in mine.state_dict().items())
        assert {**about, "seconds": 0} == {**cost, "seconds": 0} and about["views"] == 3
    assert all(cost.seconds > 0 and cost.peak_mb > 50 for cost in costs(found["ray"]))
    merged = blocks.merged([blocks.load_block(path)[0] for path in found["ray"]])
    assert not torch.equal(merged.means[: len(coarse)], coarse.means) and bool(merged.means.isfinite().all())


def test_a_block_with_too_few_pictures_keeps_the_coarse_discs(town, tmp_path):
    coarse = start(town)
    boxes = blocks.quantile_boxes(coarse.means.detach()[:, :2], 2, 1)
    why = torch.zeros(2, len(town.splits["train"]), dtype=torch.int)
    why[0, :3], why[1, 0] = 1, 1
    plan = dict(n_steps=2, recipe=city.Recipe.plain(2), control=None)
    work = blocks.blocks_of(coarse, town, boxes, why, None, lambda share: plan, least_views=2)
    assert [(block.n_steps, len(block.scene)) for block in work] == [(2, 3), (0, 1)]
    kept, _ = blocks.load_block(blocks.tune_block(work[1], tmp_path / "b.safetensors"))
    assert torch.equal(kept.means, coarse.means[blocks.inside(coarse.means, boxes)[1]])


def block_training(town, context, n=6, control=None, **recipe):
    coarse = start(town)
    mine = torch.arange(len(coarse)) >= context
    own, others = part_of(coarse, mine), part_of(coarse, ~mine)
    return coarse, blocks.BlockTraining(own, others, town, n, replace(city.Recipe.plain(n), **recipe), control=control)


def test_blocks_that_are_not_trained_make_up_the_coarse_model(town, tmp_path):
    coarse = start(town)
    boxes, why = blocks.quantile_boxes(coarse.means.detach()[:, :2], 2, 2), torch.zeros(4, 30, dtype=torch.int)
    work = blocks.blocks_of(coarse, town, boxes, why, None, lambda share: blocks.fine_plan(6, 2))
    parts = [blocks.load_block(blocks.tune_block(block, tmp_path / f"{i}.safetensors"))[0] for i, block in enumerate(work)]
    pictures = [render_view(model, town.views("train")[4]).rgb for model in (coarse, blocks.merged(parts))]
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-5)


def test_a_block_draws_its_context_and_leaves_it_alone(town):
    """Own discs first, then the others: the picture is that of the whole, training moves the former and adds to them only."""
    control = DensityControl(grow_gradient=1e-6, start=1, stop=6, every=2)
    coarse, training = block_training(town, 200, control=control, trim=0.1, trim_from=4)
    pictures = [render_view(model, town.views("train")[4]).rgb for model in (coarse, training.shown)]
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-5)
    before = {name: p.clone() for name, p in training.context.params.items()}
    city.fit(training, town, range(6))
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in training.context.params.items())
    assert len(training.gaussians) > 100 and not torch.equal(training.gaussians.means[:5], coarse.means[200:205])
    assert len(training.rows["count"]) == len(training.gaussians) == len(training.shown.means) - 200


def test_a_block_learns_what_it_would_if_the_way_back_were_walked_for_all(town):
    """Of every term and of importance: own discs get the gradients that they have in a picture in which nothing is frozen."""
    coarse, training = block_training(town, 200)
    n, every, found = training.n_trained, joined(training.gaussians, training.context), []
    camera, target = town.views("train")[4], town.pixels("train")[4:5]
    for model, first, of in ((training.shown, n, training.gaussians), (every, None, every)):
        render = render_view(model, camera, n_trained=first)
        terms = city.terms_of(render, target, 1 / town.depth[:1].float(), 10, training) | {"normal": gs2d.loss_normal(render)}
        pull = city.pull_of_ssim(terms["ssim"], render.extras["meta"])
        sum(terms.values()).backward()
        found.append({"pull": pull[:, :n]} | {name: p.grad[:n] for name, p in of.params.items()})
    assert n == 100 and all(bool(value.abs().max() > 0) for value in found[0].values())
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))
    weighed = [press.scores_of(every, town.views("train"), first=first)[:n] for first in (n, None)]
    torch.testing.assert_close(*weighed)


def test_the_pull_of_a_block_is_lifted_by_its_own_discs():
    """What the frozen ones would have been pulled by makes no difference."""
    whole, stored, lifted = rand(1, 50, 2), 0.1 * rand(1, 50, 2, seed=1), []
    for n in (50, 20):
        meta = {"radii": torch.ones(1, n, 2, dtype=torch.int32), "gradient_2dgs": torch.zeros(1, n, 2)}
        meta["gradient_2dgs"].grad = whole[:, :n]
        meta |= {"width": 8, "height": 8, "n_cameras": 1}
        lifted.append(city.steered(meta, stored[:, :n], 0.9, n_trained=20)["gradient_2dgs"].grad[:, :20])
    torch.testing.assert_close(*lifted)


def test_a_block_without_context_is_trained_as_the_whole(town):
    """The single run goes through the very code of the blocks: with nothing frozen it is the plain training."""
    control = DensityControl(grow_gradient=1e-4, start=1, stop=6, every=2)
    coarse, training = block_training(town, 0, control=control, trim=0.1, trim_from=4)
    whole = city.Training(coarse, town, 6, training.recipe, control=control)
    ours, theirs = (city.fit(one, town, range(6)).gaussians for one in (training, whole))
    assert len(ours) == len(theirs)
    torch.testing.assert_close(ours.means, theirs.means, rtol=1e-4, atol=1e-5)


def test_steps_follow_the_share_of_the_pictures(town):
    coarse = start(town)
    why = torch.zeros(2, len(town.splits["train"]), dtype=torch.int)
    why[0], why[1, :15] = 1, 1
    boxes = blocks.quantile_boxes(coarse.means.detach()[:, :2], 2, 1)
    work = blocks.blocks_of(coarse, town, boxes, why, None, lambda share: blocks.fine_plan(round(100 * share), 10))
    assert [block.n_steps for block in work] == [100, 50]


def test_damaged_block_says_so(tmp_path):
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError):
        blocks.load_block(tmp_path / "b.safetensors")


def gradients(town, backward):
    surfels = start(town)
    camera, target = town.views("train")[0], town.pixels("train")[:1]
    render = render_view(surfels, camera)
    terms = {"l1": 0.8 * loss_l1(render.rgb, target), "ssim": 0.2 * loss_ssim(render.rgb, target)}
    seen = backward(terms, render.extras["meta"])
    return {name: p.grad for name, p in surfels.params.items()}, seen


def test_decomposed_backward_leaves_the_whole_gradient_and_hands_over_that_of_ssim(town):
    whole, meta = gradients(town, lambda terms, meta: (sum(terms.values()).backward(), meta)[1])
    _, of_ssim = gradients(town, lambda terms, meta: (terms["ssim"].backward(), meta)[1])

    def decomposed(terms, meta):
        stored = city.pull_of_ssim(terms["ssim"], meta)
        sum(terms.values()).backward()
        return city.steered(meta, stored, omega=0.0)

    ours, seen = gradients(town, decomposed)
    for name, gradient in whole.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(seen["gradient_2dgs"].grad, of_ssim["gradient_2dgs"].grad, rtol=1e-4, atol=1e-9)
    assert not torch.allclose(seen["gradient_2dgs"].grad, meta["gradient_2dgs"].grad)


def test_pull_is_lifted_to_a_share_of_the_whole_and_never_lowered():
    small, large, seen = 0.1 * rand(1, 50, 2), 3 * rand(1, 50, 2, seed=1), torch.ones(1, 50, dtype=torch.bool)
    lifted = city.pull_of(small, large, seen, 0.9)
    torch.testing.assert_close(lifted.norm(dim=-1).mean(), 0.9 * large.norm(dim=-1).mean())
    torch.testing.assert_close(lifted / lifted.norm(dim=-1, keepdim=True), small / small.norm(dim=-1, keepdim=True))
    assert torch.equal(city.pull_of(large, small, seen, 0.9), large)
    assert torch.equal(city.pull_of(small, large, seen, 0.0), small)


def test_filter_blocks_every_needle_and_nothing_else(town):
    surfels = start(town)
    with torch.no_grad():
        surfels.scales[:100, 1] = surfels.scales[:100, 0] + math.log(0.005)
        surfels.scales[100:150, 0] = surfels.scales[100:150, 1] + math.log(0.02)
    rows = new_rows(len(surfels)) | {"grad2d": torch.ones(len(surfels)), "count": torch.ones(len(surfels))}
    grown = [city.round_enough(limit)(surfels.params, rows, DensityControl(), town.scale) for limit in (0.01, 0.03)]
    grown = [to_clone | to_split for to_clone, to_split in grown]
    assert not bool(grown[0][:100].any()) and bool(grown[0][100:].all())
    assert not bool(grown[1][:150].any()) and bool(grown[1][150:].all())


def test_depth_weight_and_loss():
    recipe = city.Recipe.fine(600)
    assert recipe.depth_weight(0, 600) == 0.5 and math.isclose(recipe.depth_weight(600, 600), 0.025)
    depth = (2 + rand(1, 24, 24)).requires_grad_()
    assert depth_of.loss_depth(depth, 1 / depth.detach()).item() < 1e-5
    depth_of.loss_depth(depth, 1 / (depth.detach() + rand(1, 24, 24, seed=3))).backward()
    assert bool(torch.isfinite(depth.grad).all()) and depth.grad.abs().max() > 0


def test_weights_of_all_discs_add_up_to_the_opacity_of_the_picture(town):
    surfels, camera = start(town), town.views("train")[3]
    weight, pixels = press.contributions(surfels, camera)
    torch.testing.assert_close(weight.sum(), render_view(surfels, camera).alpha.sum(), rtol=1e-4, atol=0)
    assert bool((weight >= -1e-6).all()) and bool((pixels >= 1).all())
    assert all(p.grad is None for p in surfels.parameters())


def test_running_best_is_the_list_of_the_best():
    values = rand(40, 17)
    best = torch.zeros(40, 5)
    for column in values.T:
        best = press.running_best(best, column)
    torch.testing.assert_close(best, values.topk(5, dim=1).values)


def test_hidden_discs_go_first(town):
    """A disc under another that is opaque has nothing to say, however opaque it is itself."""
    values = ([[0.0, 0, 0], [0, 0, -0.5]], [[0.4] * 3, [0.05] * 3], [[1.0, 0, 0, 0]] * 2, [0.999] * 2, [[1.0, 0, 0]] * 2)
    scores = press.scores_of(Surfels.from_values(*values), from_above(0.0, 0.0), 5)
    assert press.weakest(scores, 0.5).tolist() == [False, True]


def test_trimming_happens_when_due_and_takes_its_share(town):
    recipe = replace(city.Recipe.plain(8), trim=0.1, trim_from=2, trim_every=3)
    training = city.Training(start(town), town, 8, recipe, control=DensityControl(start=100, stop=7))
    assert [step for step in range(9) if training.trim_due(step)] == [2, 5]
    unseen = int((press.scores_of(training.gaussians, training.cameras) <= 0).sum())
    city.fit(training, town, range(3))
    assert len(training.gaussians) <= 300 - max(30, unseen) + 2
    city.fit(training, town, range(3, 5))
    assert len(training.rows["count"]) == len(training.gaussians)


def test_codebook_errs_less_the_larger_it_is_and_listens_to_importance():
    x = rand(600, 12)
    errors = []
    for size in (4, 16, 64, 256):
        words = press.codebook(x, torch.ones(600), size, seed=1)
        errors.append(float((x - words[assign(x, words[None])[:, 0]]).square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.7 * errors[0]
    weights = torch.where(torch.arange(600) < 60, 50.0, 1.0)
    words = {name: press.codebook(x, w, 16, seed=1) for name, w in (("even", torch.ones(600)), ("weighted", weights))}
    of_important = {n: float((x[:60] - w[assign(x[:60], w[None])[:, 0]]).square().mean()) for n, w in words.items()}
    assert of_important["weighted"] < of_important["even"]


def test_file_keeps_the_important_and_shares_the_rest(town, tmp_path):
    surfels = start(town)
    with torch.no_grad():
        surfels.shN.copy_(0.1 * rand(*surfels.shN.shape))
    scores = rand(300, seed=4)
    path = press.save(surfels, scores, tmp_path / "town.safetensors", size=16, keep=0.6)
    back, order = press.load(path), scores.argsort(descending=True, stable=True)
    assert isinstance(back, Surfels) and len(back) == 300
    assert torch.equal(back.means, surfels.means[order])
    torch.testing.assert_close(back.sh[:180], surfels.sh[order][:180], rtol=1e-3, atol=1e-3)
    assert len(back.sh[180:].flatten(1).unique(dim=0)) <= 16
    smaller = press.save(surfels, scores, tmp_path / "small.safetensors", size=16, keep=0.0)
    assert smaller.stat().st_size < path.stat().st_size < 300 * 164


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_any_share_can_keep_its_colours(town, tmp_path, keep):
    surfels = start(town, 20)
    back = press.load(press.save(surfels, rand(20), tmp_path / "town.safetensors", size=64, keep=keep))
    order = rand(20).argsort(descending=True, stable=True)
    torch.testing.assert_close(back.sh[: round(20 * keep)], surfels.sh[order][: round(20 * keep)], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("damage", ["cut", "index", "missing"])
def test_damaged_file_says_so(town, tmp_path, damage):
    from nsw.models.state import load_state, save_state

    path = press.save(start(town), rand(300), tmp_path / "town.safetensors", size=16)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        parts = load_state(path, "pressed city")
        parts = parts | {"index": parts["index"] + 200} if damage == "index" else {k: v for k, v in parts.items() if k != "quats"}
        save_state(path, parts, "pressed city")
    with pytest.raises(InputError, match="town.safetensors"):
        press.load(path)
