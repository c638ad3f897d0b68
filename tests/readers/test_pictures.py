"""Pictures of every kind become 8-bit RGB or RGBA; lenses are straightened to a tenth of a pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scene_files as files
import torch
from PIL import Image

import nsw.scenes
from nsw.cameras import project
from nsw.scenes.images import picture_size, read_mask, read_picture
from nsw.scenes.undistort import brown, brown_lens, fisheye, fisheye_lens, straight_map, straighten


def test_sixteen_bit_grey_is_rounded_to_eight(tmp_path):
    values = np.array([[0, 128, 129, 257, 32767, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.shape == (1, 6, 3) and picture.dtype == np.uint8
    assert picture[0, :, 0].tolist() == [0, 0, 1, 1, 127, 255]


@pytest.mark.parametrize("mode, channels", [("L", 3), ("LA", 4), ("P", 3), ("1", 3), ("RGBA", 4), ("RGB", 3)])
def test_modes_of_png(tmp_path, mode, channels):
    colour = Image.new("RGBA", (4, 2), (255, 255, 255, 255))
    (colour.convert("RGB") if mode == "P" else colour).convert(mode).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.shape == (2, 4, channels) and (picture == 255).all()


def test_transparent_palette_keeps_its_alpha(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=1)
    assert read_picture(tmp_path / "a.png")[0].tolist() == [[255, 0, 0, 255], [0, 255, 0, 0]]


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert np.abs(read_picture(tmp_path / "a.jpg").mean(axis=(0, 1)) - [255, 0, 0]).max() < 6


def test_tiff_and_lossless_webp(tmp_path):
    Image.new("RGB", (8, 8), (10, 200, 30)).save(tmp_path / "a.tif")
    Image.new("RGB", (8, 8), (10, 200, 30)).save(tmp_path / "a.webp", lossless=True)
    for name in ("a.tif", "a.webp"):
        assert (read_picture(tmp_path / name) == [10, 200, 30]).all()


def test_exif_orientation_turns_photos_only_when_asked(tmp_path):
    stored = np.zeros((6, 8, 3), np.uint8)
    stored[0, 0] = 255  # becomes the upper right corner when turned clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert picture_size(tmp_path / "a.png") == (8, 6, True)
    assert read_picture(tmp_path / "a.png").shape == (6, 8, 3)
    turned = read_picture(tmp_path / "a.png", upright=True)
    assert turned.shape == (8, 6, 3) and turned[0, 5].tolist() == [255, 255, 255]


def test_posed_pictures_are_turned_when_only_that_fits_their_camera(tmp_path):
    files.write_transforms(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (tmp_path / "images").glob("*.png"):
        with Image.open(path) as image:
            turned = image.transpose(Image.Transpose.ROTATE_90)  # stored lying; shown as the camera says
        turned.save(path, exif=exif)
    scene = nsw.scenes.load(tmp_path)
    assert (scene.images.numpy() == np.stack(files.pictures(files.views()))[..., :3]).all()


def test_masks_are_dark_where_pixels_must_not_be_used(tmp_path):
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[False, False, True, True]]


def test_grey_sixteen_bit_and_mixed_alpha_pictures_make_one_scene(tmp_path):
    files.write_blender(tmp_path)
    Image.open(tmp_path / "train" / "r_0.png").convert("L").save(tmp_path / "train" / "r_0.png")
    Image.fromarray(np.full((files.HEIGHT, files.WIDTH), 65535, np.uint16)).save(tmp_path / "train" / "r_1.png")
    scene = nsw.scenes.load(tmp_path)
    assert scene.images.shape[-1] == 4
    assert (scene.images[1] == 255).all() and (scene.images[0, ..., 3] == 255).all()
    assert (scene.images[0, ..., 0] == scene.images[0, ..., 1]).all() and scene.images[2, ..., 3].min() == 0


def blob_picture(lens, bent_points: np.ndarray) -> np.ndarray:
    """Return a picture with a soft round spot at each image position."""
    x, y = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    out = np.zeros((lens.height, lens.width))
    for u, v in bent_points:
        out += np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 2.5**2))
    return np.repeat((out * 255).clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=2)


def spot_positions(picture: np.ndarray, near: np.ndarray, radius: int = 12) -> np.ndarray:
    """Return the centroid of the picture around each expected position."""
    x, y = np.meshgrid(np.arange(picture.shape[1]) + 0.5, np.arange(picture.shape[0]) + 0.5)
    found = []
    for u, v in near:
        weight = picture[..., 0] * ((x - u) ** 2 + (y - v) ** 2 < radius**2).astype(float)
        found.append([(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()])
    return np.array(found)


LENSES = {
    "barrel": (brown_lens, brown, dict(k1=-0.25, k2=0.08, p1=0.002, p2=-0.003)),
    "pincushion": (brown_lens, brown, dict(k1=0.15, k2=0.02, k3=0.01)),
    "fisheye": (fisheye_lens, fisheye, dict(k1=0.03, k2=-0.01, k3=0.002, k4=-0.001)),
}


@pytest.mark.parametrize("kind", LENSES)
def test_known_points_are_found_where_a_pinhole_would_see_them(kind):
    make, bend, coefficients = LENSES[kind]
    lens = make(210.0, 205.0, 161.0, 118.0, 320, 240, **coefficients)
    columns, rows = np.meshgrid(np.linspace(30, 290, 6), np.linspace(30, 210, 5))
    ideal = np.stack([columns.ravel(), rows.ravel()], axis=1)
    bent = bend((ideal - [161.0, 118.0]) / [210.0, 205.0], **coefficients) * [210.0, 205.0] + [161.0, 118.0]
    keep = ((bent > 8) & (bent < [312, 232])).all(axis=1)
    straight, valid = straighten(blob_picture(lens, bent[keep]), lens)
    assert valid[ideal[keep][:, 1].astype(int), ideal[keep][:, 0].astype(int)].all() and keep.sum() >= 15
    error = np.abs(spot_positions(straight, ideal[keep]) - ideal[keep])
    assert error.max() < 0.1
    assert np.abs(bent - ideal).max() > 3  # the distortion was worth undoing


def test_models_that_fold_back_are_cut_off():
    lens = brown_lens(100.0, 100.0, 160.0, 120.0, 320, 240, k1=-0.4)  # turns round at r = 0.91, 91 pixels from the centre
    _, valid = straight_map(lens)
    y, x = np.mgrid[:240, :320]
    radius = np.hypot(x + 0.5 - 160, y + 0.5 - 120)
    assert valid[radius < 85].all() and not valid[radius > 97].any()


def test_lens_models_agree_with_colmap():
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap (nsw[sfm]) is not installed")
    xy = np.random.default_rng(0).uniform(-0.6, 0.6, (50, 2))
    points = np.column_stack([xy, np.ones(50)])
    for model, bend, names in (("OPENCV", brown, ("k1", "k2", "p1", "p2")), ("OPENCV_FISHEYE", fisheye, ("k1", "k2", "k3", "k4"))):
        coefficients = dict(zip(names, (0.1, -0.05, 0.003, 0.002), strict=True))
        camera = pycolmap.Camera(model=model, width=100, height=80, params=[90, 95, 51, 39, *coefficients.values()])
        ours = bend(xy, **coefficients) * [90, 95] + [51, 39]
        assert np.allclose(ours, camera.img_from_cam(points), atol=1e-9)


def test_distorted_transforms_scene_is_straightened_and_masked(tmp_path):
    cameras = files.views(width=96, height=72)
    files.write_transforms(tmp_path, cameras, k1=-0.3, k2=0.1)
    scene = nsw.scenes.load(tmp_path)
    assert torch.allclose(scene.cameras.Ks, cameras.Ks, atol=1e-3)
    assert scene.masks is None or scene.masks[:, 36, 48].all()
    with_pincushion = tmp_path / "b"
    files.write_transforms(with_pincushion, cameras, k1=0.3)
    masks = nsw.scenes.load(with_pincushion).masks
    assert not masks[:, 0, 0].any() and masks[:, 36, 48].all() and 0.5 < masks.float().mean() < 0.99


@pytest.mark.parametrize(
    "model, extra",
    [("SIMPLE_RADIAL", [0.1]), ("RADIAL", [0.1, 0.02]), ("OPENCV", [0.1, 0.02, 0.001, 0.002]), ("OPENCV_FISHEYE", [0.02, 0, 0, 0]),
     ("FULL_OPENCV", [0.1, 0.02, 0.001, 0.002, 0.01, 0.0, 0.0, 0.0]), ("FOV", [0.5]), ("SIMPLE_PINHOLE", []),
     ("THIN_PRISM_FISHEYE", [0.02, 0, 0.001, 0.001, 0, 0, 0, 0]), ("RADIAL_FISHEYE", [0.02, 0.0])],
)  # fmt: skip
def test_colmap_lens_models_are_straightened(tmp_path, model, extra):
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap (nsw[sfm]) is not installed")
    cameras = files.views(3, width=160, height=120)
    f, c = float(cameras.Ks[0, 0, 0]), [80.0, 60.0]
    single = model.startswith(("SIMPLE", "RADIAL"))
    params = [f, *c, *extra] if single else [f, f, *c, *extra]
    files.write_colmap(tmp_path, cameras, model=model, params=params)
    camera = pycolmap.Camera(model=model, width=160, height=120, params=params)
    axis = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.7, 0.0, 0.0]])
    marked = []
    for i in range(3):
        R, t = cameras.cam_from_world[i, :3, :3].double(), cameras.cam_from_world[i, :3, 3].double()
        bent = np.asarray(camera.img_from_cam((axis.double() @ R.T + t).numpy()))
        lens = brown_lens(f, f, *c, 160, 120)
        Image.fromarray(blob_picture(lens, bent)).save(tmp_path / "images" / f"view_{i:02d}.png")
        marked.append(bent)
    scene = nsw.scenes.load(tmp_path)
    ideal, _ = project(cameras, axis)  # the world is normalised on loading, the pictures' geometry is not
    for i in range(3):
        found = spot_positions(scene.images[i].numpy(), ideal[i].numpy(), radius=9)
        apart = np.linalg.norm(ideal[i][:, None] - ideal[i][None], axis=-1) + 99 * np.eye(4)
        alone = (apart.min(axis=1) > 18) & np.asarray((ideal[i] > 12).all(-1) & (ideal[i] < torch.tensor([148.0, 108.0])).all(-1))
        assert alone.sum() >= 2
        assert np.abs(found - ideal[i].numpy())[alone].max() < 0.1
    assert torch.allclose(scene.cameras.Ks[0], cameras.Ks[0], atol=1e-3)
    assert math.isfinite(scene.near)
