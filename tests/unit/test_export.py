"""Files that leave the workbench are read back by a parser that shares no code with the writer."""

from __future__ import annotations

import struct

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
import trimesh

from nsw import export
from nsw.cameras import Cameras, intrinsics, look_at
from nsw.errors import InputError
from nsw.models.gaussians import Gaussians
from nsw.scenes.scene import Points, Scene


def some_gaussians(n: int = 7, degree: int = 2) -> Gaussians:
    generator = torch.Generator().manual_seed(3)
    splats = Gaussians.random(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), n, generator, sh_degree=degree)
    with torch.no_grad():
        for name in ("quats", "shN", "scales", "opacities"):
            splats.params[name].add_(torch.randn(splats.params[name].shape, generator=generator))
    return splats


def small_scene() -> Scene:
    angles = torch.arange(8) * 0.785
    eyes = torch.stack([3 * angles.cos(), 3 * angles.sin(), torch.ones(8)], dim=-1)
    cameras = Cameras(look_at(eyes), intrinsics(50.0, 25, 17, 8), 25, 17)
    images = torch.zeros(8, 17, 25, 4, dtype=torch.uint8)
    splits = {"train": torch.arange(6), "test": torch.arange(6, 8)}
    return Scene("ring", images, cameras, splits, torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 1.0, 6.0)


def parse_ply(data: bytes) -> tuple[list[str], np.ndarray]:
    header, body = data.split(b"end_header\n", 1)
    names = [line.split()[2] for line in header.decode().splitlines() if line.startswith("property float ")]
    rows = list(struct.iter_unpack(f"<{len(names)}f", body))
    return names, np.array(rows)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_comes_back_with_the_same_values(tmp_path, degree):
    splats = some_gaussians(degree=degree)
    back = export.load_ply(export.save_ply(splats, tmp_path / "s.ply"))
    assert back.settings.sh_degree == degree
    for name in ("means", "scales", "opacities", "sh0", "shN"):
        assert torch.equal(back.params[name], splats.params[name]), name
    assert torch.allclose(back.quats, torch.nn.functional.normalize(splats.quats, dim=-1), atol=1e-7)


def test_ply_has_the_layout_of_public_viewers(tmp_path):
    splats = some_gaussians(degree=1)
    names, rows = parse_ply(export.save_ply(splats, tmp_path / "s.ply").read_bytes())
    rest = [f"f_rest_{i}" for i in range(9)]
    expected = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest]
    assert names == [*expected, "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    column = {name: rows[:, i] for i, name in enumerate(names)}
    assert np.allclose(column["z"], splats.means[:, 2].detach())
    assert np.allclose(column["f_rest_1"], splats.shN[:, 1, 0].detach())  # second harmonic of red
    assert np.allclose(column["f_rest_3"], splats.shN[:, 0, 1].detach())  # first harmonic of green
    assert np.allclose(column["opacity"], splats.opacities.detach())
    assert np.allclose(sum(column[f"rot_{i}"] ** 2 for i in range(4)), 1.0, atol=1e-6)


def test_trimesh_reads_the_same_centres(tmp_path):
    splats = some_gaussians()
    with (export.save_ply(splats, tmp_path / "s.ply")).open("rb") as file:
        cloud = trimesh.load(file, file_type="ply")
    assert np.allclose(cloud.vertices, splats.means.detach(), atol=1e-6)


def test_ply_agrees_with_gsplat_byte_for_byte_in_its_columns(tmp_path):
    from gsplat import export_splats

    splats = some_gaussians(degree=1)
    with torch.no_grad():
        splats.quats.copy_(torch.nn.functional.normalize(splats.quats, dim=-1))
    raw = [splats.params[name].detach() for name in ("means", "scales", "quats", "opacities", "sh0", "shN")]
    theirs_names, theirs = parse_ply(export_splats(*raw, format="ply"))
    names, ours = parse_ply(export.save_ply(splats, tmp_path / "s.ply").read_bytes())
    for i, name in enumerate(theirs_names):
        assert np.allclose(ours[:, names.index(name)], theirs[:, i], atol=1e-6), name


def header(*lines: str) -> bytes:
    return "\n".join(["ply", "format binary_little_endian 1.0", *lines, "end_header\n"]).encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a .ply"),
        (b"ply\nformat binary_little_endian 1.0\n", "not a .ply"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nend_header\n0", "little-endian"),
        (header("element face 3"), "element vertex"),
        (header("element vertex -3"), "element vertex"),
        (header("element vertex 1", "property list uchar int x"), "cannot read the header line"),
        (header("element vertex 1", "property float x", "property float x"), "twice"),
        (header("element vertex 1", "property float x") + bytes(4), "are missing"),
    ],
)
def test_a_broken_ply_gives_one_sentence(tmp_path, data, words):
    path = tmp_path / "broken.ply"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        export.load_ply(path)
    assert "broken.ply" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cut_ply_a_missing_one_and_nan_are_refused(tmp_path):
    path = export.save_ply(some_gaussians(), tmp_path / "s.ply")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(InputError, match="promises 7 splats, 6 are there"):
        export.load_ply(path)
    path.write_bytes(whole[:-4] + struct.pack("<f", float("nan")))
    with pytest.raises(InputError, match="quats of splat 6 is not finite"):
        export.load_ply(path)
    with pytest.raises(InputError, match="There is no file"):
        export.load_ply(tmp_path / "none.ply")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = export.save_ply(some_gaussians(), tmp_path / "s.ply")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="disk is full"):
        export.save_ply(some_gaussians(9), path)
    with pytest.raises(InputError, match="disk is full"):
        export.save_mp4(torch.zeros(2, 16, 16, 3), tmp_path / "film.mp4")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.ply"]


def test_points_keep_places_and_colours(tmp_path):
    points = Points(torch.tensor([[0.0, 1, 2], [3, 4, 5]]), torch.tensor([[1.0, 0, 0], [0, 0.5, 1]]))
    with export.save_points(points, tmp_path / "p.ply").open("rb") as file:
        cloud = trimesh.load(file, file_type="ply")
    assert np.allclose(cloud.vertices, points.xyz)
    assert cloud.colors[:, :3].tolist() == [[255, 0, 0], [0, 128, 255]]


def test_only_visible_splats_become_points():
    splats = Gaussians.from_points(torch.rand(4, 3), sh_degree=0)
    with torch.no_grad():
        splats.opacities[:] = torch.logit(torch.tensor([0.05, 0.2, 0.01, 0.9]))
    assert len(export.gaussian_points(splats)) == 2


def test_mp4_has_even_sizes_and_the_pictures(tmp_path):
    grey = torch.linspace(0.2, 0.8, 6)[:, None, None, None].expand(6, 33, 47, 3)
    path = export.save_mp4(grey, tmp_path / "film.mp4", fps=10)
    reader = imageio.get_reader(path)
    about, frames = reader.get_meta_data(), [np.asarray(frame) for frame in reader]
    assert about["size"] == (48, 34)
    assert about["pix_fmt"].startswith("yuv420p")
    assert len(frames) == 6
    assert np.allclose([f.mean() / 255 for f in frames], grey[:, 0, 0, 0], atol=0.03)


def test_gif_has_every_frame(tmp_path):
    frames = torch.rand(5, 20, 30, 3, generator=torch.Generator().manual_seed(0))
    read = imageio.mimread(export.save_gif(frames, tmp_path / "film.gif"))
    assert len(read) == 5
    assert read[0].shape[:2] == (20, 30)


@pytest.mark.parametrize(
    "frames", [torch.zeros(0, 4, 4, 3), torch.zeros(4, 4, 3), [torch.zeros(4, 4, 3), torch.zeros(5, 4, 3)], []]
)
def test_a_film_of_nothing_or_of_mixed_sizes_is_refused(tmp_path, frames):
    with pytest.raises(InputError, match="film"):
        export.save_mp4(frames, tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == []


def test_the_orbit_stays_where_the_training_cameras_are():
    scene = small_scene()
    cameras = export.orbit_cameras(scene, 12)
    assert len(cameras) == 12
    assert (cameras.width, cameras.height) == (25, 17)
    assert torch.allclose(cameras.origins.norm(dim=1), torch.tensor(10.0).sqrt(), atol=1e-3)
    assert torch.allclose(cameras.origins[:, 2], torch.ones(12), atol=1e-3)
    assert torch.allclose(cameras.Ks[0], scene.cameras.Ks[0], atol=1e-3)


def test_from_inside_a_room_the_orbit_follows_the_training_cameras():
    scene = small_scene()
    room = Scene(**{**vars(scene), "aabb": torch.tensor([[-9.0, -9, -9], [9, 9, 9]])})
    cameras = export.orbit_cameras(room, 12, size=50)
    assert cameras.width == 50
    assert torch.allclose(cameras.origins[0], room.cameras.origins[0], atol=1e-5)


def test_export_of_a_run_without_a_model_says_so(tmp_path):
    with pytest.raises(InputError, match="has kept no model"):
        export.export_run(tmp_path, "ply")
    with pytest.raises(InputError, match="There is no run"):
        export.export_run(tmp_path / "none", "ply")
    with pytest.raises(InputError, match='Cannot export "obj"'):
        export.export_run(tmp_path, "obj")


def test_export_of_a_kept_model_writes_all_four_forms(tmp_path, monkeypatch):
    from nsw import models, scenes
    from nsw.models.state import write_json

    scene = small_scene()
    models.save(some_gaussians(40), tmp_path / "models" / "splats")
    write_json(tmp_path / "models" / "splats" / "scene.json", {"scene": "ring", "width": 25})
    monkeypatch.setattr(scenes, "load", lambda name, size=None: scene, raising=False)
    written = [export.export_run(tmp_path, what, n=4) for what in ("ply", "points", "mp4", "gif")]
    assert [path.name for path in written] == ["splats.ply", "splats_points.ply", "splats.mp4", "splats.gif"]
    assert all(path.stat().st_size > 100 for path in written)
