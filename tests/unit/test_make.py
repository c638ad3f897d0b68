"""Tiny path-traced scenes: the truth maps agree with one another and with the cameras; a stopped rendering continues."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from nsw import scenes
from nsw.cameras import Cameras, camera_rays, project
from nsw.errors import InputError
from nsw.scenes.exposures import Exposure, circle_of_confusion, poses
from nsw.scenes.make import SCENES, make_scene, making, shapes, store, textures
from nsw.scenes.make.denoise import denoised
from nsw.scenes.make.describe import Description, Material, Things, looking

mitsuba = pytest.importorskip("mitsuba", reason="Mitsuba is not installed (extra synth)")
TINY = dict(size=32, spp=4, views=5, progress=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "toybox"
    make_scene("toybox", folder, **TINY)
    return folder


def test_depth_of_one_view_agrees_with_another(tiny):
    scene = scenes.load(tiny)
    a, b = 0, 1
    rays, depth = camera_rays(scene.cameras[a]), scene.depth[a].flatten()
    hit = depth > 0
    points = (rays.origins + rays.directions * (depth / rays.z_per_t)[:, None])[hit]
    pixels, z = project(scene.cameras[b], points)
    column, row = pixels[0].floor().long().clamp(0, 31).unbind(-1)
    seen = scene.depth[b][row, column]
    difference = z[0] - seen
    # A surface of A is either what B sees at that pixel or behind it, never clearly in front; pixels on rims see past it.
    assert (difference[seen > 0] > -0.3).float().mean() > 0.97
    # Where both see the board's upper side, A's point lies in the plane that B's depth and normal give there.
    rays = camera_rays(scene.cameras[b])
    there = (rays.origins + rays.directions * (scene.depth[b].flatten() / rays.z_per_t)[:, None]).reshape(32, 32, 3)[row, column]
    normal = scene.normals[b][row, column]
    upper = (scene.ids[a].flatten()[hit] == 0) & (scene.ids[b][row, column] == 0) & (normal[:, 2] > 0.99)
    upper &= scene.normals[a].reshape(-1, 3)[hit][:, 2] > 0.99
    assert upper.sum() > 20
    assert ((points - there) * normal).sum(-1)[upper].abs().max() < 0.005


def test_normals_are_unit_and_face_the_camera(tiny):
    scene = scenes.load(tiny)
    hit = scene.ids >= 0
    assert torch.allclose(scene.normals[hit].norm(dim=-1), torch.ones(int(hit.sum())), atol=1e-5)
    directions = camera_rays(scene.cameras).directions.reshape(*scene.ids.shape, 3)
    facing = (scene.normals * directions).sum(-1)[hit]
    assert facing.max() < 0.02  # 8-bit normals at grazing angles
    assert (scene.normals[~hit] == 0).all()


def test_ids_alpha_and_depth_say_the_same(tiny):
    scene = scenes.load(tiny)
    assert scene.ids.min() == -1 and scene.ids.max() < len(scene.id_names)
    assert ((scene.ids >= 0) == (scene.depth > 0)).all()
    alpha = scene.images[..., 3]
    assert (alpha[scene.ids >= 0] > 0).float().mean() > 0.98  # a thin part may be hit by the centre ray alone
    assert (alpha[scene.ids < 0] < 255).float().mean() > 0.98
    seen = {scene.id_names[i] for i in scene.ids.unique().tolist() if i >= 0}
    assert {"board", "giraffe", "ring tower", "metal ball"} <= seen


def test_every_depth_is_between_near_and_far(tiny):
    scene = scenes.load(tiny)
    distance = scene.depth.flatten() / camera_rays(scene.cameras).z_per_t
    distance = distance[distance > 0]
    assert scene.near < distance.min() and distance.max() < scene.far


def test_points_lie_on_what_is_seen(tiny):
    scene = scenes.load(tiny)
    inside = (scene.points.xyz >= scene.aabb[0] - 1e-3) & (scene.points.xyz <= scene.aabb[1] + 1e-3)
    assert inside.all() and len(scene.points) > 100
    assert torch.equal(scene.points.xyz, scenes.load(tiny).points.xyz)


def test_cameras_see_the_scene_upright_and_in_place(tiny):
    """A thing whose place is known appears where `project` puts it: the pose convention holds through Mitsuba."""
    scene = scenes.load(tiny)
    description = making.describe("toybox", size=32, views=5)
    ball = description.id_names.index("beach ball")
    pixels, z = project(scene.cameras, torch.tensor([[0.48, -0.42, -0.24]]))
    checked = 0
    for view in range(len(scene)):
        x, y = pixels[view, 0].floor().long().tolist()
        if scene.ids[view, y, x] == ball:
            assert 0.1 < float(z[view, 0] - scene.depth[view, y, x]) < 0.3  # the near side, about one radius closer
            checked += 1
    assert checked >= 2


def test_things_that_share_a_material_keep_their_ids():
    from nsw.scenes.make.render import Studio

    things, same = Things(), Material((0.5, 0.5, 0.5))
    for name, x in (("left", -0.6), ("right", 0.6)):
        things.add(name, "ball", (shapes.placed(shapes.ball(0.4), (x, 0, 0)), same))
    cameras = looking(np.array([[0.0, -4, 0]]), np.zeros(3), 40.0, 32, 32)
    box = np.array([[-1.0] * 3, [1.0] * 3])
    d = Description("two", things.items, things.names, things.classes, cameras, [("train", "train_000")], box, 1.0, 8.0)
    studio = Studio(d, 1, 0)
    depth, _, _, ids = studio.truth(0)
    assert len(studio.groups) == 1
    assert set(ids[:, :16].ravel()) == {-1, 0} and set(ids[:, 16:].ravel()) == {-1, 1}
    assert np.isclose(depth[ids >= 0].min(), 3.6, atol=0.02)


def _spot(exposed, at):
    """Return the alpha [64, 64] of a ball of a pixel's size at a place, and the camera."""
    from nsw.scenes.make.render import Studio

    things = Things()
    things.add("ball", "ball", (shapes.placed(shapes.ball(0.03), at), Material((0.5, 0.5, 0.5))))
    cameras = looking(np.array([[0.0, -4, 0]]), np.zeros(3), 30.0, 64, 64)
    box, view = np.array([[-1.0] * 3, [1.0] * 3]), [("train", "train_000")]
    look = dict(exposures=[exposed], transparent=True)
    d = Description("spot", things.items, things.names, things.classes, cameras, view, box, 1.0, 8.0, **look)
    return Studio(d, 256, 0, denoise=False).view(0).rgba[..., 3], cameras


def _moments(alpha):
    rows, columns = np.mgrid[:64, :64] + 0.5
    weight = alpha / alpha.sum()
    middle = np.array([(weight * columns).sum(), (weight * rows).sum()])
    return middle, np.array([(weight * (columns - middle[0]) ** 2).sum(), (weight * (rows - middle[1]) ** 2).sum()])


def test_defocus_spreads_a_point_over_its_circle_of_confusion():
    """A disc of diameter c has the variance c^2 / 16 along either axis, on top of the sharp ball's own."""
    lens = Exposure(aperture=0.15, focus=3.0)
    _, sharp = _moments(_spot(Exposure(), (0, 0.5, 0))[0])
    alpha, cameras = _spot(lens, (0, 0.5, 0))
    c = circle_of_confusion(lens, torch.tensor([4.5]), float(cameras.Ks[0, 0, 0])).item()
    assert c > 3
    assert _moments(alpha)[1] - sharp == pytest.approx([c**2 / 16] * 2, rel=0.12)
    assert _moments(_spot(lens, (0, -1, 0))[0])[1] == pytest.approx(_moments(_spot(Exposure(), (0, -1, 0))[0])[1], abs=0.03)


def test_shake_spreads_a_point_along_the_cameras_path():
    shake = Exposure(shift=((0.2, 0.0, 0.0), (0.0, 0.1, 0.0)), turn=((0.0, 0.0, 0.05), (0.0, 0.0, 0.0)))
    alpha, cameras = _spot(shake, (0.2, 0, 0.2))
    path = poses(shake, cameras.world_from_cam[0], 16)
    moved = Cameras(torch.linalg.inv(path), cameras.Ks.expand(16, 3, 3), 64, 64)
    pixels = project(moved, torch.tensor([[0.2, 0, 0.2]]))[0][:, 0].numpy()
    middle, spread = _moments(alpha)
    _, sharp = _moments(_spot(Exposure(), (0.2, 0, 0.2))[0])
    assert middle == pytest.approx(pixels.mean(0), abs=0.1)
    assert spread - sharp == pytest.approx(pixels.var(0), rel=0.06, abs=0.05)


def test_a_stopped_rendering_continues(tiny, tmp_path, monkeypatch):
    from nsw.scenes.make import render

    out, real, calls = tmp_path / "toybox", render.Studio.view, []

    def stopped(self, index):
        if calls:
            raise KeyboardInterrupt
        calls.append(index)
        return real(self, index)

    monkeypatch.setattr(render.Studio, "view", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_scene("toybox", out, **TINY)
    first = out / "images" / "train_000.png"
    assert first.is_file() and not list(out.rglob("*.part")) and not (out / "manifest.json").exists()
    stamp = first.stat().st_mtime_ns
    monkeypatch.setattr(render.Studio, "view", lambda self, index: calls.append(index) or real(self, index))
    make_scene("toybox", out, **TINY)
    assert first.stat().st_mtime_ns == stamp and calls == list(range(5))
    monkeypatch.setattr(render.Studio, "view", stopped)
    assert make_scene("toybox", out, **TINY) == out  # complete: nothing is rendered again
    # The same seed gives the same pictures; parallel sums may round differently by one level.
    one, two = scenes.load(tiny), scenes.load(out)
    assert (one.images.int() - two.images.int()).abs().max() <= 1
    assert torch.equal(one.depth, two.depth) and torch.equal(one.ids, two.ids)


def test_another_seed_gives_another_picture(tiny, tmp_path):
    other = scenes.load(make_scene("toybox", tmp_path / "other", size=32, spp=4, views=5, seed=1, progress=False))
    assert (other.images.int() - scenes.load(tiny).images.int()).abs().max() > 8


def test_folders_with_something_else_are_left_alone(tiny, tmp_path):
    with pytest.raises(InputError, match="spp"):
        make_scene("toybox", tiny, size=32, spp=8, views=5, progress=False)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="not a scene being made"):
        make_scene("toybox", tmp_path, **TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "bad", [dict(name="toolbox"), dict(size=4), dict(size=3.5), dict(views=1), dict(seed=-1), dict(spp=0), dict(spp=True)]
)
def test_bad_arguments_are_one_sentence(bad, tmp_path):
    with pytest.raises(InputError):
        make_scene(**{"name": "toybox", "out": tmp_path / "x", "progress": False, **bad})
    assert not (tmp_path / "x").exists()


def test_without_mitsuba_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mitsuba", None)
    with pytest.raises(InputError, match=r"nsw\[synth\]"):
        make_scene("toybox", tmp_path / "x", **TINY)


def test_manifest_says_how_it_was_made(tiny):
    manifest = json.loads((tiny / "manifest.json").read_text(encoding="utf-8"))
    assert {"generator", "seed", "spp", "variant", "licence", "command", "digest", "files", "date"} <= set(manifest)
    assert len(manifest["files"]) == 5 * 5 + 1


@pytest.mark.parametrize("name", SCENES)
def test_descriptions_are_sound(name):
    d = making.describe(name, size=32)
    assert len(d.cameras) == len(d.views) and len(set(d.views)) == len(d.views)
    assert len(d.id_names) == len(set(d.id_names)) == len(d.id_classes) <= 255
    used = {item.instance for item in d.items}
    assert used == set(range(len(d.id_names)))
    for item in d.items:
        mesh = item.mesh
        assert np.isfinite(mesh.vertices).all() and mesh.faces.max() < len(mesh.vertices)
        assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-6)
        if np.ndim(item.material.colour) == 3:
            assert item.material.colour.min() >= 0 and item.material.colour.max() <= 1


@pytest.mark.parametrize(
    "mesh, volume",
    [
        (shapes.ball(0.5, 96), np.pi / 6),
        (shapes.ring(1.0, 0.25, 96), 2 * np.pi**2 * 0.25**2),
        (shapes.block((1, 2, 3), 0.01), 6.0),
        (shapes.extruded([(0, 0), (1, 0), (0, 1)], 2.0), 1.0),
    ],
)
def test_meshes_enclose_their_volume_with_outward_faces(mesh, volume):
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    assert (a * np.cross(b, c)).sum() / 6 == pytest.approx(volume, rel=0.02)
    face_normals = np.cross(b - a, c - a)
    assert ((face_normals * mesh.normals[mesh.faces].mean(1)).sum(-1) > 0).mean() > 0.99


def test_noise_tiles_and_srgb_inverts():
    noise = textures.noise(np.random.default_rng(0), 64, 64, (4, 4), 3)
    inner = np.abs(np.diff(noise, axis=1)).max()
    assert np.abs(noise[:, 0] - noise[:, -1]).max() <= 1.5 * inner
    values = np.linspace(0, 1, 50)
    assert np.allclose(textures.display(textures.linear(values)), values, atol=1e-6)


def test_denoising_removes_noise_and_keeps_edges():
    rng = np.random.default_rng(0)
    clean = np.zeros((40, 40, 10))
    clean[..., :3], clean[:, 20:, :3] = 0.2, 0.6  # a shadow's edge: no feature shows it
    clean[..., 3], clean[..., 4:7], clean[..., 9] = 1.0, 0.5, 1.0
    halves = np.repeat(clean[None], 2, 0)
    halves[..., :3] += 0.05 * rng.standard_normal((2, 40, 40, 3))
    out = denoised(halves)[..., :3]
    plain = halves.mean(0)[..., :3]

    def error(a):
        return float(((a - clean[..., :3]) ** 2).mean())

    assert error(out) < 0.3 * error(plain)
    assert abs(out[:, 18:20].mean() - 0.2) < 0.03 and abs(out[:, 20:22].mean() - 0.6) < 0.03
    assert np.allclose(denoised(halves, strength=0), halves.mean(0)[..., :4], atol=1e-6)


def test_a_cut_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    store.write_whole(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write_whole(path, b"new")
    assert path.read_bytes() == b"old"


def test_scattered_toys_stand_apart_and_differ_from_seed_to_seed():
    from nsw.scenes.make import scattered

    toybox, one, two = making.describe("toybox", views=3), scattered.describe(1, views=1), scattered.describe(2, views=1)
    for d in (one, two):
        assert len(d.id_names) == len(set(d.id_names)) == len(d.id_classes) > 3 and d.id_names[0] == "board"
        assert set(d.id_classes) <= set(toybox.id_classes)
        for item in d.items[1:]:
            x, y, z = item.mesh.vertices.T
            assert np.hypot(x, y).max() < 1.3 and z.min() > toybox.items[0].mesh.vertices[:, 2].min() - 0.1
    assert {tuple(one.items[-1].mesh.vertices[0])} != {tuple(two.items[-1].mesh.vertices[0])}
    again = scattered.describe(1, views=1)
    assert all(np.array_equal(a.mesh.vertices, b.mesh.vertices) for a, b in zip(one.items, again.items, strict=True))


def test_pictures_of_scattered_toys_are_made_once(tmp_path):
    from nsw.scenes.make.scattered import make_pictures

    (file,) = make_pictures(tmp_path, range(1), size=24, views=1, spp=1)
    stamp = file.stat().st_mtime_ns
    with np.load(file) as stored:
        assert stored["rgba"].shape == (1, 24, 24, 4) and stored["ids"].max() < len(stored["names"]) == len(stored["classes"])
        assert ((stored["ids"] >= 0) == (stored["rgba"][..., 3] > 127)).mean() > 0.95
    assert make_pictures(tmp_path, range(1), size=24, views=1, spp=1) == [file] and file.stat().st_mtime_ns == stamp
