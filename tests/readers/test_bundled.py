"""The bundled scenes are whole, small, and say what they show; damaged copies are refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import scene_files as files
import torch

from nsw import scenes
from nsw.cameras import camera_rays
from nsw.errors import InputError
from nsw.methods.deblurring_3dgs_inspect import sharpness
from nsw.scenes import bundled
from nsw.scenes.exposures import Exposure, exposures

NAMES = [name for name in bundled.names() if name in bundled.ORDER]  # larger renderings of one's own may lie beside them
COUNTS = {
    "toybox": dict(train=60, val=12, test=24),
    "tea": dict(train=36, val=4, test=12),
    "shelf": dict(train=24, test=8),
    "room": dict(train=24, test=6, walk=12),
    "town": dict(train=30, test=8),
    "toybox_defocus": dict(train=26, test=8),
    "toybox_motion": dict(train=26, test=8),
}
BLURRED = ("toybox_defocus", "toybox_motion")  # white behind, and of the truth maps the depth alone
SHARP = [name for name in NAMES if name not in BLURRED]


def test_all_scenes_are_bundled():
    assert list(COUNTS) == NAMES


def test_together_they_stay_under_the_budget():
    total = sum(p.stat().st_size for name in NAMES for p in (bundled.data_dir() / name).rglob("*") if p.is_file())
    assert total < 25e6


@pytest.mark.parametrize("name", NAMES)
def test_files_are_those_of_the_manifest(name):
    folder = bundled.data_dir() / name
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for file, sha in manifest["files"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == sha, file
    listed = "".join(f"{file} {sha}\n" for file, sha in manifest["files"].items())
    assert hashlib.sha256(listed.encode()).hexdigest() == manifest["digest"]
    stored = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert stored == {*manifest["files"], "manifest.json"}


@pytest.mark.parametrize("name", NAMES)
def test_scene_is_complete_and_consistent(name):
    scene = scenes.load(name)
    splits = {**scene.splits, **scene.extra_splits}
    assert {k: len(v) for k, v in splits.items() if len(v)} == COUNTS[name]
    assert len(torch.cat(list(splits.values())).unique()) == len(scene)
    hit = scene.depth > 0
    if name in SHARP:
        assert ((scene.ids >= 0) == hit).all() and int(scene.ids.max()) < len(scene.id_names)
    distance = (scene.depth.flatten() / camera_rays(scene.cameras).z_per_t)[hit.flatten()]
    assert scene.near < distance.min() and distance.max() < scene.far
    assert len(scene.points) == bundled.N_POINTS
    inside = ((scene.points.xyz >= scene.aabb[0] - 0.01) & (scene.points.xyz <= scene.aabb[1] + 0.01)).all(-1)
    assert inside.float().mean() > (0.99 if name in ("toybox", "room") else 0.9)
    if name.startswith(("toybox", "tea")):
        assert scene.has_alpha == (name in SHARP) and (scene.background == "white") == (name in SHARP)
        assert torch.allclose(scene.cameras.origins.norm(dim=-1), torch.full((len(scene),), 4.0), atol=1e-4)
        to_centre = -scene.cameras.origins / 4.0
        assert ((scene.cameras.world_from_cam[:, :3, 2] * to_centre).sum(-1) > 0.999).all()
    else:
        assert not scene.has_alpha and hit.all()


@pytest.mark.parametrize("name", NAMES)
def test_cameras_stand_where_the_scene_says(name):
    scene = scenes.load(name)
    pose, eyes = scene.cameras.world_from_cam, scene.cameras.origins
    eye3 = torch.eye(3).expand(len(scene), 3, 3)
    assert torch.allclose(pose[:, :3, :3].mT @ pose[:, :3, :3], eye3, atol=1e-4) and (torch.linalg.det(pose[:, :3, :3]) > 0).all()
    assert (pose[:, 2, 1] < 0).all() and pose[:, 2, 0].abs().max() < 1e-4  # image down is down, and no camera is rolled
    ahead = pose[:, :3, 2]
    if name == "shelf":
        assert (ahead[:, 1] > 0.9).all() and (eyes[:, 1] < scene.aabb[0, 1]).all()
    elif name == "room":
        assert ((eyes > scene.aabb[0]) & (eyes < scene.aabb[1])).all()
        bearing = torch.atan2(ahead[scene.splits["train"], 1], ahead[scene.splits["train"], 0]).sort().values
        assert bearing.diff().max() < 1.0  # all around
        walk = scene.cameras[scene.extra_splits["walk"]].origins
        assert 0.05 < (walk[1:] - walk[:-1]).norm(dim=-1).max() < 0.5  # a path, in its order
    elif name == "town":
        assert (eyes[:, 2] > scene.aabb[1, 2]).all() and (ahead[:, 2] < -0.7).all()


@pytest.mark.parametrize("name", SHARP)
def test_pictures_are_well_exposed_and_show_many_things(name):
    scene = scenes.load(name)
    colour = scene.images[..., :3][scene.ids >= 0].float() / 255
    assert 0.25 < colour.mean() < 0.7
    assert (colour.min(-1).values > 0.99).float().mean() < 0.03 and (colour.max(-1).values < 0.02).float().mean() < 0.03
    seen = scene.ids[scene.splits["train"]].unique()
    assert (seen >= 0).sum() >= 0.6 * len(scene.id_names)  # the outskirts of town lie beyond every view


@pytest.mark.parametrize("name", BLURRED)
def test_blurred_scenes_say_how_each_picture_was_exposed(name):
    """Training views are softer than the sharp test views; where nothing is, the wall is white."""
    scene, told = scenes.load(name), exposures(scenes.load(name))
    train, test = ([told[i] for i in scene.splits[split].tolist()] for split in ("train", "test"))
    assert all(e == Exposure() for e in test) and len(set(train)) == len(train)
    assert all((e.aperture > 0) != e.moves for e in train) and {e.moves for e in train} == {name == "toybox_motion"}
    soft, sharp = (sharpness(scene.pixels(split)) for split in ("train", "test"))
    assert soft < 0.7 * sharp
    assert (scene.pixels("test")[scene.depth[scene.splits["test"]] == 0] > 0.99).all(-1).float().mean() > 0.9


def test_both_blurred_scenes_show_the_same_sharp_views():
    a, b = (scenes.load(name) for name in BLURRED)
    assert torch.equal(a.cameras.cam_from_world, b.cameras.cam_from_world) and torch.equal(a.depth, b.depth)
    test = a.splits["test"]
    assert (a.images[test].int() - b.images[test].int()).abs().max() <= 1


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "toybox"
    shutil.copytree(bundled.data_dir() / "toybox", folder)
    return folder


def _edit(path, change):
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize(
    "damage, word",
    [
        (lambda f: (f / "images/train_003.png").unlink(), "train_003"),
        (lambda f: (f / "depth/train_003.png").unlink(), "depth"),
        (lambda f: (f / "normals/val_001.png").write_bytes((f / "normals/val_001.png").read_bytes()[:200]), "normals"),
        (lambda f: (f / "ids/test_001.png").write_bytes(b""), "ids"),
        (lambda f: shutil.copy(f / "ids/test_001.png", f / "albedo/test_001.png"), "albedo"),
        (lambda f: _edit(f / "transforms.json", lambda d: d.pop("aabb")), "aabb"),
        (lambda f: _edit(f / "transforms.json", lambda d: d.update(near=-1)), "near"),
        (lambda f: _edit(f / "transforms.json", lambda d: d.update(id_names=["board"])), "id_names"),
        (lambda f: _edit(f / "transforms.json", lambda d: d.update(id_names=3)), "id_names"),
        (lambda f: _edit(f / "transforms.json", lambda d: d.update(maps=["depth", "heat"])), "heat"),
        (lambda f: _edit(f / "transforms.json", lambda d: d.update(further_paths=["walk"])), "walk"),
        (lambda f: _edit(f / "manifest.json", lambda d: d.update(format=9)), "format"),
        (lambda f: (f / "manifest.json").write_text("{", encoding="utf-8"), "manifest"),
    ],
)
def test_damage_is_named(copy, damage, word):
    damage(copy)
    with pytest.raises(InputError, match=word) as caught:
        scenes.load(copy)
    assert "\n" not in str(caught.value)


def test_data_folder_can_be_moved(copy, monkeypatch):
    monkeypatch.setenv("NSW_DATA", str(copy.parent))
    assert bundled.names() == ["toybox"] and scenes.load("toybox").source == copy
    monkeypatch.setenv("NSW_DATA", str(copy.parent / "nowhere"))
    assert bundled.names() == []


@pytest.fixture
def renderings(tmp_path, monkeypatch):
    """A bundled scene of 100 pixels, with another scene in the place of its rendering of 160, and an unfinished one of 300."""
    for name, of in (("tea", "tea"), ("tea-160", "toybox")):
        (tmp_path / name).symlink_to(bundled.data_dir() / of)
    (tmp_path / "tea-300").mkdir()
    (tmp_path / "tea-large").mkdir()
    monkeypatch.setenv("NSW_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("size", "folder", "width"), [(None, "tea", 100), (50, "tea", 50), (100, "tea", 100), (120, "tea-160", 120)]
)
def test_a_larger_rendering_is_taken_where_more_pixels_are_asked_for(renderings, size, folder, width):
    scene = scenes.load("tea", size=size)
    assert scene.source == renderings / folder and scene.cameras.width == scene.images.shape[2] == width and not scene.notes


def test_no_picture_is_enlarged_and_the_scene_says_so(renderings, tmp_path):
    scene = scenes.load("tea", size=800)
    assert scene.source == renderings / "tea-160" and scene.images.shape[2] == 160
    assert "160 pixels" in scene.notes[-1] and "nsw scene make toybox --size 800" in scene.notes[-1]
    files.write_blender(tmp_path / "own")
    mine = scenes.load(tmp_path / "own", size=800)
    assert mine.images.shape[2] == mine.cameras.width == 32 and "enlarged" in mine.notes[-1] and "make" not in mine.notes[-1]
    assert mine.digest == scenes.load(tmp_path / "own").digest
