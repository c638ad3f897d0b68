"""A plain backdrop is found along the borders of opaque photographs, and everything is trained and drawn before it."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import scene_files as files
import torch
from PIL import Image

from nsw import metrics, scenes
from nsw.cameras import camera_rays
from nsw.losses import loss_mse
from nsw.methods import dvgo, dvgo_stages, instant_ngp, instant_ngp_fit
from nsw.methods import gaussian_splatting as gs
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.models.gaussians import Gaussians
from nsw.models.plenoxel_grid import PlenoxelGrid, PlenoxelGridSettings
from nsw.renderers import render_view
from nsw.renderers.volume import render_rays
from nsw.scenes.backdrop import plain_backdrop

N, H, W = 10, 48, 64


def photographs(level: float | np.ndarray, noise: float = 0.0, n: int = N) -> torch.Tensor:
    """Return n photographs [n, 48, 64, 3] of a striped disc before a level of 255, or before a picture of levels."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:H, :W]
    card = np.broadcast_to(np.asarray(level, float), (n, H, W))[..., None].repeat(3, -1).copy()
    for i in range(n):
        disc = (x - 30 - i) ** 2 + (y - 24) ** 2 < 14**2
        card[i][disc] = np.where((x // 3 % 2 == 0)[disc][:, None], (200, 40, 30), (20, 60, 200))
    return torch.from_numpy((card + noise * rng.standard_normal(card.shape)).round().clip(0, 255).astype(np.uint8))


def through_jpeg(images: torch.Tensor, quality: int = 85) -> torch.Tensor:
    out = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "JPEG", quality=quality)
        out.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(out)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_one_colour_along_all_borders_is_the_backdrop(level):
    assert (plain_backdrop(photographs(level), range(N)) * 255).tolist() == [level] * 3


@pytest.mark.parametrize("level", [18, 128, 250])
def test_a_jpeg_of_a_noisy_card_is_still_plain(level):
    found = plain_backdrop(through_jpeg(photographs(level, noise=1.5)), range(N))
    assert found is not None and bool(((found * 255 - level).abs() <= 1).all())


def test_an_object_may_touch_the_border_and_one_view_may_be_odd():
    images = photographs(255)
    images[:, 30:, 20:46] = 90  # 26 of the 64 pixels at the bottom
    images[3] = 17
    assert plain_backdrop(images, range(N)) is not None
    images[4] = 17
    assert plain_backdrop(images, range(N)) is None


def vignette() -> np.ndarray:
    y, x = np.mgrid[:H, :W]
    return 200 - 60 * ((x / W - 0.5) ** 2 + (y / H - 0.5) ** 2) / 0.5


def sky_over_ground() -> np.ndarray:
    return np.where(np.arange(H) < 40, 230.0, 90.0)[:, None]


def four_lights() -> np.ndarray:
    return np.resize([255.0, 230.0, 205.0, 180.0], N)[:, None, None]


@pytest.mark.parametrize("level", [np.linspace(150, 220, H)[:, None], vignette(), sky_over_ground(), four_lights()])
def test_gradients_vignettes_skies_and_changing_light_are_none(level):
    assert plain_backdrop(photographs(level), range(N)) is None


def test_one_view_alone_says_nothing():
    assert plain_backdrop(photographs(255), [2]) is None and plain_backdrop(photographs(255), [2, 5]) is not None


def test_what_a_mask_leaves_out_is_no_border():
    images, masks = photographs(200), torch.ones(N, H, W, dtype=torch.bool)
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    bent = ((x - 31.5) / 34) ** 2 + ((y - 23.5) / 26) ** 2 > 1.0  # what a straightened lens leaves black
    images[:, bent] = 0
    images[:, :2], masks[:, :2], masks[:, bent] = 0, False, False
    assert plain_backdrop(images, range(N)) is None
    assert (plain_backdrop(images, range(N), masks) * 255).tolist() == [200.0] * 3
    masks[:7] = False  # views of which nothing may be used
    assert plain_backdrop(images, range(N), masks) is not None
    only_the_object = (images != 200).any(-1) & masks
    assert plain_backdrop(images, range(N), only_the_object) is None and plain_backdrop(images, range(N), masks & False) is None


def write_ball(folder, level: int, alpha: bool = False):
    """Write a coloured ball in NeRF-synthetic layout: over a level of 255, or with alpha."""
    cameras = files.views(15)
    poses = files.opengl_poses(cameras)
    for split, frames in (("train", range(12)), ("test", range(12, 15))):
        (folder / split).mkdir(parents=True)
        for i in frames:
            rgba = files.pictures(cameras[i])[0]
            opaque = np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(level))
            Image.fromarray(rgba if alpha else opaque).save(folder / split / f"{i}.png")
        listed = [{"file_path": f"{split}/{i}", "transform_matrix": poses[i]} for i in frames]
        about = {"camera_angle_x": 2 * np.arctan(cameras.width / 2 / float(cameras.Ks[0, 0, 0])), "frames": listed}
        (folder / f"transforms_{split}.json").write_text(json.dumps(about))
    return scenes.load(folder)


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """The ball over mid grey, its box known."""
    made = write_ball(tmp_path_factory.mktemp("grey"), 128)
    return replace(made, aabb=torch.tensor([[-1.2] * 3, [1.2] * 3]))


def test_a_reader_finds_it_says_so_and_leaves_alpha_alone(ball, tmp_path, capsys):
    from nsw.runs.scene_commands import describe_scene

    grey = torch.full((3,), 128 / 255)
    assert ball.background == "plain" and torch.equal(ball.behind, grey) and "#808080" in ball.notes[-1]
    assert torch.equal(ball.resized(16).behind, grey) and torch.equal(ball.views("test")[0].to("cpu").background, grey)
    assert torch.equal(camera_rays(ball.views("train"))[:5].background, grey)
    describe_scene(str(ball.source))
    assert "plain backdrop" in capsys.readouterr().out and "plain background" in metrics.describe(ball)
    clear = write_ball(tmp_path / "clear", 0, alpha=True)
    assert (clear.background, clear.behind, clear.notes) == ("white", 1.0, ())
    pixels = pixels_of(clear)
    assert torch.equal(instant_ngp.random_backgrounds(pixels, seeded()), torch.rand(len(pixels), 3, generator=seeded()))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pixels_of(scene):
    return instant_ngp.training_pixels(scene, scene.aabb)


def test_every_renderer_draws_nothing_as_the_backdrop(ball):
    box, away = tuple(ball.aabb.flatten().tolist()), torch.full((1, 3), 50.0)
    splat = Gaussians.from_values(away, torch.full((1, 3), 0.01), torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([0.5]), away * 0)
    models = [instant_ngp_fit.new_model(ball, 16), DenseGrid(DenseGridSettings(box, n_voxels=512)), splat]
    models.append(PlenoxelGrid(PlenoxelGridSettings(box, n_voxels=512)))
    models[0].occupancy.binaries.zero_()
    with torch.no_grad():
        for model in models:
            corner = render_view(model, ball.views("test")[0]).rgb[0, 0, 0]
            assert torch.allclose(corner, ball.behind, atol=1e-3), type(model).__name__
    bank, (camera, _, colour) = dvgo_stages.ray_bank(ball), gs.training_view(ball, 0)
    assert torch.equal(bank.rays.background, ball.behind) and torch.equal(colour, ball.behind)
    assert torch.equal(render_rays(models[0], camera_rays(camera)[:1], n_samples=4).rgb[0], ball.behind)


def test_a_transparent_grid_feels_a_card_of_middle_grey(ball):
    def pull(grid) -> float:
        rays, colours = dvgo_stages.ray_bank(ball).draw(512, seeded())
        loss_mse(dvgo.render(grid, rays, ball.near, threshold=1e-7).rgb, colours).backward()
        return float(grid.raw_density.grad.norm())

    ours, grey = (dvgo_stages.new_coarse(ball, dvgo_stages.Stage(12**3)) for _ in range(2))
    grey.features.data.zero_()  # voxels begin in the card's own colour: where they are changes no pixel
    assert pull(ours) > 10 * pull(grey) > 0
    bright = replace(ball, cameras=replace(ball.cameras, background=torch.ones(3)))
    assert not dvgo_stages.new_coarse(bright, dvgo_stages.Stage(12**3)).features.any()


def test_a_hash_grid_leaves_the_air_before_a_backdrop_empty(ball):
    plan, found = instant_ngp_fit.Plan(n_steps=120, n_samples=4096), {}
    guessed = pixels_of(ball)
    told = replace(guessed, rays=replace(guessed.rays, background=1.0))  # as if no backdrop were known
    for name, pixels in (("known", guessed), ("unknown", told)):
        torch.manual_seed(0)
        model = instant_ngp_fit.new_model(ball, 32, n_levels=4, log2_entries=12, n_max=32, width=16)
        instant_ngp_fit.fit(model, pixels, plan, seeded(), ball.near)
        drawn = instant_ngp.render_view(model, ball.views("test"), ball.near)
        air = (ball.images[ball.frames("test")] == 128).all(-1)
        found[name] = metrics.psnr(drawn.rgb, ball.pixels("test")), float(drawn.alpha[air].mean())
    assert found["known"][0] > found["unknown"][0] + 3.0, found
    assert found["known"][1] < found["unknown"][1] / 3, found
