"""S3IM: it is SSIM for the order as drawn, forgets a common order on average, has a true gradient, and stays in its bounds."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch.nn.functional import conv2d

from nsw import metrics
from nsw.cameras import camera_rays, orbit
from nsw.errors import InputError
from nsw.losses import SSIM_CONSTANTS, loss_mse, ssim_terms
from nsw.methods import dvgo, dvgo_stages, s3im, s3im_controls, s3im_regimes, tensorf_fit
from nsw.methods import instant_ngp as ngp
from nsw.methods import instant_ngp_fit as fitting
from nsw.methods import s3im_inspect as look
from nsw.methods import s3im_trials as trials
from nsw.methods.tensorf import Plan
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.scenes.scene import Scene
from nsw.widgets import group_figure, refit_dial

ONCE = partial(s3im.loss_s3im, repeats=1)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _colours(n: int = 256, seed: int = 0, noise: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    g = _generator(seed)
    truth = torch.rand(n, 3, generator=g, dtype=torch.double)
    return (truth + noise * torch.randn(n, 3, generator=g, dtype=torch.double)).clamp(0, 1), truth


def _plain(rgb: torch.Tensor, truth: torch.Tensor, height: int, width: int, kernel: int, stride: int) -> torch.Tensor:
    """Return 1 - SSIM of one patch by convolutions, the textbook's moments."""
    x, y = (v.view(1, height, width, 3).permute(0, 3, 1, 2) for v in (rgb, truth))
    window = s3im.window_weights(kernel).to(rgb).view(1, 1, kernel, kernel).expand(3, 1, kernel, kernel)
    mu_x, mu_y, xx, yy, xy = (conv2d(v, window, stride=stride, groups=3) for v in (x, y, x * x, y * y, x * y))
    c1, c2 = SSIM_CONSTANTS
    s_x, s_y, s_xy = xx - mu_x**2, yy - mu_y**2, xy - mu_x * mu_y
    return 1 - ((2 * mu_x * mu_y + c1) * (2 * s_xy + c2) / ((mu_x**2 + mu_y**2 + c1) * (s_x + s_y + c2))).mean()


@pytest.mark.parametrize(("kernel", "stride", "n"), [(4, 4, 256), (4, 2, 768), (3, 1, 300), (2, 2, 16)])
def test_one_repeat_is_ssim_of_the_patch_in_its_order(kernel, stride, n):
    rgb, truth = _colours(n)
    rgb.requires_grad_()
    height, width = s3im.patch_shape(n, kernel)
    assert height * width <= n
    ours = s3im.loss_s3im(rgb, truth, _generator(), kernel, stride, repeats=1)
    slow = _plain(rgb[: height * width], truth[: height * width], height, width, kernel, stride)
    torch.testing.assert_close(ours, slow, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(value, rgb)[0] for value in (ours, slow)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-9)


def test_the_official_layout_is_one_long_picture_with_a_border_of_zeros():
    """Every window by hand: its rows lie H W M / H places apart, it begins one place outside, and the last places are not read."""
    rgb, truth = _colours(256)
    m, height, width = 3, 16, 16
    ours = s3im_controls.loss_official_layout(rgb.requires_grad_(), truth, _generator(5), repeats=m)
    order = s3im.shuffled_orders(256, _generator(5), m).reshape(-1)
    line = torch.exp(-(torch.arange(4.0, dtype=torch.double) - 2).square() / 4.5)
    weights = (line[:, None] * line / line.sum() ** 2).reshape(-1, 1)
    groups = []
    for row in range(height // 4):
        for column in range(width * m // 4):
            at = [(4 * row + i - 1, 4 * column + j - 1) for i in range(4) for j in range(4)]
            inside = torch.tensor([i >= 0 and j >= 0 for i, j in at])[:, None]
            place = order[torch.tensor([max(i, 0) * width * m + max(j, 0) for i, j in at])]
            groups.append([v[place] * inside for v in (rgb, truth)])
    x, y = (torch.stack(side) for side in zip(*groups, strict=True))
    luminance, structure = ssim_terms(*s3im.group_moments(x, y, weights))
    torch.testing.assert_close(ours, 1 - (luminance * structure).mean(), atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(s3im_controls.loss_official_layout(rgb, truth, _generator(), repeats=1), rgb)
    read = gradient.view(16, 16, 3).abs().amax(-1) > 0
    assert bool(read[:-1, :-1].all()) and not bool(read[-1].any()) and not bool(read[:, -1].any())


def test_the_official_layout_agrees_with_the_clean_one_on_average():
    """On the paper's patch: one value within the luck of the draw and the border's share, one direction of the mean gradient."""
    rgb, truth = _colours(4096)
    values, gradients = [], []
    for loss in (s3im.loss_s3im, s3im_controls.loss_official_layout):
        x = rgb.clone().requires_grad_()
        value = loss(x, truth, _generator(1), repeats=60)
        values.append(float(value.detach()))
        gradients.append(torch.autograd.grad(value, x)[0])
    assert values[1] == pytest.approx(values[0], rel=0.03)
    assert float(torch.cosine_similarity(*(g.flatten() for g in gradients), dim=0)) > 0.98


def test_more_repeats_are_the_mean_over_their_shuffles():
    rgb, truth = _colours()
    whole = s3im.loss_s3im(rgb, truth, _generator(3), repeats=4)
    g = _generator(3)
    orders = [torch.arange(256), *(torch.randperm(256, generator=g) for _ in range(3))]
    parts = torch.stack([_plain(rgb[order], truth[order], 16, 16, 4, 4) for order in orders])
    torch.testing.assert_close(whole, parts.mean(), atol=1e-12, rtol=0)


def test_float32_keeps_value_and_gradient():
    rgb, truth = _colours(1024, noise=0.02)
    values, gradients = [], []
    for dtype in (torch.float, torch.double):
        x = rgb.to(dtype).requires_grad_()
        values.append(s3im.loss_s3im(x, truth.to(dtype), _generator()))
        gradients.append(torch.autograd.grad(values[-1], x)[0].double())
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-4)
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-4


def test_gradient_by_differences_flows_through_the_prediction_alone():
    rgb, truth = _colours(32)
    rgb.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: s3im.loss_s3im(x, truth, _generator(), repeats=3), rgb)
    truth.requires_grad_(False)
    assert s3im.loss_s3im(rgb, truth, _generator()).requires_grad and not truth.requires_grad


def test_identical_is_zero_and_everything_lies_between_zero_and_two():
    rgb, truth = _colours()
    assert abs(s3im.loss_s3im(truth, truth, _generator()).item()) < 1e-12
    assert 0 < s3im.loss_s3im(rgb, truth, _generator()).item() < 1
    opposite = s3im.loss_s3im(1 - truth, truth, _generator()).item()
    assert 1 < opposite <= 2


def test_a_common_order_changes_nothing_on_average_and_an_order_of_one_side_does():
    rgb, truth = _colours()
    order = torch.randperm(256, generator=_generator(9))
    many = partial(s3im.loss_s3im, repeats=400)
    first, second = many(rgb, truth, _generator(1)), many(rgb[order], truth[order], _generator(2))
    assert first.item() == pytest.approx(second.item(), abs=5e-3)
    assert many(rgb[order], truth, _generator(2)).item() > first.item() + 0.3


def test_the_same_generator_gives_the_same_number():
    rgb, truth = _colours()
    a, b, c = (s3im.loss_s3im(rgb, truth, _generator(seed)).item() for seed in (1, 1, 2))
    assert a == b != c


def test_every_ray_is_in_one_window_of_every_repeat():
    groups = s3im.draw_groups(768, _generator(), repeats=3).view(3, -1)
    assert torch.equal(groups.sort(1).values, torch.arange(768).expand(3, -1))


def test_rays_that_do_not_fit_change_from_shuffle_to_shuffle():
    groups = s3im.draw_groups(30, _generator(), repeats=20).view(20, -1)
    assert groups.shape[1] == 16 and groups[0].max() == 15
    assert torch.equal(groups.unique(), torch.arange(30))


def test_too_few_rays_are_refused():
    with pytest.raises(InputError, match="at least 16 rays, not 15"):
        s3im.loss_s3im(torch.rand(15, 3), torch.rand(15, 3), _generator())


def test_flat_groups_pull_hard_and_may_be_left_out():
    truth = torch.ones(256, 3, dtype=torch.double)
    truth[:128] = torch.rand(128, 3, generator=_generator(), dtype=torch.double)
    rgb = (truth + 0.01 * torch.randn(256, 3, generator=_generator(1), dtype=torch.double)).requires_grad_()
    every, some = ONCE(rgb, truth, _generator()), ONCE(rgb, truth, _generator(), min_contrast=0.05)
    pull, calmer = (torch.autograd.grad(value, rgb)[0].norm(dim=-1) for value in (every, some))
    assert float(pull[128:].mean()) > 5 * float(pull[:128].mean())
    assert float(calmer[128:].max()) == 0.0 and float(calmer[:128].min()) > 0.0
    assert ONCE(truth, truth, _generator(), min_contrast=2.0).item() == 0.0


def test_for_small_errors_it_is_a_normalised_squared_error():
    """The two agree up to terms of third order: a tenth of the error leaves a tenth of the relative difference."""
    g = _generator()
    truth, errors = (torch.rand(64, 16, 3, generator=g, dtype=torch.double) for _ in range(2))  # errors with a mean
    weights = torch.full((16, 1), 1 / 16, dtype=torch.double)
    wrong = []
    for size in (1e-2, 1e-3):
        exact, near = look.expansion(truth + size * errors, truth, weights)
        wrong.append(abs(float(exact / near) - 1))
    assert wrong[0] < 0.1 and wrong[1] < 0.15 * wrong[0]


def test_matched_mse_has_the_size_of_the_other_gradient_and_the_direction_of_its_own():
    rgb, truth = _colours()
    pull = s3im_controls.colour_gradient
    matched = pull(s3im_controls.matched_mse(ONCE), rgb, truth, _generator())
    wanted = pull(ONCE, rgb, truth, _generator())
    own = pull(lambda x, y, _: loss_mse(x, y), rgb, truth, _generator())
    assert matched.norm().item() == pytest.approx(wanted.norm().item(), rel=1e-9)
    torch.testing.assert_close(matched / matched.norm(), own / own.norm())
    assert not torch.allclose(wanted / wanted.norm(), own / own.norm(), atol=1e-3)


def test_normalised_mse_by_hand_and_blind_to_correlation():
    rgb, truth = _colours(16)
    e, weights = (rgb - truth).square(), s3im.window_weights(4).double()
    mean = (weights * truth).sum(0)
    contrast = (weights * (truth - mean).square()).sum(0)
    expected = ((weights * e).sum(0) / (2 * contrast + SSIM_CONSTANTS[1])).mean()
    torch.testing.assert_close(s3im_controls.loss_normalised(rgb, truth, _generator(), repeats=1), expected)
    flipped = 2 * truth - rgb  # the same squared errors
    torch.testing.assert_close(s3im_controls.loss_normalised(flipped, truth, _generator(), repeats=1), expected)


def test_squares_are_neighbours_and_become_windows():
    cameras = orbit(3, radius=3.0, width=10, height=8)
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
    picture = torch.arange(3.0)[:, None, None].expand(3, 8, 10)
    colours = torch.stack([picture, rows.expand(3, -1, -1), columns.expand(3, -1, -1)], dim=-1).reshape(-1, 3)
    bank = s3im_controls.PatchBank(camera_rays(cameras), colours, 8, 10)
    rays, drawn = bank.draw(130, _generator())
    assert len(drawn) == len(rays) == 8 * 16
    groups = drawn[s3im.window_index(8, 16)]
    assert float((groups.amax(1) - groups.amin(1) - torch.tensor([0.0, 3.0, 3.0])).abs().max()) == 0.0
    steps = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    assert torch.equal(groups[:, :, 1:] - groups[:, :1, 1:], steps.expand(len(groups), -1, -1))


def test_groups_of_one_label_come_from_everywhere_and_draw_every_ray_alike():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 0, 2, 2, 2])
    rays = camera_rays(orbit(1, radius=3.0, width=5, height=2))
    bank = s3im_controls.AlikeBank(rays, torch.arange(10.0)[:, None].expand(-1, 3), labels, size=2)
    drawn = torch.cat([bank.draw(64, generator)[1][:, 0] for generator in [_generator()] for _ in range(200)]).long()
    windows = drawn.view(200, 64)[:, s3im.window_index(8, 8, 2, 2)]
    assert bool((labels[windows] == labels[windows[..., :1]]).all())
    assert (drawn.bincount(minlength=10) / len(drawn)).tolist() == pytest.approx([0.1] * 10, abs=0.01)


def test_an_object_is_a_group_of_all_pictures():
    scene = _scene()
    scene = dataclasses.replace(scene, ids=torch.randint(-1, 3, (10, 12, 12), generator=_generator()).short())
    bank = s3im_controls.by_object(scene, dvgo_stages.ray_bank(scene))
    assert torch.equal(bank.labels, scene.ids[:8].reshape(-1).long() + 1)


def _scene(n: int = 10) -> Scene:
    """Every picture is the same bright sweep from left to right, with some grain."""
    grain = torch.randint(30, (n, 12, 12, 3), generator=_generator(), dtype=torch.uint8)
    images = grain + torch.linspace(40, 200, 12).byte()[:, None]
    splits = {"train": torch.arange(n - 2), "test": torch.arange(n - 2, n)}
    box = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    return Scene("grey", images, orbit(n, radius=3.0, width=12, height=12), splits, box, 1.0, 5.0, background="none")


def test_hard_training_sets_leave_the_test_views_alone():
    scene = _scene(22)
    noisy, peppered = s3im_regimes.noisy_views(scene, 0.25), s3im_regimes.salt_and_pepper(scene, 0.1)
    test = scene.frames("test")
    changed = (noisy.images != scene.images).flatten(1).any(1)
    assert int(changed.sum()) == 5 and not bool(changed[test].any())
    hit = ((peppered.images == 0) | (peppered.images == 255)).all(-1)
    assert float(hit[:20].float().mean()) == pytest.approx(0.1, abs=0.02) and not bool(hit[test].any())
    assert torch.equal(peppered.images[~hit], scene.images[~hit])
    few = s3im_regimes.fewer_views(scene, 4)
    assert few.frames("train").tolist() == [0, 6, 13, 19] and torch.equal(few.frames("test"), test)
    assert s3im_regimes.fewer_views(scene, 50).frames("train").tolist() == scene.frames("train").tolist()
    assert torch.equal(s3im_regimes.noisy_views(scene, seed=1).images, s3im_regimes.noisy_views(scene, seed=1).images)


def test_it_plugs_into_three_grids_and_lowers_itself():
    scene, before_after = _scene(), {}
    sizes = dict(n_voxels=12**3, alpha_init=1e-2)
    stage = dvgo_stages.Stage(n_steps=30, n_rays=256, threshold=1e-4, **sizes)
    bank = dvgo_stages.ray_bank(scene)
    seen: list[float] = []

    def noted(rgb, truth, generator):
        value = s3im.loss_s3im(rgb, truth, generator, repeats=2)
        seen.append(float(value.detach()))
        return value

    torch.manual_seed(0)
    grid = DenseGrid(DenseGridSettings(**sizes))
    dvgo_stages.fit(grid, bank, stage, _generator(), 1.0, extra_loss=noted)
    before_after["dense"] = (seen[0], seen[-1])
    seen.clear()
    model = fitting.new_model(scene, 24, n_levels=3, n_features=2, log2_entries=9, n_max=16, width=16, n_cells=8)
    plan = fitting.Plan(n_steps=30, n_samples=4096, random_background=False)
    fitting.fit(model, ngp.training_pixels(scene, model.aabb), plan, _generator(), 1.0, extra_loss=noted)
    before_after["hash"] = (seen[0], seen[-1])
    seen.clear()
    factored = tensorf_fit.new_model(scene, n_voxels=12**3, mlp_width=16)
    pixels = ngp.training_pixels(scene, factored.aabb)
    tensorf_fit.fit(factored, pixels, Plan(n_steps=30, n_voxels=12**3, n_samples=4096), _generator(), 1.0, extra_loss=noted)
    before_after["factored"] = (seen[0], seen[-1])
    assert len(seen) == 30
    assert all(after < before for before, after in before_after.values()), before_after


def test_ssim_terms_tell_brightness_from_contrast():
    x = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    others = (x, x - 0.3, 2 * x.mean() - x)
    same, darker, flipped = (ssim_terms(x.mean(), y.mean(), x.var(), y.var(), torch.cov(torch.stack([x, y]))[0, 1]) for y in others)
    assert [float(term) for term in same] == pytest.approx([1.0, 1.0])
    assert float(darker[0]) < 0.9 and float(darker[1]) == pytest.approx(1.0)  # a shift leaves contrast and correlation
    c2, variance = SSIM_CONSTANTS[1], float(x.var())
    assert float(flipped[0]) == pytest.approx(1.0) and float(flipped[1]) == pytest.approx((c2 - 2 * variance) / (c2 + 2 * variance))


def test_the_metric_and_the_loss_share_one_formula():
    """On a patch large against the border, an 11x11 window's loss is the metric's one up to how the border is filled."""
    rgb, truth = _colours(64 * 64, noise=0.1)
    loss = s3im.loss_s3im(rgb, truth, _generator(), kernel=11, stride=1, repeats=1).item()
    height, width = s3im.patch_shape(64 * 64, 11)
    pictures = [v[: height * width].view(1, height, width, 3) for v in (rgb, truth)]
    assert 1 - loss == pytest.approx(metrics.ssim(*pictures), abs=0.02)


def test_looking_at_a_grid():
    scene = _scene()
    grid = trials.new_dense(scene, dvgo_stages.Stage(n_voxels=8**3, alpha_init=0.05))
    same = look.alignment(grid, scene, trials.squared, n_rays=256)
    assert same["times as long"] == pytest.approx(1.0) and same["cosine"] == pytest.approx(1.0)
    other = look.alignment(grid, scene, s3im.loss_s3im, n_rays=256)
    assert other["times as long"] > 2 and abs(other["cosine"]) < 1
    pull = look.pull_map(grid, scene, ONCE, n_others=112)
    assert pull.shape == (12, 12) and float(pull.mean()) == pytest.approx(1.0, rel=1e-5)
    assert look.seconds_of(ONCE, 64, n=3) > 0


def test_the_theatre_shows_truth_prediction_and_their_likeness():
    rgb, truth = (v.float() for v in _colours())
    true, shown, alike = look.theatre(truth, truth).values()
    assert true.shape == alike.shape == (16, 16, 3)
    assert torch.equal(true, shown) and float(alike.min()) > 0.999
    first, second = (list(look.theatre(rgb, truth, shuffle).values()) for shuffle in (1, 2))
    assert not torch.equal(first[1], second[1]) and float(first[2].mean()) < 0.99
    torch.testing.assert_close(first[0].mean(), second[0].mean())
    assert "SSIM 1.00" in group_figure(truth[:16]).layout.title.text
    assert "brightness 1.00" in group_figure(truth[:16], scale=0.2).layout.title.text


def test_weights_and_warming():
    rgb, truth = _colours()
    whole = s3im.loss_s3im(rgb, truth, _generator()).item()
    assert look.weighted(0.25)(rgb, truth, _generator()).item() == pytest.approx(0.25 * whole)
    term = look.warmed(trials.squared, 4)
    values = [term(rgb, truth, _generator()).item() for _ in range(6)]
    assert values == pytest.approx([loss_mse(rgb, truth).item() * share for share in (0.25, 0.5, 0.75, 1, 1, 1)])
    near, true = look.white_corner(2000)
    assert float((true == 1).all(-1).float().mean()) == pytest.approx(0.9, abs=0.03)
    assert float((true - near).max()) <= 0.02 + 1e-6


def test_differences_are_paired_and_from_the_first_term():
    scores = [metrics.ViewScores(20.0 + k, 0.5 + k / 10, 1.0 - k / 4, (), "") for k in range(2)]
    (row,) = trials.differences({"clean": {"MSE": scores[:1], "S3IM": scores[1:]}})
    assert row == {"": "clean", "seeds": 1, "MSE": "20.00, 0.500, 1.00", "S3IM": "+1.00, +0.100, -0.25"}
    blind = [dataclasses.replace(score, depth_error=None) for score in scores]
    (row,) = trials.differences({"clean": {"MSE": blind[:1], "S3IM": blind[1:]}})
    assert row == {"": "clean", "seeds": 1, "MSE": "20.00, 0.500", "S3IM": "+1.00, +0.100"}
    base = [dataclasses.replace(blind[0], psnr=v) for v in (20.0, 25.0, 30.0)]  # seeds far apart, changes alike
    new = [dataclasses.replace(blind[0], psnr=v) for v in (21.0, 27.0, 33.0)]
    (row,) = trials.differences({"clean": {"MSE": base, "S3IM": new}})
    assert row == {"": "clean", "seeds": 3, "MSE": "25.00, 0.500", "S3IM": "+2.00 \u00b1 2.48, +0.000 \u00b1 0.000"}
    assert trials.interval([1.0]) == (1.0, float("inf"))


def test_a_refit_is_the_training_itself_watched():
    scene = _scene()
    stage = dvgo_stages.Stage(n_voxels=8**3, n_steps=7, n_rays=64, alpha_init=0.05, lr=0.3, threshold=1e-4)
    frame = scene.frames("test")[:1]
    view, photograph = scene.views(frame), scene.pixels(frame)[0]
    shown, steps, scores = trials.refit(scene, stage, ONCE, view, photograph, seed=3, every=3)
    assert steps == [3, 6, 7] and len(set(scores)) == 3
    with torch.no_grad():
        alone = dvgo.render_view(trials.dense(scene, stage, ONCE, 3), view, scene.near).rgb[0]
    assert torch.equal(shown, alone) and scores[-1] == metrics.psnr(shown[None], photograph[None])


def test_sliders_draw_a_refit_beside_that_of_squared_error():
    scene = _scene()
    stage = dvgo_stages.Stage(n_voxels=8**3, n_steps=10, n_rays=64, alpha_init=0.05, lr=0.3, threshold=1e-4)
    frame = scene.frames("test")[:1]
    draw = refit_dial(scene, stage, scene.views(frame), scene.pixels(frame)[0])
    curves = {weight: {t.name: t for t in draw(weight, 2, 3).data if t.type == "scatter"} for weight in (0.0, 1.0)}
    assert list(curves[0.0]["with S3IM"].y) == list(
        curves[0.0]["squared error alone"].y
    )  # without its weight it is the plain training
    assert list(curves[1.0]["with S3IM"].y) != list(curves[1.0]["squared error alone"].y)
    assert list(curves[1.0]["with S3IM"].x) == [2, 4, 6, 8, 10]


def test_the_small_error_form_meets_one_minus_ssim_where_errors_are_small():
    truth = _colours(320)[1].view(20, 16, 3).float()
    (sizes, whole), (_, small) = look.expansion_curves(truth, s3im.window_weights(4).float(), _generator()).values()
    assert sizes[0] == pytest.approx(1e-3) and small[0] == pytest.approx(whole[0], rel=0.02) and small[-1] > 2 * whole[-1]


def test_rows_leave_out_what_is_not_known():
    one = metrics.ViewScores(psnr=20.0, ssim=0.5, depth_error=None, per_view=(20.0,), protocol="p")
    assert trials.score_rows({"MSE": one}, "host") == [{"host": "MSE", "PSNR (dB)": 20.0, "SSIM": 0.5}]


def test_gains_are_the_mean_changes_of_psnr():
    score = lambda psnr: metrics.ViewScores(psnr, 0.5, None, (psnr,), "p")  # noqa: E731
    found = {"host": {"MSE": [score(20.0), score(22.0)], "S3IM": [score(21.0), score(23.5)]}}
    assert trials.gains(found) == {"host": {"S3IM": 1.25}}
