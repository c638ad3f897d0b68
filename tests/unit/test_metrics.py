"""Metrics against closed forms and independent implementations."""

import math
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from nsw import losses, metrics
from nsw.errors import InputError
from nsw.models import vgg


def pictures(n=2, size=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, size, size, 3, generator=generator), torch.rand(n, size, size, 3, generator=generator)


def test_psnr_is_averaged_over_views_not_pooled():
    target = torch.zeros(2, 4, 4, 3)
    predicted = torch.stack([torch.full((4, 4, 3), 0.1), torch.full((4, 4, 3), 0.01)])
    assert metrics.psnr(predicted, target) == pytest.approx((20 + 40) / 2, abs=1e-6)


def test_psnr_clamps_the_prediction_and_honours_masks():
    target = torch.ones(1, 2, 2, 3)
    predicted = torch.tensor([[[[3.0] * 3, [1.0] * 3], [[0.9] * 3, [0.0] * 3]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    assert metrics.psnr(predicted, target, mask) == pytest.approx(-10 * math.log10(0.01 / 3), abs=1e-4)
    with pytest.raises(InputError, match="mask is empty"):
        metrics.psnr(predicted, target, torch.zeros_like(mask))


def test_ssim_agrees_with_scikit_image():
    skimage = pytest.importorskip("skimage.metrics")
    x, y = pictures(1)
    # skimage crops five pixels where torchmetrics mirrors them: mirror first and the two mean over the same windows
    a, b = (np.pad(p[0].numpy().astype(np.float64), ((5, 5), (5, 5), (0, 0)), mode="reflect") for p in (x, y))
    expected = skimage.structural_similarity(
        a, b, channel_axis=-1, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, win_size=11
    )
    assert metrics.ssim(x, y) == pytest.approx(expected, abs=1e-5)


def test_ssim_of_small_pictures_is_refused():
    with pytest.raises(InputError, match="at least 11x11"):
        metrics.ssim(torch.zeros(8, 8, 3), torch.zeros(8, 8, 3))


def test_shapes_that_differ_are_refused():
    with pytest.raises(InputError, match="differ in size"):
        metrics.psnr(torch.zeros(8, 8, 3), torch.zeros(8, 9, 3))


def test_a_split_is_scored_view_by_view_and_no_render_is_kept():
    """The rasterizer's lists of 200 views fill a GPU; the scores are those of all pictures at once."""
    from nsw import scenes
    from nsw.renderers.render import Render

    scene, kept = scenes.load("toybox", size=16), []

    class Lists:
        pass

    def render(camera):
        assert sum(lists() is not None for lists in kept) <= 1
        lists = Lists()
        kept.append(weakref.ref(lists))
        rgb = torch.full((1, 16, 16, 3), 0.1 * len(kept) % 1)
        return Render(rgb, rgb[..., 0], 2 + rgb[..., 0], {"meta": lists})

    found = metrics.evaluate(render, scene)
    frames = scene.frames("test")
    rgb = torch.stack([torch.full((16, 16, 3), 0.1 * (i + 1) % 1) for i in range(len(frames))])
    assert len(kept) == len(frames) and found.ssim == metrics.ssim(rgb, scene.pixels(frames))
    assert found.per_view == tuple(metrics.psnr_per_view(rgb, scene.pixels(frames)))
    assert found.depth_error == metrics.depth_error(2 + rgb[..., 0], scene.depth[frames].float())


def test_loss_ssim_is_zero_for_equal_and_has_a_gradient_that_finite_differences_confirm():
    x, y = (p.double()[:, :13, :12] for p in pictures(1))
    assert losses.loss_ssim(x, x).item() == pytest.approx(0.0, abs=1e-9)
    assert torch.autograd.gradcheck(losses.loss_ssim, (x.requires_grad_(True), y), atol=1e-6)


def test_normal_error_measures_angles():
    true = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
    tilted = torch.tensor([[[0.0, math.sin(0.2), math.cos(0.2)], [1.0, 0.0, 0.0]]])
    assert metrics.normal_error_degrees(tilted, true) == pytest.approx(math.degrees(0.2), abs=1e-4)


def test_depth_error_counts_only_pixels_with_truth():
    true = torch.tensor([[2.0, 0.0]])
    assert metrics.depth_error(torch.tensor([[2.5, 9.0]]), true) == pytest.approx(0.5)
    with pytest.raises(InputError, match="no pixel has a true depth"):
        metrics.depth_error(true, torch.zeros(1, 2))


@pytest.fixture(scope="module")
def vgg_folder(tmp_path_factory):
    """A folder with a VGG-16 of random weights, as torchvision names them."""
    folder = tmp_path_factory.mktemp("hub")
    generator, state = torch.Generator().manual_seed(0), {}
    sizes = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
    sizes |= {17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}
    for place, (n_in, n_out) in sizes.items():
        state[f"features.{place}.weight"] = torch.randn(n_out, n_in, 3, 3, generator=generator) * (2 / (9 * n_in)) ** 0.5
        state[f"features.{place}.bias"] = 0.1 * torch.randn(n_out, generator=generator)
    (folder / "checkpoints").mkdir()
    torch.save(state, folder / "checkpoints" / "vgg16-397923af.pth")
    return folder


def test_lpips_needs_weights_on_disk(tmp_path):
    x, y = pictures(1)
    assert metrics.lpips(x, y, weights=tmp_path) is None


def test_lpips_is_a_distance(vgg_folder):
    x, y = pictures(2)
    assert metrics.lpips(x, x, weights=vgg_folder) == 0.0
    far = metrics.lpips(x, y, weights=vgg_folder)
    assert far > 1e-3 and far == pytest.approx(metrics.lpips(y, x, weights=vgg_folder), rel=1e-5)
    assert metrics.lpips(x, 0.9 * x + 0.1 * y, weights=vgg_folder) < far


def test_lpips_agrees_with_torchmetrics_on_the_same_network(vgg_folder):
    torchvision = pytest.importorskip("torchvision", reason="torchmetrics' own LPIPS needs torchvision")
    from torchmetrics.functional.image.lpips import _LPIPS

    state = vgg.load_weights(vgg_folder / "checkpoints" / "vgg16-397923af.pth", vgg.vgg_names())
    theirs = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
    network = torchvision.models.vgg16(weights=None).features
    network.load_state_dict({name.removeprefix("features."): value for name, value in state.items()})
    for k, part in enumerate((range(4), range(4, 9), range(9, 16), range(16, 23), range(23, 30)), start=1):
        for i in part:
            setattr(getattr(theirs.net, f"slice{k}"), str(i), network[i])
    x, y = pictures(2)
    with torch.no_grad():
        expected = theirs(2 * x.permute(0, 3, 1, 2).float() - 1, 2 * y.permute(0, 3, 1, 2).float() - 1).mean()
    assert metrics.lpips(x, y, weights=vgg_folder) == pytest.approx(float(expected), rel=1e-4)


def test_damaged_lpips_weights_and_small_pictures_are_named(tmp_path, vgg_folder):
    with pytest.raises(InputError, match="at least 16x16"):
        metrics.lpips(torch.rand(8, 8, 3), torch.rand(8, 8, 3), weights=vgg_folder)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").write_bytes(b"half")
    with pytest.raises(InputError, match="download it again"):
        metrics.lpips(*pictures(1), weights=tmp_path)
    torch.save({"features.0.weight": torch.ones(1)}, tmp_path / "checkpoints" / "vgg16-397923af.pth")
    with pytest.raises(InputError, match="lacks features.0.bias"):
        metrics.lpips(*pictures(1), weights=tmp_path)


def test_acts_take_turns_and_the_least_of_the_counted_rounds_is_kept(monkeypatch):
    clock, calls = [0.0], []
    costs = {"a": iter([0.5, 4.0, 2.0, 3.0]), "b": iter([9.0, 7.0, 6.0, 8.0])}  # the first of each only warms up

    def act(name):
        calls.append(name)
        clock[0] += next(costs[name])

    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    assert metrics.seconds_in_turns({name: partial(act, name) for name in costs}, rounds=3) == {"a": 2.0, "b": 6.0}
    assert calls == ["a", "b", "b", "a"] * 2


def test_a_busy_spell_does_not_change_who_is_faster(monkeypatch):
    clock = [0.0]

    def act(cost):
        clock[0] += cost * (5.0 if 3 <= clock[0] % 10 < 8 else 1.0)  # half of the time all takes five times as long

    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    took = metrics.seconds_in_turns({"short": partial(act, 0.5), "full": partial(act, 1.0)}, rounds=20)
    assert took["short"] / took["full"] == pytest.approx(0.5)
