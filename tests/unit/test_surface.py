"""Meshes from distances and depth maps, their pictures, files and scores, against shapes with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh

from nsw import export, metrics, scenes, widgets
from nsw.cameras import camera_rays, orbit, project
from nsw.errors import InputError
from nsw.models.meshes import discs, field_mesh, grid_points, level_set, painted, without_crumbs
from nsw.renderers import meshes, tsdf, tsdf_unbounded
from nsw.scenes.surface import surface_points

BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
RADIUS = 0.613  # no point of the grids lies on it


def ball_depth(cameras, centre=(0.0, 0.0, 0.0)):
    """Exact camera depth of a ball, 0 beside it."""
    rays = camera_rays(cameras)
    o, d = rays.origins - torch.tensor(centre), rays.directions
    b = (o * d).sum(-1)
    inside = b**2 - (o.square().sum(-1) - RADIUS**2)
    t = -b - inside.clamp_min(0).sqrt()
    return torch.where(inside > 0, t * rays.z_per_t, 0.0).view(len(cameras), cameras.height, cameras.width)


def ball_truth(n=20_000):
    points = torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    return RADIUS * points, points


def all_round(n=10, size=96):
    parts = [orbit(n, 3.0, elevation, width=size, height=size) for elevation in (-40.0, 40.0)]
    joined = torch.cat([p.cam_from_world for p in parts]), torch.cat([p.Ks for p in parts])
    return type(parts[0])(*joined, size, size)


@pytest.fixture(scope="module")
def ball():
    cameras = all_round()
    depth = ball_depth(cameras)
    return tsdf.fused_mesh(depth, cameras, BOX, 0.05, empty=depth == 0)


def test_level_set_of_a_ball_is_closed_faces_outwards_and_has_its_volume():
    mesh = field_mesh(lambda x: x.norm(dim=-1) - RADIUS, BOX, 0.05)
    assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.01)
    assert ((mesh.face_normals * mesh.triangles_center).sum(-1) > 0).all()
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - RADIUS).max() < 2e-3


def test_level_set_leaves_out_every_cube_with_an_unknown_corner():
    points, _ = grid_points(BOX, 0.1)
    known = points[..., 0] < 0.25  # the last known points are at 0.2
    mesh = level_set(points[..., 2] - 0.03, BOX, 0.0, known)
    assert mesh.bounds[0].tolist() == pytest.approx([-1, -1, 0.03], abs=1e-6)
    assert mesh.bounds[1].tolist() == pytest.approx([0.2, 1, 0.03], abs=1e-6)
    assert (mesh.face_normals[:, 2] > 0.99).all() and len(mesh.faces) == 2 * 12 * 20
    assert len(level_set(points[..., 2] - 5, BOX).faces) == 0 and len(level_set(points[..., 2], BOX, 0.0, known & False).faces) == 0


def test_fusion_is_the_distance_along_the_ray_on_its_axis():
    cameras = orbit(1, 3.0, 0.0, width=65, height=65)  # looks along -x; the middle pixel's ray is the axis
    depth = torch.full((1, 65, 65), 2.8)
    values, count = tsdf.fuse(depth, cameras, BOX, 0.1, truncation=0.4)
    x, axis = torch.linspace(-1, 1, 21), values[:, 10, 10]
    expected = ((2.8 - (3 - x)) / 0.4).clamp(max=1)
    spoke = expected > -1
    assert torch.allclose(axis[spoke], expected[spoke], atol=1e-5) and torch.equal(count[:, 10, 10] > 0, spoke)
    assert (axis[~spoke] == 1).all()


def test_half_a_pixel_is_not_lost():
    """A slanted plane, seen once: bilinear depth at a projected point is exact where 1/z would bend only in second order."""
    depth = torch.arange(8.0)[None, :].expand(6, 8) + 1  # value = column + 1 at pixel centre column + 0.5
    pixels = torch.tensor([[3.5, 2.5], [4.0, 3.0], [0.2, 2.5], [7.9, 5.9], [8.2, 1.0], [-0.1, 1.0]])
    value, ok = tsdf.sample(depth, depth > 0, pixels, edge=10.0)
    assert value[:2].tolist() == [4.0, 4.5] and ok.tolist() == [True] * 4 + [False] * 2
    step = torch.where(torch.arange(8) < 4, 1.0, 9.0).expand(6, 8)  # across an edge the nearest pixel counts, no mean of both
    value, _ = tsdf.sample(step, step > 0, torch.tensor([[3.9, 2.5], [4.1, 2.5]]), edge=0.5)
    assert value.tolist() == [1.0, 9.0]


def test_a_fused_ball_is_the_ball(ball):
    points, normals = ball_truth()
    scores = metrics.surface_scores(ball, points, normals)
    assert scores.chamfer < 0.012 and scores.normal_error < 13.0
    assert scores.chamfer == pytest.approx((scores.accuracy + scores.completeness) / 2)
    assert ball.volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.035)


def test_pixels_that_see_nothing_clear_their_rays():
    camera = orbit(1, 3.0, 0.0, width=64, height=64)
    depth = ball_depth(camera)
    (plain, few), (cut, many) = (tsdf.fuse(depth, camera, BOX, 0.08, empty=empty) for empty in (None, depth == 0))
    points, _ = grid_points(BOX, 0.08)
    pixels, _ = project(camera, points.reshape(-1, 3))
    column, row = (pixels[0].view(*points.shape[:3], 2).floor().clamp(0, 63).long()).unbind(-1)
    beside = (depth[0, row, column] == 0) & ((pixels[0] - 32).abs().amax(-1) < 31.5).view(points.shape[:3])
    assert beside.any() and (few[beside] == 0).all() and (many[beside] == 1).all() and (cut[beside] == 1).all()
    assert torch.equal(plain[~beside], cut[~beside])


def test_a_ball_and_a_far_wall_are_fused_without_a_box():
    cameras = all_round(n=8, size=64)
    near = ball_depth(cameras)
    rays = camera_rays(cameras)
    down = -rays.directions[:, 2]
    floor = torch.where(down > 1e-3, (rays.origins[:, 2] + 6.0) / down.clamp_min(1e-3) * rays.z_per_t, 0.0).view_as(near)
    depth = torch.where(near > 0, near, floor)
    mesh = tsdf_unbounded.unbounded_mesh(depth, cameras, torch.zeros(3), 1.0, 0.07, empty=depth == 0, least_faces=20)
    radius, low = np.linalg.norm(mesh.vertices, axis=1), mesh.vertices[:, 2] < -4
    assert np.abs(radius[radius < 1.5] - RADIUS).mean() < 0.03 and (radius < 1.5).sum() > 500
    assert low.sum() > 100 and np.abs(mesh.vertices[low, 2] + 6).mean() < 0.6  # of a wall six radii away
    with pytest.raises(InputError, match="radius above 0"):
        tsdf_unbounded.unbounded_mesh(depth, cameras, torch.zeros(3), 0.0, 0.1)


def test_fusion_refuses_maps_that_do_not_belong_to_the_cameras():
    with pytest.raises(InputError, match="one depth map a camera"):
        tsdf.fuse(torch.ones(2, 8, 8), orbit(3, width=8, height=8), BOX, 0.2)
    with pytest.raises(InputError, match="spacing above 0"):
        grid_points(BOX, 0.0)


def test_crumbs_go_and_the_largest_pieces_stay():
    parts = [trimesh.creation.icosphere(subdivisions=n) for n in (3, 2, 0)]  # 1280, 320 and 20 faces
    mesh = trimesh.util.concatenate([part.apply_translation([3.0 * i, 0, 0]) for i, part in enumerate(parts)])
    assert len(without_crumbs(mesh).faces) == 1600 and len(without_crumbs(mesh, keep=1).faces) == 1280
    assert len(without_crumbs(trimesh.Trimesh()).faces) == 0


def test_scores_of_a_shifted_plane_are_the_shift():
    flat = torch.cartesian_prod(torch.linspace(-1, 1, 201), torch.linspace(-1, 1, 201))
    points = torch.cat([flat, torch.zeros(len(flat), 1)], dim=1)
    normals = torch.tensor([0.0, 0, 1]).expand(len(points), 3)
    corners = [[-1, -1, 0.05], [1, -1, 0.05], [1, 1, 0.05], [-1, 1, 0.05]]
    scores = metrics.surface_scores(trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]]), points, normals)
    assert scores.accuracy == pytest.approx(0.05, rel=0.02) and scores.completeness == pytest.approx(0.05, rel=0.02)
    assert scores.normal_error == pytest.approx(0.0, abs=1e-4)
    half = trimesh.Trimesh(corners, [[0, 1, 2]])  # half of the plane is missing: a hole is seen from the truth only
    halved = metrics.surface_scores(half, points, normals)
    assert halved.accuracy == pytest.approx(0.05, rel=0.02) and halved.completeness > 4 * scores.completeness
    with pytest.raises(InputError, match="no faces"):
        metrics.surface_scores(trimesh.Trimesh(), points, normals)


def test_a_mesh_is_drawn_where_the_ball_is(ball):
    cameras = orbit(2, 3.0, 20.0, width=80, height=80)
    true, render = ball_depth(cameras), meshes.render_view(ball, cameras)
    both = (true > 0) & (render.depth > 0)
    assert float(((true > 0) ^ (render.depth > 0)).float().mean()) < 0.01
    assert metrics.depth_error(render.depth, true, both) < 0.015
    rays = camera_rays(cameras)
    points = (rays.origins + rays.directions * (true.flatten() / rays.z_per_t)[:, None]).view(*true.shape, 3)
    expected = torch.where(both[..., None], points / RADIUS, 0.0)
    assert metrics.normal_error_degrees(render.extras["normals"], expected) < 13
    assert (render.rgb[render.alpha == 0] == 1).all()


def test_the_nearer_of_two_triangles_wins_and_none_behind_the_camera():
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    camera = orbit(1, 3.0, 0.0, width=32, height=32)  # at x = 3, looks along -x
    layers = [np.column_stack([np.full(4, x), square * size]) for x, size in ((0.0, 1.0), (0.5, 0.3), (4.0, 5.0))]
    faces = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * i for i in range(3)])
    rgb = torch.tensor([0.2, 0.2, 0.8, 0.8, 0.5, 0.5])[:, None].expand(6, 3)
    render = meshes.render_view(trimesh.Trimesh(np.concatenate(layers), faces, process=False), camera, rgb=rgb)
    assert render.depth[0, 16, 16] == pytest.approx(2.5, abs=1e-5) and render.depth[0, 16, 6] == pytest.approx(3.0, abs=1e-5)
    ratio = render.rgb[0, 16, 16, 0] / render.rgb[0, 16, 6, 0]
    assert ratio == pytest.approx(4.0, rel=1e-5)


def test_discs_are_flat_and_as_wide_as_asked():
    turn = torch.linalg.qr(torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(1)))[0]
    mesh = discs(torch.tensor([[1.0, 2, 3]]), turn, torch.tensor([[0.5, 0.2, 9.0]]), radius=2.0, sides=40)
    assert mesh.area == pytest.approx(math.pi * 1.0 * 0.4, rel=0.01)
    assert np.abs((mesh.vertices - [1, 2, 3]) @ turn[0, :, 2].numpy()).max() < 1e-6


def test_truth_points_of_a_bundled_scene():
    scene = scenes.load("toybox", size=40)
    points, normals = surface_points(scene, 0.05)
    assert bool(((points >= scene.aabb[0] - 1e-3) & (points <= scene.aabb[1] + 1e-3)).all())
    assert torch.allclose(normals.norm(dim=-1), torch.ones(len(normals)), atol=1e-3)
    _, counts = torch.unique(((points + 5.0) / 0.05).long(), dim=0, return_counts=True)
    assert counts.amax() <= 8 and len(points) < 0.2 * int((scene.depth > 0).sum())  # another grid's cell touches eight of ours
    board = (points[:, 2] + 0.48).abs() < 0.01
    assert float((normals[board, 2] > 0.99).float().mean()) > 0.5
    assert len(surface_points(scene, 0.05, "test")[0]) < len(points)


@pytest.mark.parametrize("kind", ["ply", "obj", "stl", "glb"])
def test_files_are_read_back_by_another_reader(ball, tmp_path, kind):
    blue = painted(ball, torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]))
    path = export.save_mesh(blue, tmp_path / f"ball.{kind}")
    read = trimesh.load(path, force="mesh", process=False)
    expected = ball.vertices[:, [0, 2, 1]] * [1, 1, -1] if kind == "glb" else ball.vertices
    assert len(read.faces) == len(ball.faces)
    assert np.allclose(np.sort(read.bounds, 0), [expected.min(0), expected.max(0)], atol=1e-4)
    if kind in ("ply", "glb"):
        assert (np.asarray(read.visual.vertex_colors)[:, :3] == [0, 0, 255]).all()


def test_bad_mesh_files_are_refused(ball, tmp_path):
    with pytest.raises(InputError, match="written as"):
        export.save_mesh(ball, tmp_path / "ball.txt")
    with pytest.raises(InputError, match="no faces"):
        export.save_mesh(trimesh.Trimesh(), tmp_path / "nothing.ply")


def test_mesh_figure_and_its_still(ball):
    import plotly.graph_objects as go

    from nsw.widgets.charts import figure_bundle

    error = metrics.distances_to(torch.as_tensor(ball.vertices).float(), ball_truth()[0])
    chart = widgets.mesh_figure({"fused": ball, "truth": ball}, colour={"fused": error}, unit="distance")
    solid = [trace for trace in chart.data if isinstance(trace, go.Mesh3d)]
    assert [trace.name for trace in solid] == ["fused", "truth"] and solid[0].showscale and solid[1].color is not None
    assert min(solid[1].x) > max(solid[0].x)  # side by side
    still = figure_bundle(chart, "two balls")["image/svg+xml"]
    assert "<image" in still and "live figure" not in still and ">truth<" in still
    with pytest.raises(InputError, match="without faces"):
        widgets.mesh_figure({"nothing": trimesh.Trimesh()})


def test_meshes_stand_in_the_colours_of_their_errors_beside_the_truth(ball, monkeypatch):
    seen = {}
    monkeypatch.setattr("nsw.widgets.charts.show_figure", lambda chart, alt, caption: seen.update(chart=chart, caption=caption))
    widgets.error_meshes({"fused": ball}, ball, ball_truth()[0], 0.05)
    fused, truth = (trace for trace in seen["chart"].data if trace.type == "mesh3d")
    assert max(fused.intensity) < 0.05 == fused.cmax and truth.intensity is None and "0.05 units" in seen["caption"]


def test_the_still_paints_the_nearer_face_over_the_farther():
    from nsw.widgets.mesh_still import painting

    square = np.array([[2.0, 2], [18, 2], [18, 18], [2, 18]])
    traces = [
        (dict(i=[0, 0], j=[1, 2], k=[2, 3], color=colour), square, np.full(4, distance))
        for colour, distance in (("#ff0000", 1.0), ("#0000ff", 2.0))
    ]
    picture = painting(traces, 20, 20)
    assert picture[20, 20, 0] > 150 and picture[20, 20, 2] == 0 and (picture[0, 0] == 255).all()
