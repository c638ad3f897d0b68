"""On a GPU a block is trained, trimmed and pressed through gsplat, and comes back to the CPU."""

from __future__ import annotations

import pytest
import torch

from nsw import scenes
from nsw.methods import citygaussian_v2 as city
from nsw.methods import citygaussian_v2_blocks as blocks
from nsw.methods import citygaussian_v2_press as press
from nsw.methods import gaussian_splatting as gs
from nsw.methods.density_control import DensityControl
from nsw.models.surfels import Surfels
from nsw.renderers.surfels import render_view

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: gsplat's own rasterizer cannot run")


def start(town):
    return Surfels.from_points(gs.starting_points(town, 400), sh_degree=2, generator=gs.generator_at(0, 0))


def test_a_block_is_trained_on_the_gpu_and_read_on_the_cpu(tmp_path):
    town = scenes.load("town", size=48)
    coarse, truth = start(town), 1 / town.depth.float()
    boxes = blocks.quantile_boxes(coarse.means.detach()[:, :2], 2, 1)
    why = blocks.reasons(coarse.to("cuda"), town.views("train").to("cuda"), boxes)
    recipe = city.Recipe.fine(60, trim_from=10, trim_every=20)
    plan = dict(n_steps=60, recipe=recipe, control=DensityControl(grow_gradient=1e-5, start=5, stop=50, every=20), device="cuda")
    work = blocks.blocks_of(coarse, town, boxes, why, truth, lambda share: plan)
    parts = [blocks.load_block(blocks.tune_block(block, tmp_path / f"{i}.safetensors")) for i, block in enumerate(work)]
    whole = blocks.merged([part for part, _ in parts])
    assert len(whole) == sum(about["own"] for _, about in parts) > 0
    assert all(bool(torch.isfinite(p).all()) and not p.is_cuda for p in whole.params.values())


def test_importance_and_file_agree_with_the_cpu(tmp_path):
    town = scenes.load("town", size=48)
    surfels, camera = start(town), town.views("train")[0]
    cpu = press.contributions(surfels, camera)[0]
    gpu = press.contributions(surfels.to("cuda"), camera.to("cuda"))[0].cpu()
    assert float((cpu - gpu).abs().median()) < 1e-3 * float(cpu.max())
    scores = press.scores_of(surfels, town.views("train").to("cuda"))
    back = press.load(press.save(surfels, scores, tmp_path / "town.safetensors", size=16))
    with torch.no_grad():
        pictures = [render_view(model, camera.to(model.means.device)).rgb.cpu() for model in (surfels, back)]
    assert float((pictures[0] - pictures[1]).abs().mean()) < 0.05
