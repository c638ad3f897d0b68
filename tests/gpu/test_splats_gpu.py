"""On a GPU the same model, cameras and call go through gsplat: pictures and gradients must be those of the CPU."""

from __future__ import annotations

import pytest
import torch

from nsw.cameras import orbit
from nsw.methods import compact_3dgs, compact_3dgs_codec, compact_3dgs_reader, mcmc, mcmc_chain, mvgs, mvgs_train, sags, sags_growth
from nsw.methods import gaussian_splatting as gs
from nsw.methods.density_control import DensityControl
from nsw.methods.feature_3dgs import feature_map
from nsw.models.anchored_splats import AnchoredSettings, AnchoredSplats
from nsw.models.compact_gaussians import CompactGaussians, CompactSettings
from nsw.models.feature_gaussians import FeatureGaussians
from nsw.models.gaussians import Gaussians
from nsw.models.neural_colour import NeuralColourSettings
from nsw.renderers.splats import render_view
from nsw.scenes.scene import Scene

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: gsplat's own rasterizer cannot run")


def splats_and_cameras(n: int = 2000):
    generator = torch.Generator().manual_seed(0)
    splats = Gaussians.random(torch.tensor([[-1.0] * 3, [1.0] * 3]), n, generator, sh_degree=2)
    with torch.no_grad():
        splats.quats.normal_(generator=generator)
        splats.scales += 0.4 * torch.randn(n, 3, generator=generator)
        splats.opacities.normal_(generator=generator)
        splats.shN.normal_(std=0.1, generator=generator)
    return splats, orbit(3, 3.5, width=120, height=90)


@pytest.mark.parametrize("antialiased", [False, True])
def test_pictures_agree_within_the_cards_tolerance(antialiased):
    splats, cameras = splats_and_cameras()
    with torch.no_grad():
        cpu = render_view(splats, cameras, antialiased=antialiased)
        gpu = render_view(splats.to("cuda"), cameras, antialiased=antialiased).to("cpu")
    # a splat that sits on the 1/255 or the transmittance limit may fall either way in a few pixels
    for one, other, limit in ((cpu.rgb, gpu.rgb, 2e-3), (cpu.alpha, gpu.alpha, 1e-3)):
        assert float(((one - other).abs() > limit).float().mean()) < 1e-3
    assert float((cpu.depth - gpu.depth).abs().median()) < 1e-3


def test_gradients_agree():
    gradients = {}
    for device in ("cpu", "cuda"):
        splats, cameras = splats_and_cameras()
        splats = splats.to(device)
        render = render_view(splats, cameras, absgrad=True)
        (render.rgb.square().mean() + 0.1 * render.depth.mean()).backward()
        gradients[device] = {name: p.grad.cpu() for name, p in splats.params.items()}
        gradients[device]["absgrad"] = render.extras["meta"]["means2d"].absgrad.cpu()
    for name, cpu in gradients["cpu"].items():
        gpu = gradients["cuda"][name]
        assert float((cpu - gpu).norm() / cpu.norm()) < 1e-2, name


def test_training_with_density_control_runs_on_the_gpu():
    splats, cameras = splats_and_cameras(300)
    splats = splats.to("cuda")
    control = DensityControl(start=2, stop=20, every=5, reset_every=0, grow_gradient=1e-7)
    training = gs.Training(splats, 3.0, 20, control=control)
    target = torch.rand(1, 90, 120, 3, generator=torch.Generator().manual_seed(1)).cuda()
    losses = []
    for step in range(20):
        render = render_view(splats, cameras[step % 3], depth=False)
        loss = (render.rgb - target).abs().mean()
        loss.backward()
        training.step(step, render.extras["meta"])
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert len(splats) > 300


def test_the_mcmc_chain_runs_on_the_gpu_and_shares_as_on_the_cpu():
    given = torch.tensor([0.5, 0.95, 0.99]), torch.ones(3, 3), torch.tensor([2, 4, 50])
    for cpu, gpu in zip(mcmc.shared(*given), mcmc.shared(*[value.cuda() for value in given]), strict=True):
        assert torch.allclose(cpu, gpu.cpu(), atol=1e-6)
    splats, cameras = splats_and_cameras(300)
    with torch.no_grad():
        splats.opacities[:40] = -8.0
    training = mcmc_chain.Chain(splats.to("cuda"), 3.0, 20, mcmc_chain.Sampling(330, start=2, stop=20, every=5, noise_lr=1.0))
    moves = []
    for step in range(20):
        render = render_view(training.gaussians, cameras[step % 3])
        (render.rgb.mean() + training.penalty(step)).backward()
        moves.append(training.step(step))
    assert len(moves[5].dead) >= 40 and len(training.gaussians) == 330 and training.rows["origin"].shape == (330,)
    assert all(p.is_cuda and torch.isfinite(p).all() for p in training.gaussians.params.values())


@pytest.mark.parametrize("n_features", [16, 40])
def test_feature_maps_and_their_gradients_agree(n_features):
    splats, cameras = splats_and_cameras()
    model = FeatureGaussians.around(splats, n_features, 64)
    torch.nn.init.normal_(model.features, generator=torch.Generator().manual_seed(2))
    maps, gradients = {}, {}
    for device in ("cpu", "cuda"):
        model = model.to(device)
        model.zero_grad(set_to_none=True)
        seen = feature_map(model, cameras, (45, 60))
        seen.square().mean().backward()
        maps[device], gradients[device] = seen.detach().cpu(), model.features.grad.cpu().clone()  # `to` moves gradients in place
    assert float(((maps["cpu"] - maps["cuda"]).abs() > 1e-2).float().mean()) < 1e-3
    assert float((gradients["cpu"] - gradients["cuda"]).norm() / gradients["cpu"].norm()) < 1e-2


def test_compact_splats_train_and_are_written_on_the_gpu(tmp_path):
    start, cameras = splats_and_cameras(300)
    colour = NeuralColourSettings(n_levels=3, log2_entries=8, n_min=4, n_max=16, width=16)
    settings = CompactSettings(sh_degree=1, colour=colour, n_stages=2, log2_codewords=4)
    plan = compact_3dgs.Compression(field_from=8, field_lessons=5, quantise_last=5, prune_every=4, lr_mask=0.5)
    model = CompactGaussians.from_gaussians(start.to("cuda"), settings)
    training = compact_3dgs.Compact(model, 3.0, 20, plan, origins=cameras.origins)
    for step in range(20):
        render = model.render_view(cameras[step % 3])
        (render.rgb.mean() + training.penalty(step)).backward()
        training.step(step, render.extras["meta"])
    assert model.has_field and bool(model.scale_codes.ready) and model.means.is_cuda
    read = compact_3dgs_reader.load(compact_3dgs_codec.save(model, tmp_path / "scene.nswc")).to("cuda")
    assert torch.isfinite(read.render_view(cameras[0]).rgb).all() and len(read) == int(model.kept.sum())


def test_several_views_a_step_train_on_the_gpu_and_their_boxes_are_those_of_the_cpu():
    splats, cameras = splats_and_cameras(300)
    corners, _ = mvgs.worst_windows(torch.rand(3, 90, 120, generator=torch.Generator().manual_seed(3)), 8, 10)
    boxes = mvgs.crossing_boxes(cameras, corners, 3.0)
    assert len(boxes) and torch.allclose(mvgs.crossing_boxes(cameras.to("cuda"), corners.cuda(), 3.0).cpu(), boxes, atol=1e-3)
    with torch.no_grad():
        images = (render_view(splats, cameras).rgb.clamp(0, 1) * 255).byte()
    splits = {"train": torch.arange(3), "val": torch.arange(0), "test": torch.arange(0)}
    scene = Scene("random", images, cameras, splits, torch.tensor([[-1.0] * 3, [1.0] * 3]), 1.0, 6.0)
    start = Gaussians.random(scene.aabb, 200, torch.Generator().manual_seed(5)).to("cuda")
    stages, control = mvgs_train.pyramid(scene, (60, 120), (3, 2), (20, 20)), DensityControl(grow_gradient=1e-5, max_splats=900)
    training = mvgs_train.fit(mvgs_train.MultiView(start, stages, control, every=5, start=1), range(40))
    assert 200 < len(training.gaussians) <= 900
    assert all(p.is_cuda and torch.isfinite(p).all() for p in training.gaussians.params.values())


@pytest.mark.parametrize("midpoints", [None, (6, 4)])
def test_anchored_splats_agree_and_grow_on_the_gpu(midpoints):
    points = 2 * torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) - 1
    model, (_, cameras) = AnchoredSplats.at_points(points, AnchoredSettings(midpoints=midpoints)), splats_and_cameras()
    torch.nn.init.normal_(model.features, generator=torch.Generator().manual_seed(1))
    cpu = model.render_view(cameras[0]).rgb.detach()
    model = model.to("cuda")
    assert model.places.is_cuda and model.graph.source.is_cuda
    assert float(((cpu - model.render_view(cameras[0]).rgb.cpu()).abs() > 1e-2).float().mean()) < 1e-2
    growth = None if midpoints else sags_growth.Growth(0.05, 1e-9, count_from=0, start=2, stop=20, every=5, max_anchors=230)
    training = sags.Sags(model, 20, growth)
    for step in range(20):
        render = model.render_view(cameras[step % 3], depth=False)
        render.rgb.mean().backward()
        training.step(step, render.extras["meta"])
    assert len(model) == 200 if midpoints else len(model) <= 230
    assert all(p.is_cuda and bool(torch.isfinite(p).all()) for p in model.parameters())
