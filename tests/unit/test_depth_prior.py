"""Depth priors: alignment undoes what is unknown, the stand-in is spoilt as it says, the bundled network beats a constant."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch

from nsw import scenes
from nsw.errors import InputError
from nsw.models import train_toy_depth as training
from nsw.models.depth_prior import CorruptedDepth, align_inverse_depth, find_depth_prior
from nsw.models.toy_depth import MIDDLE, ToyDepth, ToyDepthSettings, toy_depth
from nsw.scenes.bundled import data_dir


def points(n: int, side: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels [n, 2] of a square picture, and a smooth true map [side, side]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * side, 0.3 + 0.4 * y + 0.1 * (5 * x).sin()


def at(values: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    return values[pixels[:, 1].long(), pixels[:, 0].long()]


def test_alignment_undoes_an_affine_map_though_some_points_are_wrong():
    pixels, true = points(200, 40)
    known = at(true, pixels)
    assert torch.allclose(align_inverse_depth(3 * true - 2, pixels, known), true, atol=1e-5)
    known[:20] = 50.0
    robust = (align_inverse_depth(3 * true - 2, pixels, known) - true).abs().mean()
    design = torch.stack([at(3 * true - 2, pixels), torch.ones(200)], 1)
    slope, offset = torch.linalg.lstsq(design, known[:, None]).solution[:, 0]
    least_squares = (slope * (3 * true - 2) + offset - true).abs().mean()
    assert robust < 0.05 and robust < 0.05 * least_squares


def test_alignment_follows_the_units_of_the_points():
    pixels, true = points(60, 30)
    once, twice = (align_inverse_depth(true.square(), pixels, k * at(true, pixels)) for k in (1, 2))
    assert torch.allclose(twice, 2 * once, atol=1e-5)


def test_what_cannot_be_aligned_is_refused_in_a_sentence():
    pixels, true = points(7, 30)
    with pytest.raises(InputError, match="8 points of known depth or more, this picture has 7"):
        align_inverse_depth(true, pixels, at(true, pixels))
    pixels, true = points(30, 30)
    with pytest.raises(InputError, match="this picture has 0"):
        align_inverse_depth(true, pixels + 100, at(true, pixels))
    with pytest.raises(InputError, match="the prior says one depth"):
        align_inverse_depth(torch.ones(30, 30), pixels, at(true, pixels))
    with pytest.raises(InputError, match="all points have one depth"):
        align_inverse_depth(true, pixels, torch.ones(30))


def test_the_stand_in_is_the_truth_behind_an_affine_map_of_each_pictures_own():
    scene = scenes.load("town", size=40)
    pictures, depth = scene.pixels("train")[:3], scene.depth[scene.frames("train")][:3]
    clean, spoilt = (CorruptedDepth(pictures, depth, noise=noise, blur=0) for noise in (0.0, 0.2))
    slopes = []
    for picture, z in zip(pictures, depth, strict=True):
        said, true = clean.predict(picture), torch.where(z > 0, 1 / z, 0)
        slope = (said.max() - said.min()) / (true.max() - true.min())
        assert torch.allclose(said - said.mean(), slope * (true - true.mean()), atol=1e-4)
        slopes.append(round(float(slope), 4))
        assert torch.equal(spoilt.predict(picture), spoilt.predict(picture))
        noise = spoilt.predict(picture) / slope
        assert 0.15 < float((noise - noise.mean() - true + true.mean()).std() / true.std()) < 0.25
    assert len(set(slopes)) == 3
    other = CorruptedDepth(pictures, depth, seed=1)
    assert not torch.allclose(other.predict(pictures[0]), CorruptedDepth(pictures, depth).predict(pictures[0]))
    with pytest.raises(InputError, match="only the pictures that it was made from"):
        clean.predict(pictures[0] * 0.5)
    with pytest.raises(InputError, match="knows pictures of"):
        clean.predict(pictures[0][:5])


def test_blur_takes_steps_away():
    depth = torch.ones(1, 12, 12)
    depth[:, :, 6:] = 2
    picture = torch.rand(12, 12, 3, generator=torch.Generator().manual_seed(0))
    sharp, soft = (CorruptedDepth(picture[None], depth, noise=0, blur=b).predict(picture) for b in (0, 2))
    assert (soft[:, 1:] - soft[:, :-1]).abs().max() < 0.3 * (sharp[:, 1:] - sharp[:, :-1]).abs().max()


def test_the_bundled_weights_are_those_of_the_manifest_and_small():
    folder = data_dir() / "toy_depth"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == manifest["files"]["model.safetensors"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2e6
    assert manifest["licence"] == "CC0-1.0" and "no view of a bundled scene" in manifest["trained_on"]
    assert manifest["settings"] == training.TrainingSettings().__dict__


def test_the_bundled_network_keeps_the_interface_and_its_recorded_error():
    prior = find_depth_prior()
    assert "bundled" in prior.name
    wide = prior.predict(torch.rand(30, 50, 3))
    assert wide.shape == (30, 50) and bool((wide > 0).all())
    manifest = json.loads((data_dir() / "toy_depth" / "manifest.json").read_text(encoding="utf-8"))
    measured, recorded = training.errors(prior, training.bundled_views("town")), manifest["errors_on_unseen_scenes"]["town"]
    assert abs(measured["prior"] - recorded["prior"]) < 0.01 and abs(measured["plane"] - recorded["plane"]) < 0.01
    assert measured["prior"] < 0.6 * measured["plane"]


def test_missing_and_wrong_weights_are_refused_in_a_sentence(tmp_path, monkeypatch):
    bundled = data_dir()
    monkeypatch.setenv("NSW_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"There is no model .*toy_depth"):
        toy_depth()
    shutil.copytree(bundled / "toy_teacher", tmp_path / "toy_depth")
    with pytest.raises(InputError, match="holds a ToyTeacher, expected a ToyDepth"):
        toy_depth()
    with pytest.raises(InputError, match="There is no description"):
        find_depth_prior(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}', encoding="utf-8")
    with pytest.raises(InputError, match='type "clip"'):
        find_depth_prior(tmp_path)


def test_losses_do_not_see_the_units_of_the_scene():
    _, true = points(1, 16)
    depth = (1 / true)[None].repeat(2, 1, 1)
    depth[:, :4] = 0  # nothing hit
    aim = training.normalised(true[None].flatten(1), (depth[:1] > 0).flatten(1)).view(1, 16, 16).repeat(2, 1, 1) + MIDDLE
    for unit in (1, 30):
        right = training.losses(aim, unit * depth)
        assert all(value.item() < 1e-4 for value in right.values())
    wrong = training.losses(2 * MIDDLE - aim, depth)
    assert wrong["depth"] > 1 and wrong["edges"] > 0.01


def test_a_picture_that_keeps_its_shape_is_cut_together_with_its_map():
    y, x = torch.meshgrid(torch.linspace(0.3, 0.7, 60), torch.linspace(0.3, 0.7, 80), indexing="ij")
    rgba = torch.stack([x, y, x * y, torch.ones_like(x)])
    least, mirrored = 1.0, set()
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        picture, kept = training.augmented(rgba, x, 45, g, square=False, least=0.8)
        assert picture.shape == (3, 45, 60) and kept.shape == (45, 60)
        assert abs(float(torch.corrcoef(torch.stack([picture[0].flatten(), kept.flatten()]))[0, 1]) - 1) < 0.01
        least = min(least, float(kept.max() - kept.min()) / 0.4)
        mirrored.add(bool(kept[0, 0] > kept[0, -1]))
    assert 0.75 < least < 0.9 and mirrored == {False, True}


def test_towns_to_learn_from_are_seen_from_the_air_in_the_shape_of_their_pictures():
    from nsw.scenes.make import scattered

    city = scattered.describe(1, size=16, views=2)  # any description: only its cameras are replaced
    flown = training.flown_over(city, 50, 1)
    centres = flown.cameras.origins
    assert len(flown.cameras) == 50 and float(centres[:, 2].min()) >= 2.7 and float(centres[:, 2].max()) <= 3.7
    assert (flown.cameras.width, flown.cameras.height) == (16, 16)
    assert not torch.allclose(training.flown_over(city, 50, 2).cameras.origins, centres)


def test_a_few_steps_lower_the_loss_on_their_own_batch():
    torch.manual_seed(0)
    model = ToyDepth(ToyDepthSettings(widths=(8, 8, 8, 8)))
    _, true = points(1, 32)
    pictures, depth = true.expand(2, 3, 32, 32), (1 / true).expand(2, 32, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    totals = []
    for _ in range(15):
        total = sum(training.losses(model(pictures), depth).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.6 * totals[0]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_a_plane_has_no_error_where_the_truth_is_one():
    y, x = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    rgba, inverse = torch.ones(4, 10, 10), 0.2 + 0.01 * y + 0.02 * x
    prior = CorruptedDepth(torch.ones(1, 10, 10, 3), (1 / inverse)[None], noise=0, blur=0)
    found = training.errors(prior, [(rgba, 1 / inverse)])
    assert found["plane"] < 0.01 and found["prior"] < 0.01


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_depth_anything_keeps_the_interface(tmp_path, kind):
    """With random weights of a tiny size: shapes, names, and one sentence for weights that are missing, cut off or incomplete."""
    hub = pytest.importorskip("transformers", reason="transformers is not installed (extra priors)")
    backbone = hub.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14, out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )  # fmt: skip
    config = hub.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
        head_hidden_size=8, depth_estimation_type=kind, max_depth=10,
    )  # fmt: skip
    hub.DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path)
    prior = find_depth_prior(tmp_path)
    assert "Depth Anything" in prior.name and prior.metric == (kind == "metric")
    prior.side = 28
    assert prior.predict(torch.rand(20, 30, 3)).shape == (20, 30)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:200])
    with pytest.raises(InputError, match="no readable weights"):
        find_depth_prior(tmp_path)
    from safetensors.torch import load, save

    tensors = load(whole)
    tensors.pop(next(name for name in tensors if name.startswith("head")))
    weights.write_bytes(save(tensors, metadata={"format": "pt"}))
    with pytest.raises(InputError, match="lack 1 tensors"):
        find_depth_prior(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match="no readable weights"):
        find_depth_prior(tmp_path)
