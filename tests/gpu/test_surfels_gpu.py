"""On a GPU surfels go through gsplat: colours, alpha and normals are those of the CPU, and training runs."""

from __future__ import annotations

import pytest
import torch

from nsw import scenes
from nsw.cameras import orbit
from nsw.methods import gaussian_splatting as gs
from nsw.methods import gaussian_splatting_2d as gs2d
from nsw.models.surfels import Surfels
from nsw.renderers.surfels import render_view

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: gsplat's own rasterizer cannot run")


def test_discs_agree_where_gsplat_and_the_paper_do():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(500, 3, generator=generator) * 2 - 1
    model = Surfels.from_points(points, torch.rand(500, 3, generator=generator), generator=generator, sh_degree=1, opacity=0.7)
    cameras = orbit(3, 3.5, width=120, height=90)
    with torch.no_grad():
        cpu = render_view(model, cameras, ray_depth=False)
        gpu = render_view(model.to("cuda"), cameras).to("cpu")
    for one, other in ((cpu.rgb, gpu.rgb), (cpu.alpha, gpu.alpha), (cpu.extras["normals"], gpu.extras["normals"])):
        assert float(((one - other).abs() > 2e-3).float().mean()) < 2e-3
    assert float((cpu.depth - gpu.depth).abs().median()) < 1e-3


def test_training_runs_on_the_gpu():
    scene = scenes.load("toybox", size=48)
    model = Surfels.from_points(gs.starting_points(scene, 300), sh_degree=1, generator=gs.generator_at(0, 0)).to("cuda")
    training = gs2d.Training(model, scene.scale, 60, control=gs2d.density_control(60, start=5, stop=50, every=20))
    gs2d.fit(training, scene, range(60), gs2d.Regularisers.for_budget(60, scene, distortion=1.0))
    assert len(model) != 300 and all(p.is_cuda and torch.isfinite(p).all() for p in model.params.values())
    mesh = gs2d.mesh_of(lambda cameras: render_view(model, cameras), scene, 0.1)
    assert len(mesh.faces) > 0
