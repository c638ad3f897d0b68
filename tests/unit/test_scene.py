"""`Scene`: splits, compositing over a background, and resizing that averages colour by alpha."""

from __future__ import annotations

import pytest
import torch

from nsw.cameras import orbit
from nsw.errors import InputError
from nsw.scenes import Points, Scene
from nsw.scenes.frames import digest, split_indices


def scene(channels: int = 4, n: int = 4, width: int = 8, height: int = 6, **fields) -> Scene:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, height, width, channels), generator=generator, dtype=torch.uint8)
    splits = {"train": torch.tensor([0, 1]), "val": torch.tensor([], dtype=torch.long), "test": torch.tensor([2, 3])}
    box = torch.tensor([[-1.0] * 3, [1.0] * 3])
    return Scene("made", images, orbit(n, width=width, height=height), splits, box, 2.0, 6.0, **fields)


def test_frames_by_split_name_index_and_extra_split():
    made = scene(extra_splits={"walk": torch.tensor([3])})
    assert len(made) == 4
    assert made.frames("test").tolist() == [2, 3] and made.frames("walk").tolist() == [3] and made.frames([1]).tolist() == [1]
    assert made.frames(torch.tensor(2)).tolist() == [2] and len(made.views("val")) == 0
    assert torch.equal(made.views("test").origins, made.cameras.origins[2:])
    with pytest.raises(InputError, match='no split "dev".*test, train, val, walk'):
        made.frames("dev")


def test_a_scene_says_which_truth_it_lacks(capsys, tmp_path):
    made = scene(depth=torch.ones(4, 6, 8))
    assert made.knows("depth") and not capsys.readouterr().out
    assert not made.knows("depth", "normals", "ids")
    assert "made comes without true normals and ids" in capsys.readouterr().out
    assert not made.is_own and scene(source=tmp_path).is_own
    (tmp_path / "manifest.json").write_text("{}")
    assert not scene(source=tmp_path).is_own


def test_pixels_are_composited_over_the_background():
    made = scene()
    rgb, alpha = made.images[2:, ..., :3].float() / 255, made.images[2:, ..., 3:].float() / 255
    assert torch.allclose(made.pixels("test"), rgb * alpha + 1 - alpha)
    assert torch.allclose(made.pixels("test", 0.0), rgb * alpha)
    red = torch.tensor([1.0, 0.0, 0.0])
    assert torch.allclose(made.pixels("test", red), rgb * alpha + red * (1 - alpha))
    assert torch.allclose(made.alphas("test"), alpha[..., 0])


def test_pixels_without_alpha():
    made = scene(channels=3)
    assert not made.has_alpha and torch.equal(made.pixels([0]), made.images[:1].float() / 255)
    assert made.alphas([0]).shape == (1, 6, 8) and (made.alphas([0]) == 1).all()


def test_scale_is_the_largest_distance_of_a_training_camera_from_their_mean():
    made = scene()
    origins = made.cameras.origins[:2]
    assert made.scale == pytest.approx(1.1 * float((origins[0] - origins[1]).norm() / 2), rel=1e-5)


def test_transparent_pixels_lend_no_colour_when_averaged():
    made = scene(n=4)
    images = torch.zeros(4, 2, 2, 4, dtype=torch.uint8)
    images[:, 0, 0] = torch.tensor([200, 100, 50, 255], dtype=torch.uint8)
    images[:, 1, 1] = torch.tensor([0, 0, 0, 0], dtype=torch.uint8)
    small = Scene("made", images, orbit(4, width=2, height=2), made.splits, made.aabb, 2.0, 6.0).resized(1)
    assert small.images[0, 0, 0].tolist() == [200, 100, 50, 64] and small.cameras.width == 1


def test_averaging_agrees_with_the_composited_full_picture():
    made = scene(width=16, height=12)
    small = made.resized(4)
    assert small.images.shape == (4, 3, 4, 4) and small.cameras.height == 3
    for background in (0.0, 0.5, 1.0):
        full = made.pixels("train", background).reshape(2, 3, 4, 4, 4, 3).mean(dim=(2, 4))
        assert torch.allclose(small.pixels("train", background), full, atol=0.006)


def test_truth_maps_take_the_nearest_pixel_and_masks_only_whole_ones():
    n, height, width = 4, 6, 8
    index = torch.arange(n * height * width).reshape(n, height, width)
    masks = torch.ones(n, height, width, dtype=torch.bool)
    masks[0, 0, 0] = False
    made = scene(depth=index.float(), ids=index.short(), normals=torch.ones(n, height, width, 3), masks=masks)
    small = made.resized(4, 3)
    assert torch.equal(small.depth, made.depth[:, 1::2, 1::2]) and torch.equal(small.ids, made.ids[:, 1::2, 1::2])
    assert small.normals.shape == (4, 3, 4, 3)
    assert not small.masks[0, 0, 0] and small.masks.sum() == small.masks.numel() - 1
    assert made.resized(8) is made


def test_enlarging_keeps_flat_colour():
    made = scene(channels=3)
    flat = Scene("made", torch.full_like(made.images, 77), made.cameras, made.splits, made.aabb, 2.0, 6.0)
    assert (flat.resized(20).images == 77).all() and flat.resized(20).images.shape == (4, 15, 20, 3)


def test_digest_follows_pictures_and_cameras():
    made, other = scene(), scene()
    assert digest(made.images, made.cameras) == digest(other.images, other.cameras)
    other.images[0, 0, 0, 0] ^= 1
    assert digest(made.images, made.cameras) != digest(other.images, other.cameras)
    assert digest(made.images, made.cameras) != digest(made.images, made.cameras.resized(16, 12))


def test_points_have_a_length():
    assert len(Points(torch.zeros(5, 3), torch.zeros(5, 3))) == 5


@pytest.mark.parametrize(
    "given, train, val, test",
    [
        (["train", "train", "test"], [0, 1], [], [2]),
        (["train", "val", "test"], [0], [1], [2]),
        (["train", "train", "val"], [0, 1], [], [2]),
        ([""] * 10, [1, 2, 3, 4, 5, 6, 7, 9], [], [0, 8]),
        (["", ""], [1], [], [0]),
    ],
)
def test_splits_are_disjoint_and_never_empty(given, train, val, test):
    splits, notes = split_indices(given, "here")
    assert {name: index.tolist() for name, index in splits.items()} == {"train": train, "val": val, "test": test}
    assert bool(notes) == ("test" not in given)


def test_no_training_frames():
    with pytest.raises(InputError, match='here: no frame is left for the split "train"'):
        split_indices(["test", "test"], "here")
