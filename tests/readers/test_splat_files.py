"""Files of splats as other programs write them, and broken ones.

`splats/` holds what PlayCanvas's splat-transform 2.7.1 wrote from the four `.ply` files there: compressed .ply, .glb, and .spz by
Niantic's own library; `*.decoded.ply` is what that program read back from them. The splats are random numbers of ours.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from nsw import formats
from nsw.errors import InputError
from nsw.kernels.projection_reference import covariance
from nsw.models.gaussians import Gaussians

SPLATS = Path(__file__).parent / "splats"
DEGREES = ["degree1", "degree2", "degree3"]


def columns(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a .ply of floats, by code that shares nothing with the reader."""
    header, body = path.read_bytes().split(b"end_header\n", 1)
    names = [line.split()[2] for line in header.decode().splitlines() if line.startswith("property float ")]
    return dict(zip(names, np.array(list(struct.iter_unpack(f"<{len(names)}f", body))).T, strict=True))


def assert_same(splats: Gaussians, expected: dict[str, np.ndarray], atol: float = 1e-6) -> None:
    """Assert that values agree; rotations as covariances, because q and -q, and other axes' signs, are the same splat."""

    def stacked(*names: str) -> torch.Tensor:
        return torch.tensor(np.stack([expected[name] for name in names], 1), dtype=torch.float32)

    n_rest = splats.n_sh - 1
    assert n_rest * 3 == sum(name.startswith("f_rest") for name in expected)
    rest = stacked(*(f"f_rest_{i}" for i in range(3 * n_rest))) if n_rest else torch.zeros(len(splats), 0)
    scales = stacked("scale_0", "scale_1", "scale_2")
    with torch.no_grad():
        close = {
            "means": (splats.means, stacked("x", "y", "z")),
            "scales": (splats.scales, scales),
            "sh0": (splats.sh0[:, 0], stacked("f_dc_0", "f_dc_1", "f_dc_2")),
            "shN": (splats.shN.transpose(1, 2).flatten(1), rest),
            "opacities": (splats.activated_opacities, stacked("opacity")[:, 0].sigmoid()),
            "covariances": (splats.covariances, covariance(stacked("rot_0", "rot_1", "rot_2", "rot_3"), scales.exp())),
        }
    for name, (ours, theirs) in close.items():
        assert torch.allclose(ours, theirs, atol=10 * atol if name == "covariances" else atol, rtol=1e-4), name


@pytest.mark.parametrize("name", [*DEGREES, "two_chunks"])
def test_a_compressed_ply_of_supersplat_reads_as_its_own_reader_reads_it(name):
    assert_same(formats.load(SPLATS / f"{name}.compressed.ply"), columns(SPLATS / f"{name}.compressed.ply.decoded.ply"))


@pytest.mark.parametrize("file", [*(f"{name}.v3.spz" for name in DEGREES), "degree3.v4.spz"])
def test_an_spz_of_niantics_library_reads_as_that_library_reads_it(file):
    assert_same(formats.load(SPLATS / file), columns(SPLATS / f"{file[:7]}.v3.spz.decoded.ply"))


@pytest.mark.parametrize("name", DEGREES)
def test_a_glb_of_another_program_holds_the_splats_it_was_made_of(name):
    assert_same(formats.load(SPLATS / f"{name}.glb"), columns(SPLATS / f"{name}.ply"))


@pytest.mark.parametrize(
    ("form", "suffix", "steps"),
    [
        ("ply", ".ply", {"means": 0.0, "scales": 0.0, "opacities": 0.0, "rgb": 0.0, "shN": 0.0, "angle": 1e-3}),
        ("splat", ".splat", {"means": 0.0, "scales": 1e-5, "opacities": 1 / 255, "rgb": 1 / 255, "angle": 2.0}),
        # 11 and 10 bits between the ends of a chunk, which is 256 splats wide here; 8 bits of colour, opacity and harmonics
        (
            "ply_compressed",
            ".compressed.ply",
            {"means": 2 / 1023, "scales": 4 / 1023, "opacities": 1 / 255, "rgb": 1 / 255, "shN": 8 / 256, "angle": 0.5},
        ),
    ],
)
def test_what_gsplat_exports_is_read_as_it_was(form, suffix, steps, tmp_path):
    from gsplat import export_splats
    from gsplat.exporter import sort_centers

    generator = torch.Generator().manual_seed(1)
    splats = Gaussians.random(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 300, generator, sh_degree=3).requires_grad_(False)
    for name in ("quats", "shN", "scales"):
        splats.params[name].add_(0.3 * torch.randn(splats.params[name].shape, generator=generator))
    splats.opacities.normal_(generator=generator)
    raw = [splats.params[name].clone() for name in ("means", "scales", "quats", "opacities", "sh0", "shN")]
    (tmp_path / f"theirs{suffix}").write_bytes(export_splats(*raw, format=form))
    read = formats.load(tmp_path / f"theirs{suffix}").requires_grad_(False)
    order = torch.arange(300)
    if form != "ply":  # written along a space-filling curve
        order = sort_centers(splats.means, order)
    seen = {
        "means": (read.means, splats.means),
        "scales": (read.scales, splats.scales),
        "opacities": (read.activated_opacities, splats.activated_opacities),
        "rgb": (read.base_rgb.clamp(0, 1), splats.base_rgb.clamp(0, 1)),
        "shN": (read.shN, splats.shN.clamp(-4, 4 - 1 / 32)),
    }
    for name in steps.keys() & seen.keys():
        theirs, ours = seen[name]
        assert float((theirs - ours[order]).abs().max()) <= steps[name] + 1e-6, name
    one, other = (torch.nn.functional.normalize(q.double(), dim=1) for q in (read.quats, splats.quats[order]))
    cosine = (one * other).sum(dim=1).abs().clamp(max=1)
    assert float(2 * torch.rad2deg(torch.acos(cosine)).max()) <= steps["angle"]
    assert ("shN" in steps) == (read.settings.sh_degree == 3)


@pytest.mark.parametrize("name", DEGREES)
def test_our_spz_holds_the_bytes_of_niantics(name, tmp_path):
    ours = formats.save(formats.load(SPLATS / f"{name}.ply"), tmp_path / "ours.spz", up="-y")
    assert gzip.decompress(ours.read_bytes()) == gzip.decompress((SPLATS / f"{name}.v3.spz").read_bytes())


def ply(properties: list[str], rows: np.ndarray, *extra: str, tail: bytes = b"") -> bytes:
    head = ["ply", "format binary_little_endian 1.0", *extra, f"element vertex {len(rows)}", *(f"property {p}" for p in properties)]
    return "\n".join([*head, "end_header\n"]).encode() + rows.tobytes() + tail


def rows_of(expected: dict[str, np.ndarray], names: list[str]) -> np.ndarray:
    return np.stack([expected.get(name, np.zeros(len(expected["x"]))) for name in names], 1).astype("<f4")


def test_a_ply_in_alphabetical_order_as_brush_writes_it(tmp_path):
    expected = columns(SPLATS / "degree3.ply")
    rest = sorted(name for name in expected if name.startswith(("f_", "opacity", "rot", "scale")))
    names = [*rest, "x", "y", "z"]
    path = tmp_path / "brush.ply"
    path.write_bytes(ply([f"float {n}" for n in names], rows_of(expected, names), "comment Vertical axis: y"))
    assert_same(formats.load(path), expected, 1e-12)
    assert formats.up_of(path) == "-y"


def test_a_ply_of_nerfstudio_says_that_z_is_up(tmp_path):
    expected = columns(SPLATS / "degree1.ply")
    names = ["x", "y", "z", "nx", "ny", "nz", *(n for n in expected if n.startswith("f_")), "opacity"]
    names += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    path = tmp_path / "nerfstudio.ply"
    comments = ("comment Generated by Nerfstudio 1.1.5", "comment Vertical Axis: z")
    path.write_bytes(ply([f"float {n}" for n in names], rows_of(expected, names), *comments))
    assert_same(formats.load(path), expected, 1e-12)
    assert formats.up_of(path) == "+z"


def test_a_ply_with_8_bit_colours_doubles_and_faces_behind(tmp_path):
    fields = [("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("red", "u1"), ("green", "u1"), ("blue", "u1"), ("opacity", "<f4")]
    fields += [(name, "<f4") for name in ("rot_0", "rot_1", "rot_2", "rot_3", "scale_0", "scale_1", "scale_2")]
    table = np.zeros(3, np.dtype(fields))
    table["x"], table["red"], table["green"], table["rot_0"] = [1, 2, 3], 255, 51, 1
    words = {"<f8": "double", "<f4": "float", "u1": "uchar"}
    data = ply([f"{words[kind]} {name}" for name, kind in fields], table)
    path = tmp_path / "rgb.ply"
    path.write_bytes(data.replace(b"end_header", b"element face 0\nproperty list uchar int vertex_indices\nend_header"))
    splats = formats.load(path)
    assert splats.means[:, 0].tolist() == [1, 2, 3]
    assert torch.allclose(splats.base_rgb, torch.tensor([1.0, 0.2, 0.0]).expand(3, 3), atol=1e-6)


def test_a_splat_file_written_by_hand(tmp_path):
    path = tmp_path / "two.splat"
    one = struct.pack("<6f8B", 1, 2, 3, 0.5, 1, 2, 255, 0, 51, 128, 255, 128, 128, 128)
    path.write_bytes(one + struct.pack("<6f8B", 0, 0, 0, 0, 1, 1, 0, 0, 0, 255, 128, 128, 128, 128))
    splats = formats.load(path)
    assert torch.allclose(splats.activated_scales[0], torch.tensor([0.5, 1, 2]))
    assert torch.allclose(splats.base_rgb[0], torch.tensor([1.0, 0, 0.2]), atol=1e-6)
    assert torch.allclose(splats.activated_opacities, torch.tensor([128 / 255, 1.0]), atol=2e-6)
    assert splats.quats[0, 0] > 0.99 and splats.quats[1].tolist() == [1, 0, 0, 0]


def spz(version: int, n: int, body: bytes, degree: int = 0, bits: int = 12, flags: int = 0) -> bytes:
    return gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", version, n, degree, bits, flags, 0) + body)


@pytest.mark.parametrize("version", [1, 2])
def test_older_spz_store_halves_and_three_components(tmp_path, version):
    centre = np.array([1.5, -2, 0.25])
    place = (
        centre.astype("<f2").tobytes()
        if version == 1
        else b"".join(int(v * 4096).to_bytes(3, "little", signed=True) for v in centre)
    )
    body = place + bytes([200]) + bytes([127, 255, 0]) + bytes([160, 144, 176]) + bytes([255, 127, 127])
    path = tmp_path / "old.spz"
    path.write_bytes(spz(version, 1, body + b"an extension", flags=2))
    splats = formats.load(path)
    assert torch.allclose(splats.means[0], torch.tensor([1.5, 2.0, -0.25]))  # right, up, back becomes right, down, front
    assert torch.allclose(splats.scales[0], torch.tensor([0.0, -1, 1]))
    assert torch.allclose(splats.activated_opacities, torch.tensor([200 / 255]))
    assert torch.allclose(splats.sh0[0, 0], torch.tensor([(127 / 255 - 0.5) / 0.15, 0.5 / 0.15, -0.5 / 0.15]))
    assert torch.allclose(splats.quats[0], torch.tensor([0.0, 1, 0, 0]), atol=0.01)


def v4(n: int, sizes: list[tuple[int, int]], body: bytes = b"", streams: int = 6, degree: int = 0) -> bytes:
    head = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, n, degree, 12, 0, streams, 32)
    return head + b"".join(struct.pack("<QQ", *size) for size in sizes) + body


def glb(document: object, binary: bytes = bytes(64), length: int | None = None) -> bytes:
    text = json.dumps(document).encode() if not isinstance(document, bytes) else document
    size = 28 + len(text) + len(binary)
    head = struct.pack("<4sIIII", b"glTF", 2, size if length is None else length, len(text), 0x4E4F534A)
    return head + text + struct.pack("<II", len(binary), 0x004E4942) + binary


def document(**accessor: object) -> dict:
    names = ["ROTATION", "SCALE", "OPACITY", "SH_DEGREE_0_COEF_0"]
    points = {"POSITION": 0} | {f"KHR_gaussian_splatting:{name}": 0 for name in names}
    splats = {"KHR_gaussian_splatting": {"colorSpace": "srgb_rec709_display"}}
    return {
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": points, "extensions": splats}]}],
        "buffers": [{"byteLength": 64}],
        "bufferViews": [{"buffer": 0, "byteLength": 64}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 1, "type": "VEC3"} | accessor],
    }


ROUND = document()
ROUND["nodes"] = [{"children": [0]}]
NEEDS = document() | {"extensionsRequired": ["KHR_draco_mesh_compression"]}
LINEAR = document()
LINEAR["meshes"][0]["primitives"][0]["extensions"]["KHR_gaussian_splatting"]["colorSpace"] = "lin_rec709_display"
CHUNKED = "\n".join(
    ["ply", "format binary_little_endian 1.0", "element chunk 9"]
    + [f"property float {end}_{name}" for end in ("min", "max") for name in ("x", "y", "z", "scale_x", "scale_y", "scale_z")]
    + ["element vertex 3", *(f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")), "end_header\n"]
).encode()
HOSTILE = {
    "none of these.txt": (b"hello", "expected .ply, .splat, .spz or .glb"),
    "empty.ply": (b"", "not a .ply"),
    "empty.splat": (b"", "no .splat file: it has 0 bytes"),
    "odd.splat": (bytes(33), "33 bytes, expected a multiple of 32"),
    "nan.splat": (struct.pack("<6f8x", np.nan, 0, 0, 1, 1, 1), "means of splat 0 is not finite"),
    "negative.splat": (struct.pack("<6f8x", 0, 0, 0, 1, -1, 1), "a scale of splat 0 is no length"),
    "nan scale.splat": (struct.pack("<6f8x", 0, 0, 0, 1, np.nan, 1), "a scale of splat 0 is no length"),
    "many.ply": (ply(["float x"], np.zeros(1, "<f4")).replace(b"vertex 1", b"vertex 99999999999"), "are missing"),
    "chunks.ply": (CHUNKED + bytes(999), "3 splats need 1 chunks, its header has 9"),
    "chunks cut.ply": (CHUNKED.replace(b"chunk 9", b"chunk 1") + bytes(50), "promises 3 splats, 0 are there"),
    "chunks vast.ply": (CHUNKED.replace(b"chunk 9", b"chunk 4000000000").replace(b"vertex 3", b"vertex 1024000000000"), "cut off"),
    "random.spz": (b"\x1f\x8b" + bytes(range(99)), "is damaged"),
    "empty.spz": (b"", "not an .spz"),
    "short.spz": (gzip.compress(b"NGSP"), "not an .spz"),
    "magic.spz": (gzip.compress(bytes(64)), "not an .spz"),
    "zero.spz": (spz(3, 0, b""), "promises 0 splats"),
    "version.spz": (spz(9, 1, bytes(20)), "of version 9"),
    "version four.spz": (spz(4, 1, bytes(20)), "version 4 is no gzip stream"),
    "three.spz": (struct.pack("<4sIIBBBB", b"NGSP", 3, 1, 0, 12, 0, 0) + bytes(32), "is a gzip stream, this one is not"),
    "degree.spz": (spz(3, 1, bytes(99), degree=4), "degree 4"),
    "bits.spz": (spz(3, 1, bytes(20), bits=200), "200 bits of fraction"),
    "absurd.spz": (spz(3, 2**32 - 1, bytes(20)), "fewer bytes than its header promises"),
    "cut.spz": (spz(3, 2, bytes(39)), "fewer bytes than its header promises"),
    "cut gzip.spz": (spz(3, 1, bytes(range(20)))[:-9], "cut off or damaged"),
    "checksum.spz": (spz(3, 1, bytes(range(20)))[:-8] + bytes(8), "is damaged"),
    "bomb.spz": (spz(3, 1, bytes(1 << 25)), "cut off or damaged"),
    "v4 table.spz": (v4(1, []), "cut off or damaged"),
    "v4 streams.spz": (v4(1, [(0, 0)], streams=1), "cut off or damaged"),
    "v4 absurd.spz": (v4(2**32 - 1, [(9, 9 * (2**32 - 1))] * 6, bytes(60)), "cut off or damaged"),
    "v4 no zstd.spz": (v4(1, [(9, 9), (1, 1), (3, 3), (3, 3), (4, 4), (0, 0)], bytes(20)), "is damaged"),
    "short.glb": (b"glTF", "expected a header of 20 bytes"),
    "version.glb": (struct.pack("<4sIIII", b"glTF", 1, 20, 0, 0), "version 1"),
    "cut.glb": (glb(document(), length=10**6), "promises 1000000 bytes"),
    "text.glb": (glb(b"{nope"), "its JSON chunk cannot be read"),
    "deep.glb": (glb(b"[" * 100_000), "is damaged"),
    "list.glb": (glb([]), "expected a glTF object"),
    "no splats.glb": (glb({"nodes": [{}]}), "holds no Gaussians"),
    "nodes.glb": (glb({"nodes": 7}), "does not hold together"),
    "round.glb": (glb(ROUND), "hangs in two places"),
    "absurd.glb": (glb(document(count=10**15)), "reaches beyond the binary chunk"),
    "stride.glb": (glb(document(count=2) | {"bufferViews": [{"byteStride": -4}]}), "beyond the binary chunk"),
    "offset.glb": (glb(document(byteOffset=-64)), "beyond the binary chunk"),
    "type.glb": (glb(document(componentType=1)), "does not hold together"),
    "shape.glb": (glb(document(type="VEC2")), "expected 3 numbers"),
    "zero.glb": (glb(document(count=0)), "damaged or empty"),
    "sparse.glb": (glb(document(sparse={})), "sparse accessors"),
    "needs.glb": (glb(NEEDS), "needs the glTF extension KHR_draco_mesh_compression"),
    "linear.glb": (glb(LINEAR), "colour space lin_rec709_display"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_file_gives_one_sentence_and_nothing_is_written(name, tmp_path, capsys):
    from nsw import cli

    data, words = HOSTILE[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        formats.load(path)
    said = str(caught.value)
    assert words in said and name in said and "\n" not in said
    if path.suffix != ".txt":
        assert cli.main(["export", str(path), "ply", "--out", str(tmp_path / "out.ply")]) == 2
        assert words in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    made = []
    real = zlib.decompressobj

    class Counting:
        def __init__(self, *args):
            self.inner = real(*args)

        def decompress(self, data, most):
            out = self.inner.decompress(data, most)
            made.append(len(out))
            return out

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr("nsw.formats.spz_streams.zlib.decompressobj", Counting)
    path = tmp_path / "bomb.spz"
    path.write_bytes(spz(3, 1, bytes(1 << 26)))
    with pytest.raises(InputError):
        formats.load(path)
    assert sum(made) <= 36 + (1 << 24)


@pytest.mark.parametrize("file", ["degree3.v3.spz", "degree3.v4.spz", "degree3.glb", "degree3.compressed.ply", "degree3.ply"])
def test_a_file_cut_anywhere_is_refused_and_never_read_as_less(file, tmp_path):
    whole = (SPLATS / file).read_bytes()
    path = tmp_path / file
    for length in sorted({*range(0, len(whole) - 1, max(1, len(whole) // 40)), len(whole) - 1}):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            formats.load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["degree3.v3.spz", "degree1.glb", "degree1.compressed.ply", "degree1.ply"])
def test_a_file_with_any_byte_changed_is_read_or_refused_in_one_sentence(file, tmp_path):
    whole = bytearray((SPLATS / file).read_bytes())
    rng = np.random.default_rng(0)
    path = tmp_path / file
    for _ in range(60):
        at, before = int(rng.integers(len(whole))), None
        before, whole[at] = whole[at], int(rng.integers(256))
        path.write_bytes(whole)
        whole[at] = before
        try:
            splats = formats.load(path)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert all(bool(torch.isfinite(value).all()) for value in splats.params.values())


def test_what_is_missing_or_a_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        formats.load(tmp_path / "none.spz")
    with pytest.raises(InputError, match="Cannot read"):
        formats.load(tmp_path)
