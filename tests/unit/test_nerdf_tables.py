"""NeRDF's tables, its film of depth and how much depth flickers."""

from __future__ import annotations

import math

import pytest
import torch

from nsw import metrics
from nsw.methods import instant_ngp as ngp
from nsw.methods import nerdf_fit as fitting
from nsw.methods import nerdf_inspect as look
from nsw.methods import nerdf_tables as tables
from nsw.methods.instant_ngp_fit import Plan
from nsw.models.ray_distribution import RayDistribution, RaySettings
from nsw.renderers import whole_rays


@pytest.fixture(scope="module")
def teacher(scene):
    sizes = dict(n_levels=5, n_features=2, log2_entries=12, n_max=48, width=16, n_cells=24)
    return fitting.teacher_of(scene, Plan(60, 4096, update_every=8, decay=0.6), 0, 64, **sizes)


@pytest.fixture(scope="module")
def student(teacher):
    torch.manual_seed(0)
    box = tuple(teacher.aabb.flatten().tolist())
    return RayDistribution(RaySettings(depth=3, width=16, skip=2, n_points=4, levels=3, degree=1, n_terms=6, n_samples=12, box=box))


def test_tables_say_what_was_measured(scene, teacher, student):
    frames = scene.frames("test")[:2]
    cameras, truth = scene.views(frames), scene.pixels(frames)
    shots = {"teacher": ngp.render_view(teacher, cameras, scene.near), "NeRDF": whole_rays.render_view(student, cameras)}
    depth = look.known_depth(shots["teacher"])
    score = tables.scores(shots, truth, depth)
    assert score["teacher"].depth_error == 0 and score["teacher"].to_teacher >= 100 > score["NeRDF"].to_teacher
    assert score["NeRDF"].to_truth == metrics.psnr(shots["NeRDF"].rgb, truth)
    rows = tables.speed_rows({"teacher": teacher, "NeRDF": student}, shots, {"teacher": 0.3, "NeRDF": 0.1}, truth)
    assert [row["NeRDF is faster"] for row in rows] == ["3.0 x", "1.0 x"] and rows[1]["questions a pixel"] == 1
    assert tables.bubbles_of(rows)["NeRDF"][0] == pytest.approx(10) and rows[1]["to teacher"] == score["NeRDF"].to_teacher
    everywhere = {"all": depth >= 0, "surfaces": depth > 0}
    won = tables.winner_rows(depth > 0, everywhere, {name: shot.rgb for name, shot in shots.items()}, truth)
    assert won[0]["share of pixels"] == "100%" and won[0]["teacher nearer"] == won[1]["share of pixels"]
    assert won[1]["teacher nearer"] == "100%" and won[0]["NeRDF, dB"] == pytest.approx(score["NeRDF"].to_truth, abs=1e-4)


def test_depth_is_filmed_and_its_flicker_measured(scene, teacher, student):
    cameras = scene.views("test")[:2]
    strips = look.depth_tour(student, teacher, cameras, scene.near)
    film = look.side_by_side(strips)
    assert film.shape == (2, cameras.height, 2 * cameras.width, 3) and 0 <= float(film.min()) <= float(film.max()) <= 1
    points = look.seen_points(cameras[0], look.known_depth(ngp.render_view(teacher, cameras[:1], scene.near))[0], about=64)
    found = look.flickers(student, teacher, points, look.sway(cameras, 3, 0.1).origins, scene.near)
    assert set(found) == {"teacher", "NeRDF"} and all(math.isfinite(value) and value >= 0 for value in found.values())
