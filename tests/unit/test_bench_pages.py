"""A plain `make bench` neither loses the columns of peers that cannot be installed nor passes their figures off as its own."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import nsw.scenes

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("bench_rasterization")
    for name in ("bench_rasterization", "peers", "report"):
        sys.modules.pop(name, None)


def record(date: str, **ms) -> dict:
    return {
        "date": date,
        "machine": f"machine of {date}",
        "blocks": 1,
        "rows": [{"n": 1000, "width": 128, "height": 128, "ms": ms}],
    }


def test_a_run_without_peers_leaves_their_page_alone_and_cites_it_with_its_date(bench, tmp_path, capsys):
    bench.save(
        tmp_path,
        record("2020-01-02", kernels=[1.0, 2.0], ceiling=[2.0, 8.0], prototype=[4.0, 4.0]),
        ["ceiling", "prototype"],
        False,
    )
    with_peers = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(with_peers) == {"rasterization.md", "rasterization.json"} and "0.50 / 0.25" in with_peers["rasterization.md"]
    bench.save(tmp_path, record("2021-03-04", kernels=[7.0, 9.0]), [], False)
    assert all((tmp_path / name).read_text() == text for name, text in with_peers.items())
    alone = (tmp_path / "rasterization-alone.md").read_text()
    own, cited = alone.split("Beside other engines, measured 2020-01-02 (machine of 2020-01-02)")
    assert "measured 2021-03-04" in own and "7.0 / 9.0" in own and "ceiling, ms" not in own
    assert "| kernels / ceiling | kernels / prototype |" in cited and "| 0.50 / 0.25 | 0.25 / 0.50 |" in cited
    assert cited.strip() in capsys.readouterr().out


def test_the_committed_record_has_every_size_beside_the_ceiling(bench):
    committed = json.loads((BENCH / "results" / "rasterization.json").read_text())
    lines = bench.cited(committed)
    assert "kernels / ceiling" in lines[2] and committed["date"] in lines[0]
    named = {bench.named(row) for row in committed["rows"]}
    assert named >= {f"{n}, {width}x{height}" for n in bench.COUNTS for width, height in bench.SIZES}
    assert len(lines) - 4 == len(named) and not any("nan" in line for line in lines)
    assert all(max(mine / other for mine, other in zip(row["ms"]["kernels"], row["ms"]["ceiling"], strict=True)) <= 1 / 0.9
               for row in committed["rows"])  # fmt: skip


def test_a_run_without_any_record_says_only_what_it_measured(bench, tmp_path):
    bench.save(tmp_path, record("2021-03-04", kernels=[7.0, 9.0]), [], True)
    assert "Beside" not in (tmp_path / "rasterization-alone.md").read_text()


def test_the_garden_is_drawn_where_its_file_lies_and_where_not_it_is_said(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "COUNTS", ())
    places, K = (
        np.random.default_rng(0).random((20, 3), np.float32),
        np.array([[640, 0, 320], [0, 480, 240], [0, 0, 1]], np.float32),
    )
    data = {
        "means3d": places,
        "colors": np.full((20, 3), 51, np.uint8),
        "viewmats": np.eye(4, dtype=np.float32)[None],
        "Ks": K[None],
    }
    np.savez(tmp_path / "garden.npz", **data, width=640, height=480)
    rows, scenes = zip(*bench.loads(str(tmp_path / "garden.npz")), strict=True)
    assert [bench.named(row) for row in rows] == [f"garden of 20, {width}x{height}" for width, height in bench.SIZES]
    assert all((row["scene"], row["width"], row["height"]) in bench.RASTERIZATION for row in rows)
    means, _, scales, opacities, colors, viewmats, Ks = scenes[0]
    assert Ks[0].tolist() == [[128, 0, 64], [0, 128, 64], [0, 0, 1]] and viewmats.shape == (1, 4, 4)
    apart = np.sort(np.linalg.norm(places[:, None] - places, axis=-1), axis=1)[:, 1:4]
    assert np.allclose(scales[:, 0], np.minimum(np.sqrt((apart**2).mean(1)), scales.max()), atol=1e-6)
    assert float(opacities.mean()) == 0.5 and np.allclose(colors, 0.2)
    assert not list(bench.loads(None)) and "no --garden" in capsys.readouterr().out
    assert not list(bench.loads("absent.npz")) and "absent.npz is missing" in capsys.readouterr().out


def test_presets_are_shortened_by_settings_that_the_notebooks_have(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCH))
    presets = importlib.import_module("bench_gpu_presets")
    paths = presets.all_notebooks()
    assert sorted(presets.FEW) == [path.stem[:2] for path in paths] == sorted(presets.ORDER.split())
    for path in paths:
        how = dict(film=False, share=0.5, scene="there")
        notebook, own = presets.shortened(path, presets.FEW[path.stem[:2]], tmp_path / "out.json", **how)
        code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        assert own and any('preset: str = "gpu"' in source for source in code) and not any("claims.check()" in s for s in code)
        assert not any("scene_name: str" in source and "'there'" not in source for source in code)


def test_lego_is_trained_at_the_sizes_that_the_notebooks_have(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    sizes = importlib.import_module("preset_sizes")
    for number, named in (("02", "coarse_steps"), ("03", "n_steps"), ("04", "n_steps"), ("05", "steps"), ("06", "steps")):
        own, twice = (sizes.settings(number, "laptop", length) for length in (1, 2))
        assert getattr(twice, named) == 2 * getattr(own, named) and twice.image_size == own.image_size
    s = sizes.settings("02", "laptop")
    coarse, fine = sizes.dvgo_both(s)
    assert (coarse.n_steps, coarse.n_voxels) == (s.coarse_steps, s.coarse**3)
    assert len(fine.grow) == 4 and fine.grow[-1] < fine.n_steps == s.fine_steps
    assert sizes.plenoxels_recipe(sizes.settings("04", "gpu")).sizes == (128, 256)
    scene, s = nsw.scenes.load("toybox", size=24), sizes.settings("05", "laptop")
    model, plan = sizes.hash_grid(scene, s)
    assert (len(model.levels), plan.n_steps, plan.n_samples) == (s.levels, s.steps, s.samples)
    model, plan = sizes.vm(scene, sizes.settings("06", "smoke"))
    assert plan.n_voxels > 24**3 and model.n_bytes < 1e6
    training = sizes.splats_training(scene, sizes.settings("03", "smoke"), sh_degree=1)
    assert len(training.gaussians) == 500 and training.control.max_splats == 2000
