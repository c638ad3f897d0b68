"""`nsw convert`: one sentence on bad input, a whole folder or none, and what it writes is opened by the other commands."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import nsw
from nsw import cli
from nsw.cameras import orbit
from nsw.models import io
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.models.gaussians import Gaussians, GaussiansSettings
from nsw.models.hash_grid import HashGrid
from nsw.models.trunk_mlp import TrunkMLP
from nsw.models.vm_grid import VMGrid
from nsw.renderers import render_view
from nsw.runs import convert
from nsw.runs.kept import load_kept


def ball() -> DenseGrid:
    model = DenseGrid(DenseGridSettings(n_voxels=16**3))
    with torch.no_grad():
        model.raw_density[..., 0] = torch.where(model.vertices().norm(dim=-1) < 0.6, 30.0, -10.0)
    return model


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("NSW_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    run = nsw.start("dvgo", preset="smoke", out=tmp_path / "runs" / "dvgo" / "smoke-seed0", device="cpu")
    run.keep("ball", model=ball())
    return tmp_path


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["dvgo", "--to", "nerf", "--out", "new"], 'Cannot convert to "nerf": expected hash, vm, dense, mlp or gaussians'),
        (["nope", "--to", "hash", "--out", "new"], 'no run "nope"'),
        (["dvgo", "--to", "hash", "--out", "runs"], "exists already"),
        (["dvgo", "--to", "hash", "--out", "file"], "exists already"),
        (["dvgo", "--to", "hash", "--out", "file/new"], "Cannot write|Not a directory|part of that path"),
        (["dvgo", "--to", "hash", "--out", "new", "--steps", "3"], "at least 10"),
        (["dvgo", "--to", "hash", "--out", "new", "--seed", "-1"], "seed"),
        (["linear", "--to", "hash", "--out", "new"], "kept no model|no run"),
        (["scan.ply", "--to", "hash", "--out", "new"], "scan.ply"),
        (["file", "--to", "hash", "--out", "new"], "holds no Gaussians that can be read: expected .ply"),
        (["scan.spz", "--to", "voxels"], 'Cannot convert to "voxels"'),
    ],
)
def test_mistakes_are_one_sentence(place, capsys, args, says, monkeypatch):
    (place / "file").write_text("")
    (place / "linear").mkdir()
    before = sorted(place.rglob("*"))
    monkeypatch.setattr("nsw.methods.pvd.convert", lambda *args, **options: ball())
    capsys.readouterr()
    assert cli.main(["convert", *args]) == 2
    told = capsys.readouterr().err
    assert told.startswith("nsw: ") and told.count("\n") == 1 and re.search(says, told), told
    assert sorted(place.rglob("*")) == before


def test_what_cannot_be_converted_is_named(place, capsys):
    from nsw.models.mlp import NerfMLP, NerfSettings

    blank = NerfMLP(NerfSettings(depth=1, width=4, levels_position=1, levels_direction=1, density_bias=-60.0))
    io.save(blank, place / "blank")
    capsys.readouterr()
    assert cli.main(["convert", "blank", "--to", "hash", "--out", "new"]) == 2
    assert "shows nothing" in capsys.readouterr().err and not (place / "new").exists()


@pytest.mark.parametrize(
    ("word", "kind"), [("hash", HashGrid), ("vm", VMGrid), ("mlp", TrunkMLP), ("dense", DenseGrid), ("gaussians", Gaussians)]
)
def test_the_new_model_is_a_run_like_any_other(place, capsys, word, kind, monkeypatch):
    from nsw.methods import pvd

    small = pvd.Plan(n_samples=512, n_cells=12, n_poses=4, size=16)
    monkeypatch.setattr(pvd, "Plan", lambda **given: replace(small, **given))
    assert cli.main(["convert", "dvgo", "--to", word, "--out", "new", "--steps", "12"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(place / "new") and "12/12" in out
    assert isinstance(load_kept(place / "new")[0], kind)
    assert not list(place.glob(".*.part"))
    assert cli.main(["export", "new", "ply"]) == (0 if word == "gaussians" else 2)
    assert (place / "new" / "new.ply").exists() == (word == "gaussians")


def splat_ball(n: int = 400) -> Gaussians:
    """Return red splats on a sphere with a small green one on top, above it in +z."""
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1) * 0.5
    top = torch.nn.functional.normalize(torch.randn(n // 4, 3, generator=generator), dim=1) * 0.15 + torch.tensor([0, 0, 0.65])
    rgb = torch.cat([torch.tensor([[0.9, 0.1, 0.1]]).expand(n, 3), torch.tensor([[0.1, 0.8, 0.1]]).expand(n // 4, 3)])
    splats = Gaussians(GaussiansSettings(sh_degree=0))
    at = dict(means=torch.cat([points, top]), quats=torch.tensor([1.0, 0, 0, 0]).expand(len(rgb), 4))
    size = dict(scales=torch.full((len(rgb), 3), -2.5), opacities=torch.full((len(rgb),), 4.0))
    return splats.fill(**at, **size, sh0=((rgb - 0.5) / 0.28209479)[:, None], shN=torch.zeros(len(rgb), 0, 3))


@pytest.mark.parametrize("suffix", [".ply", ".splat", ".spz", ".glb"])
def test_a_file_of_splats_is_converted_and_stands_upright(place, capsys, suffix, monkeypatch):
    from nsw import formats
    from nsw.methods import pvd

    formats.save(splat_ball(), place / f"scan{suffix}", up="+z")
    small = pvd.Plan(n_samples=2048, n_cells=16, n_poses=8, size=24)
    monkeypatch.setattr(pvd, "Plan", lambda **given: replace(small, **given))
    before = (place / f"scan{suffix}").read_bytes()
    assert cli.main(["convert", f"scan{suffix}", "--to", "dense", "--steps", "120"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == str(place / "scan-as-dense") and re.search(r"PSNR against what was converted.* \d+\.\d+ dB", told[-2])
    model, scene = load_kept(place / "scan-as-dense")
    assert scene is None and isinstance(model, DenseGrid) and (place / f"scan{suffix}").read_bytes() == before
    with torch.no_grad():
        picture = render_view(model, orbit(1, 3.0, 0.0, width=24, height=24), background=0.0).rgb[0]
    tint = picture[..., 1] - picture[..., 0]
    assert float(tint[:8].mean()) > 0 > float(tint[12:].mean())  # the green one is still on top
    assert cli.main(["convert", f"scan{suffix}", "--to", "dense"]) == 2 and "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "kind"), [("hash", HashGrid), ("vm", VMGrid), ("mlp", TrunkMLP), ("dense", DenseGrid), ("gaussians", Gaussians)]
)
def test_a_file_of_splats_becomes_anything(place, word, kind, monkeypatch):
    from nsw import formats
    from nsw.methods import pvd

    formats.save(splat_ball(100), place / "scan.ply")
    small = pvd.Plan(n_samples=512, n_cells=12, n_poses=4, size=16)
    monkeypatch.setattr(pvd, "Plan", lambda **given: replace(small, **given))
    assert cli.main(["convert", str(place / "scan.ply"), "--to", word, "--out", "new", "--steps", "10"]) == 0
    assert isinstance(load_kept(place / "new")[0], kind) and not list(place.glob(".*.part"))


def test_a_conversion_that_is_stopped_leaves_nothing(place, capsys, monkeypatch):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    before = sorted(place.rglob("*"))
    monkeypatch.setattr("nsw.methods.pvd.convert", stopped)
    assert cli.main(["convert", "dvgo", "--to", "hash", "--out", "new"]) == 130
    monkeypatch.setattr("nsw.methods.pvd.convert", lambda *args, **options: ball())
    monkeypatch.setattr(convert, "_write", stopped)
    assert cli.main(["convert", "dvgo", "--to", "hash", "--out", "new"]) == 130
    assert sorted(place.rglob("*")) == before


def test_with_its_scene_it_is_scored_and_filmed(tmp_path, capsys, monkeypatch):
    from nsw import scenes
    from nsw.scenes.bundled import data_dir

    if not (data_dir() / "toybox").is_dir():
        pytest.skip(f"the bundled scene toybox is not in {data_dir()}")
    monkeypatch.setenv("NSW_RUNS", str(tmp_path / "runs"))
    scene = scenes.load("toybox", size=16)
    run = nsw.start("dvgo", preset="smoke", out=tmp_path / "run", device="cpu")
    run.keep("ball", model=ball(), scene=scene)
    assert cli.main(["convert", str(tmp_path / "run"), "--to", "dense", "--out", str(tmp_path / "new"), "--steps", "10"]) == 0
    out = capsys.readouterr().out
    assert "dB before" in out and load_kept(tmp_path / "new")[1].name == "toybox"
    assert cli.main(["export", str(tmp_path / "new"), "gif", "--frames", "2"]) == 0


def test_without_a_folder_it_stands_beside_its_teacher(place, capsys, monkeypatch):
    from nsw.runs.kept import kept_models

    monkeypatch.setattr("nsw.methods.pvd.convert", lambda *args, **options: ball())
    assert cli.main(["convert", "dvgo", "--to", "hash"]) == 0
    (made,) = (kept for kept in kept_models() if kept.folder.name == "ball-as-hash")
    assert made.slug == "dvgo" and made.card["name"] == "ball-as-hash" and made.card["converted_from"] == "ball"
    assert made.card["seconds_to_train"] is not None and made.card["parameters"] > 0
    capsys.readouterr()
    assert cli.main(["convert", "dvgo", "--to", "hash"]) == 2  # the trained model again, not what was made of it
    assert "exists already" in capsys.readouterr().err
