"""The bundled scenes are whole, small, and say what they show; damaged copies are refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch

from nsw import scenes
from nsw.cameras import camera_rays
from nsw.errors import InputError
from nsw.scenes import bundled

NAMES = bundled.names()
COUNTS = {
    "toybox": dict(train=60, val=12, test=24),
    "shelf": dict(train=24, test=8),
    "room": dict(train=40, test=8, walk=12),
    "town": dict(train=35, test=10),
}


def test_toybox_is_bundled():
    assert "toybox" in NAMES


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
    assert ((scene.ids >= 0) == hit).all() and int(scene.ids.max()) < len(scene.id_names)
    distance = (scene.depth.flatten() / camera_rays(scene.cameras).z_per_t)[hit.flatten()]
    assert scene.near < distance.min() and distance.max() < scene.far
    assert len(scene.points) == bundled.N_POINTS
    inside = ((scene.points.xyz >= scene.aabb[0] - 0.01) & (scene.points.xyz <= scene.aabb[1] + 0.01)).all(-1)
    assert inside.float().mean() > (0.99 if name in ("toybox", "room") else 0.9)
    if name == "toybox":
        assert scene.has_alpha and scene.background == "white"
        assert torch.allclose(scene.cameras.origins.norm(dim=-1), torch.full((len(scene),), 4.0), atol=1e-4)
        to_centre = -scene.cameras.origins / 4.0
        assert ((scene.cameras.world_from_cam[:, :3, 2] * to_centre).sum(-1) > 0.999).all()
    else:
        assert not scene.has_alpha and hit.all()


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
