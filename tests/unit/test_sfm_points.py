"""Points as structure from motion finds them: on texture, near the surface, a few wrong, the same for a seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nsw import scenes
from nsw.errors import InputError
from nsw.scenes.sfm_points import local_contrast, seen_in, sfm_points


@pytest.fixture(scope="module")
def room():
    return scenes.load("room", size=64)


def test_contrast_is_the_standard_deviation_of_the_window():
    images = torch.rand(2, 9, 11, 3, generator=torch.Generator().manual_seed(0))
    window = images[1, 2:7, 4:9].mean(dim=-1)
    assert float(local_contrast(images)[1, 4, 6]) == pytest.approx(float(window.std(correction=0)), rel=1e-5)
    step = torch.zeros(1, 9, 12, 3)
    step[:, :, 6:] = 1
    found = local_contrast(step)[0, 4]
    assert torch.all(found[:4] == 0) and torch.all(found[8:] == 0) and float(found.max()) == pytest.approx(0.24**0.5, rel=1e-5)


def test_without_noise_points_lie_on_textured_surface(room):
    points = sfm_points(room, 500, noise=0.0, outliers=0.0)
    frames = room.splits["train"]
    assert len(points) == 500 and bool(seen_in(room, points.xyz, tolerance=1e-3).any(dim=0).all())
    assert not bool(
        seen_in(
            room, room.cameras[frames].origins[0] + 1.5 * (points.xyz - room.cameras[frames].origins[0]), [int(frames[0])], 0.05
        ).all()
    )
    contrast = local_contrast(room.pixels("train"))
    flat = sfm_points(room, 10**9, flat=0.1, noise=0.0, outliers=0.0)
    assert len(flat) == int(((contrast > 0.1) & (room.depth[frames] > 0)).sum())  # the floor leaves out the rest, and only that


def test_chance_grows_with_contrast(room):
    """Two halves with chequers of unlike contrast: points divide as the contrasts beyond the floor."""
    rows, columns = torch.meshgrid(torch.arange(room.images.shape[1]), torch.arange(room.images.shape[2]), indexing="ij")
    right, high = columns >= 32, (rows + columns) % 2 == 0
    level = torch.where(high, torch.where(right, 190, 140), torch.where(right, 60, 110)).byte()
    images = level[None, :, :, None].expand_as(room.images).contiguous()
    contrast = local_contrast(images[:1].float() / 255)[0]
    weak, strong = (float((contrast[20, x] - 0.02).clamp_min(0)) for x in (10, 50))
    drawn = sfm_points(replace(room, images=images), 4000, outliers=0.0).rgb[:, 0] * 255
    share = float(((drawn > 180) | (drawn < 70)).float().mean())
    assert share == pytest.approx(strong / (weak + strong), abs=0.04) and 0.6 < share < 0.95


def test_noise_and_outliers_are_as_large_as_asked(room):
    clean, noisy = sfm_points(room, 800, noise=0.0, outliers=0.0), sfm_points(room, 800, noise=0.5, outliers=0.1)
    moved = (noisy.xyz - clean.xyz).norm(dim=1)
    focal = float(room.cameras.Ks[0, 0, 0])
    right = moved[:720]
    assert float(right.max()) < 0.5 * room.far / focal * 4.5 and float(right.mean()) > 0
    assert float((moved[720:] > 0.3).float().mean()) > 0.7 and torch.equal(clean.rgb, noisy.rgb)


def test_a_seed_fixes_everything_and_another_draws_anew(room):
    a, b, c = sfm_points(room, 300, 4), sfm_points(room, 300, 4), sfm_points(room, 300, 5)
    assert torch.equal(a.xyz, b.xyz) and torch.equal(a.rgb, b.rgb) and not torch.equal(a.xyz, c.xyz)


def test_no_depth_no_points(room):
    with pytest.raises(InputError, match="no true depth"):
        sfm_points(replace(room, depth=None), 10)
