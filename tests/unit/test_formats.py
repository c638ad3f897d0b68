"""Every format of splats, there and back: exact to its quantisation, in its own axes, whole or not at all."""

from __future__ import annotations

import gzip
import json
import math
import struct

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from nsw import formats
from nsw.errors import InputError
from nsw.formats.spz import save_spz
from nsw.models.gaussians import Gaussians, GaussiansSettings

SH0 = 0.28209479177387814
STEP = 1e-5  # of float32, above the quantisation


def floats(low: float, high: float):
    return st.floats(low, high, width=32)


@st.composite
def gaussians(draw, most: int = 4):
    """Draw splats whose values the narrowest format can hold, zeros and ends of ranges among them."""
    n, degree = draw(st.integers(1, most)), draw(st.integers(0, 3))
    k = (degree + 1) ** 2 - 1

    def table(columns: int, low: float, high: float) -> torch.Tensor:
        size = n * columns
        return torch.tensor(draw(st.lists(floats(low, high), min_size=size, max_size=size))).reshape(n, columns)

    quats = table(4, -1, 1)
    quats[quats.norm(dim=1) < 0.1] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    raw = {
        "means": table(3, -100, 100),
        "scales": table(3, -9, 5),
        "quats": quats,
        "opacities": table(1, -12, 12)[:, 0],
        "sh0": table(3, -2, 2)[:, None],
        "shN": table(3 * k, -0.875, 0.875).reshape(n, k, 3),
    }
    return Gaussians(GaussiansSettings(sh_degree=degree)).fill(**raw)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().amax()) if a.numel() else 0.0


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest angle in degrees between rotations; q and -q are one."""
    a, b = (torch.nn.functional.normalize(q.detach().double(), dim=-1) for q in (a, b))
    return 2 * math.degrees(torch.minimum((a - b).norm(dim=1), (a + b).norm(dim=1)).div(2).clamp(max=1).asin().max())


@settings(max_examples=40, deadline=None)
@given(splats=gaussians(), up=st.sampled_from(["+z", "-y"]))
def test_ply_keeps_every_bit(place, splats, up):
    path = formats.save(splats, place / "a.ply", up=up)
    back = formats.load(path)
    assert formats.up_of(path) == up
    assert all(torch.equal(back.params[name], splats.params[name]) for name in ("means", "scales", "opacities", "sh0", "shN"))
    assert angle(back.quats, splats.quats) < 1e-4


@settings(max_examples=40, deadline=None)
@given(splats=gaussians())
def test_glb_keeps_float32_of_what_it_stores(place, splats):
    back = formats.load(formats.save(splats, place / "a.glb", up="-y"))
    assert all(torch.equal(back.params[name], splats.params[name]) for name in ("means", "sh0", "shN"))
    assert largest(back.scales, splats.scales) < 2e-6
    assert largest(back.activated_opacities, splats.activated_opacities) < 2e-6
    assert angle(back.quats, splats.quats) < 1e-4


@settings(max_examples=40, deadline=None)
@given(splats=gaussians())
def test_spz_is_off_by_half_a_step_at_most_and_then_stays(place, splats):
    once = formats.load(formats.save(splats, place / "a.spz", up="-y"))
    steps = {"means": 2**-12, "scales": 1 / 16, "sh0": 1 / (255 * 0.15)}
    for name, step in steps.items():
        assert largest(once.params[name], splats.params[name]) <= step / 2 + STEP, name
    assert largest(once.shN[:, :3], splats.shN[:, :3]) <= 1 / 32 + 1 / 256 + STEP
    assert largest(once.shN[:, 3:], splats.shN[:, 3:]) <= 1 / 16 + 1 / 256 + STEP  # to 8 bits first, then to fewer
    assert largest(once.activated_opacities, splats.activated_opacities) <= 0.5 / 255 + STEP
    assert angle(once.quats, splats.quats) < 0.27
    again = formats.load(formats.save(once, place / "a.spz", up="-y"))
    for name in ("means", "scales", "opacities", "sh0", "shN"):
        assert largest(once.params[name], again.params[name]) <= STEP, name


@settings(max_examples=40, deadline=None)
@given(splats=gaussians(most=1))
def test_splat_is_off_by_half_a_step_at_most(place, splats):
    back = formats.load(formats.save(splats, place / "a.splat", up="-y"))
    assert torch.equal(back.means, splats.means) and back.settings.sh_degree == 0
    assert largest(back.scales, splats.scales) < 2e-6
    assert largest(back.activated_opacities, splats.activated_opacities) <= 0.5 / 255 + STEP
    shown = (0.5 + SH0 * splats.sh0).clamp(0, 1)
    assert largest(0.5 + SH0 * back.sh0, shown) <= 0.5 / 255 + STEP
    assert angle(back.quats, splats.quats) < 2.0


def some(n: int = 6, degree: int = 3) -> Gaussians:
    generator = torch.Generator().manual_seed(1)
    splats = Gaussians.random(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), n, generator, sh_degree=degree)
    with torch.no_grad():
        for name in ("quats", "shN", "scales"):
            splats.params[name].add_(0.3 * torch.randn(splats.params[name].shape, generator=generator))
    return splats


def test_spz_columns_decoded_from_the_specification(tmp_path):
    splats = some()
    data = gzip.decompress(save_spz(splats, tmp_path / "a.spz", up="-y", sh_bits=(8, 8)).read_bytes())
    magic, version, n, degree, bits, flags, zero = struct.unpack_from("<4sIIBBBB", data)
    assert (magic, version, n, degree, bits, flags, zero) == (b"NGSP", 3, 6, 3, 12, 0, 0)
    assert len(data) == 16 + n * (9 + 1 + 3 + 3 + 4 + 45)
    centre = [int.from_bytes(data[16 + 3 * i : 19 + 3 * i], "little", signed=True) / 4096 for i in range(3)]
    x, y, z = splats.means[0].tolist()
    assert np.allclose(centre, [x, -y, -z], atol=2**-13 + 1e-7)
    at = 16 + 9 * n
    assert abs(data[at] - 255 * float(splats.activated_opacities[0].detach())) <= 0.5 + STEP
    at += n + 3 * n
    assert [data[at + i] for i in range(3)] == [round((s + 10) * 16) for s in splats.scales[0].tolist()]
    (word,) = struct.unpack_from("<I", data, at + 3 * n)
    w, i, j, k = torch.nn.functional.normalize(splats.quats[0], dim=0).tolist()
    xyzw = [i, -j, -k, w]
    missing = word >> 30
    assert abs(xyzw[missing]) == max(map(abs, xyzw))
    others = [(-1) ** (word >> s + 9 & 1) * (word >> s & 511) / 511 * math.sqrt(0.5) for s in (20, 10, 0)]
    sign = math.copysign(1, xyzw.pop(missing))
    assert np.allclose(others, [sign * v for v in xyzw], atol=1e-3)
    at += 3 * n + 4 * n
    assert data[at] == 128 + round(-128 * float(splats.shN[0, 0, 0]))  # the harmonic of y turns round, red comes first
    assert data[at + 7] == 128 + round(128 * float(splats.shN[0, 2, 1]))  # that of x stays


def test_a_wide_scene_gets_fewer_bits_of_fraction_in_an_spz_and_the_widest_none(tmp_path):
    splats = some()
    with torch.no_grad():
        splats.means.mul_(20_000)
    back = formats.load(formats.save(splats, tmp_path / "a.spz", up="-y"))
    assert 2**-13 < largest(back.means, splats.means) <= 2**-8
    with torch.no_grad():
        splats.means.mul_(1e6)
    with pytest.raises(InputError, match="scale the scene down"):
        formats.save(splats, tmp_path / "b.spz")
    assert not (tmp_path / "b.spz").exists()


def test_splat_decoded_from_the_specification(tmp_path):
    splats = some()
    splats.opacities.detach().normal_(generator=torch.Generator().manual_seed(2))
    data = formats.save(splats, tmp_path / "a.splat", up="-y").read_bytes()
    rows = [struct.unpack_from("<6f8B", data, 32 * i) for i in range(len(data) // 32)]
    centres = torch.tensor([row[:3] for row in rows])
    order = torch.cdist(centres, splats.means.detach()).argmin(dim=1)
    assert len(rows) == 6 and sorted(order.tolist()) == list(range(6))
    with torch.no_grad():
        rgba = torch.cat([splats.base_rgb, splats.activated_opacities[:, None]], dim=1).clamp(0, 1)
        quats = torch.nn.functional.normalize(splats.quats, dim=1)
        assert torch.equal(centres, splats.means[order])
        assert torch.allclose(torch.tensor([row[3:6] for row in rows]), splats.activated_scales[order], rtol=1e-6)
        bytes_ = torch.cat([255 * rgba, (128 * quats + 128).clamp(max=255)], dim=1)[order]
        assert float((torch.tensor([row[6:] for row in rows]) - bytes_).abs().max()) <= 0.5 + 1e-3


def test_a_glb_is_gltf_that_trimesh_opens_as_coloured_points(tmp_path):
    splats = some()
    path = formats.save(splats, tmp_path / "a.glb", up="-y")
    cloud = next(iter(trimesh.load(path, force="scene").geometry.values()))
    assert np.allclose(cloud.vertices, splats.means.detach().numpy() * [-1, -1, 1], atol=1e-6)
    assert np.allclose(cloud.colors[:, 0], (255 * splats.base_rgb[:, 0].clamp(0, 1)).round().detach(), atol=1)
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + size])
    (primitive,) = document["meshes"][0]["primitives"]
    assert document["extensionsUsed"] == ["KHR_gaussian_splatting"] and primitive["mode"] == 0
    about = {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }
    assert primitive["extensions"]["KHR_gaussian_splatting"] == about
    stored = {}
    for name, at in primitive["attributes"].items():
        accessor = document["accessors"][at]
        view, columns = document["bufferViews"][accessor["bufferView"]], {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        kind, top = {5126: ("<f4", 1), 5121: ("u1", 255)}[accessor["componentType"]]
        values = np.frombuffer(data, kind, 6 * columns, 28 + size + view["byteOffset"]).reshape(6, columns)
        stored[name.removeprefix("KHR_gaussian_splatting:")] = torch.from_numpy(values / np.float32(top))
    with torch.no_grad():
        quats = torch.nn.functional.normalize(splats.quats, dim=1)[:, [1, 2, 3, 0]] * torch.tensor([-1, -1, 1, 1])  # x, y, z, w
        assert torch.allclose(stored["SCALE"], splats.activated_scales)  # lengths, as the ratified extension has it
        assert torch.allclose(stored["OPACITY"][:, 0], splats.activated_opacities, atol=1e-6)
        assert torch.allclose((stored["ROTATION"] * quats).sum(dim=1).abs(), torch.ones(6), atol=1e-6)
        assert torch.allclose(stored["SH_DEGREE_0_COEF_0"], splats.sh0[:, 0], atol=1e-6)
    assert len(primitive["attributes"]) == 6 + 15 and all(v["byteOffset"] % 4 == 0 for v in document["bufferViews"])


def test_nodes_of_a_glb_place_its_splats(tmp_path):
    splats = some(3, 1)
    path = formats.save(splats, tmp_path / "a.glb", up="-y")
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + size])
    document["nodes"] = [{"children": [1], "translation": [1, 2, 3]}, {"mesh": 0, "scale": [2, 2, 2], "rotation": [0, 0, 1, 0]}]
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + size :]
    path.write_bytes(struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest)
    back = formats.load(path)
    moved = splats.means * torch.tensor([-1.0, -1, 1]) * 2 + torch.tensor([-1.0, -2, 3])  # about z again, in the file's axes
    assert torch.allclose(back.means, moved, atol=1e-5)
    assert torch.allclose(back.scales, splats.scales + math.log(2), atol=1e-5)


@pytest.mark.parametrize("suffix", [".spz", ".glb", ".splat"])
def test_what_was_trained_here_stands_upright_elsewhere(tmp_path, suffix):
    """World +z, up here, is -y in what is read back, and so +y in the axes of .spz and .glb."""
    from nsw.cameras import Cameras, intrinsics, look_at
    from nsw.renderers import render_view

    splats = some(30, 0 if suffix == ".splat" else 3)
    back = formats.load(formats.save(splats, tmp_path / f"a{suffix}"))
    first = splats.means.detach()
    turned = torch.stack([first[:, 0], -first[:, 2], first[:, 1]], dim=1)
    if suffix != ".splat":  # there the largest come first
        assert torch.allclose(back.means, turned, atol=3e-4)
    cameras = Cameras(look_at(torch.tensor([[3.0, 1.0, 1.5]])), intrinsics(50.0, 32, 32), 32, 32)
    turn = torch.eye(4)
    turn[:3, :3] = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    moved = Cameras(cameras.cam_from_world @ turn.T, cameras.Ks, 32, 32)
    with torch.no_grad():
        before, after = render_view(splats, cameras).rgb, render_view(back, moved).rgb
    assert float((before - after).abs().mean()) < 0.01


def test_what_cannot_be_written_leaves_no_file(tmp_path):
    splats = some()
    with torch.no_grad():
        splats.means[2, 1] = float("nan")
    for suffix in formats.SUFFIXES:
        with pytest.raises(InputError, match="means of splat 2 is not finite; it cannot be written"):
            formats.save(splats, tmp_path / f"a{suffix}", up="-y")
        with pytest.raises(InputError, match="no Gaussians to write"):
            formats.save(Gaussians(GaussiansSettings(1)), tmp_path / f"b{suffix}")
    with pytest.raises(InputError, match="ends in .ply, .splat, .spz, .glb"):
        formats.save(some(), tmp_path / "a.obj")
    with pytest.raises(InputError, match='"\\+x": expected'):
        formats.save(some(), tmp_path / "a.spz", up="+x")
    with pytest.raises(InputError, match="from 1 to 8"):
        save_spz(some(), tmp_path / "a.spz", sh_bits=(0, 4))
    assert list(tmp_path.iterdir()) == []
