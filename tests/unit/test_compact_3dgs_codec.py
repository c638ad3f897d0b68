"""The file of a compact scene: what is written is read, sizes are bytes on disk, and hostile bytes get one sentence."""

from __future__ import annotations

import math
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from nsw import export, metrics
from nsw.cameras import orbit
from nsw.errors import InputError
from nsw.methods import compact_3dgs_bits as bits_of
from nsw.methods import compact_3dgs_codec as codec
from nsw.methods import compact_3dgs_inspect as inspect
from nsw.methods import compact_3dgs_places as places_of
from nsw.methods import compact_3dgs_reader as reader
from nsw.models.compact_gaussians import CompactGaussians, CompactSettings
from nsw.models.gaussians import Gaussians
from nsw.models.morton import interleave, separate
from nsw.models.neural_colour import NeuralColourSettings
from nsw.renderers import render_view

BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
COLOUR = NeuralColourSettings(n_levels=3, log2_entries=8, n_min=4, n_max=16, width=16)
VIEW = orbit(1, 4.0, 20.0, width=32, height=32)
FULL = dict(sh_degree=0, colour=COLOUR, n_stages=3, log2_codewords=4)
KINDS = {"full": FULL, "harmonics": dict(sh_degree=2), "codes": dict(sh_degree=1, n_stages=2, log2_codewords=5)}


def a_model(n: int = 120, **settings) -> CompactGaussians:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = CompactGaussians.from_gaussians(
        Gaussians.random(BOX, n, generator, sh_degree=2, opacity=0.5), CompactSettings(**settings)
    )
    with torch.no_grad():
        model.scales.copy_(torch.log(0.05 + 0.2 * torch.rand(n, 3, generator=generator)))
        model.quats.copy_(torch.randn(n, 4, generator=generator))
        model.opacities.copy_(torch.randn(n, generator=generator))
        model.mask[: n // 6] = -9.0
        if model.field is not None:
            model.field.table.copy_(0.3 * torch.randn(model.field.table.shape, generator=generator))
            model.field.ready.fill_(True)
    model.fit_codebooks()
    return model


@pytest.mark.parametrize("bits", [1, 5, 16])
def test_packed_numbers_come_back_and_take_their_bits(bits):
    values = np.random.default_rng(0).integers(0, 1 << bits, 77)
    data = bits_of.pack(values, np.full(77, bits))
    assert len(data) == math.ceil(77 * bits / 8) and np.array_equal(bits_of.unpack(data, np.full(77, bits)), values)


def test_huffman_is_a_full_prefix_code_within_one_bit_of_the_entropy():
    rng = np.random.default_rng(0)
    for p in (np.ones(64), 0.5 ** np.arange(30), 1.0 / np.arange(1, 257)):
        symbols = rng.choice(len(p), 4000, p=p / p.sum())
        lengths = bits_of.code_lengths(np.bincount(symbols, minlength=len(p)))
        assert (0.5 ** lengths[lengths > 0].astype(float)).sum() == 1.0  # Kraft, with equality
        mean, least = lengths[symbols].mean(), bits_of.entropy_bits(symbols)
        assert least <= mean < least + 1
        used = np.flatnonzero(lengths)
        words = {format(int(w), f"0{n}b") for w, n in zip(bits_of.code_words(lengths)[used], lengths[used], strict=True)}
        assert len(words) == len(used) and not any(a != b and b.startswith(a) for a in words for b in words)


def test_no_prefix_code_is_shorter():
    """Against all length assignments that fulfil Kraft's inequality, by brute force."""
    from itertools import product

    counts = np.array([7, 3, 2, 2, 1])
    best = min(np.dot(counts, n) for n in product(range(1, 6), repeat=5) if sum(0.5**k for k in n) <= 1)
    assert np.dot(counts, bits_of.code_lengths(counts)) == best


def test_steep_counts_stay_within_fifteen_bits():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = bits_of.code_lengths(fibonacci)
    assert lengths.max() <= 15 and lengths.min() >= 1 and (0.5 ** lengths.astype(float)).sum() == 1.0


SKEWED = np.minimum(np.random.default_rng(1).geometric(0.4, 900), 63)


@pytest.mark.parametrize("symbols", [[3] * 50, [0], [0, 63] * 9, list(range(64)), SKEWED], ids=len)
def test_coded_symbols_come_back(symbols):
    for huffman in (False, True):
        data = bits_of.encode(symbols, 6, huffman)
        assert np.array_equal(bits_of.decode(data, len(symbols), 6), symbols)
    assert len(bits_of.encode(symbols, 6)) <= len(bits_of.encode(symbols, 6, False))


def test_morton_numbers_come_back_and_near_cells_share_their_first_bits():
    cells = np.random.default_rng(0).integers(0, 1 << 16, (200, 3))
    code = interleave(torch.from_numpy(cells), places_of.AXIS_BITS)
    assert np.array_equal(separate(code, places_of.AXIS_BITS).numpy(), cells)
    half = code >> 45
    assert np.array_equal(half.numpy(), (cells[:, 0] >> 15) * 4 + (cells[:, 1] >> 15) * 2 + (cells[:, 2] >> 15))


@pytest.mark.parametrize("n", [1, 2, 3000])
def test_sorted_places_come_back_and_save_the_order(n):
    code = np.sort(np.random.default_rng(0).integers(0, 1 << 48, n).astype(np.uint64))
    for differences in (False, True):
        assert np.array_equal(places_of.decode(places_of.encode(code, differences), n), code)
    if n > 1000:
        saved = 8 * (len(places_of.encode(code, False)) - len(places_of.encode(code))) / n
        order = math.lgamma(n + 1) / math.log(2) / n  # log2 n! bits say an order that nobody asked for
        assert order - 2.5 < saved <= order


def test_equal_places_come_back():
    code = np.array([0, 0, 5, 5, 5, (1 << 48) - 1], np.uint64)
    assert np.array_equal(places_of.decode(places_of.encode(code), 6), code)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_written_scene_is_read_again(kind, coded, tmp_path):
    model = a_model(**KINDS[kind])
    again = reader.load(codec.save(model, tmp_path / "scene.nswc", coded=coded))
    assert len(again) == int(model.kept.sum()) and bool(again.kept.all())
    order = (again.means[:, None] - model.means[model.kept]).norm(dim=-1).argmin(dim=1)  # the file has an order of its own
    assert len(set(order.tolist())) == len(order)
    there = model.coded()
    step = 2.1 / (1 << 16)
    assert float((again.means - model.means[model.kept][order]).detach().abs().max()) < step
    o = there.opacities.sigmoid()[model.kept][order] - again.opacities.sigmoid()
    assert float(o.detach().abs().max()) <= (0.5 / 255 if coded else 0.5 / 65535) + 1e-5
    assert torch.allclose(again.own_scales, there.own_scales[model.kept][order], rtol=3e-3, atol=3e-4)
    assert torch.allclose(normalize(again.quats, dim=1), normalize(there.quats[model.kept][order], dim=1), atol=3e-3)
    pictures = [one.render_view(VIEW).rgb.detach() for one in (model, again)]
    assert metrics.psnr(pictures[1], pictures[0].clamp(0, 1)) > 35


def test_sizes_are_bytes_on_disk_and_coding_never_costs(tmp_path):
    model = a_model(600, **FULL)
    plain, coded = (codec.save(model, tmp_path / f"{c}.nswc", coded=c) for c in (False, True))
    for path in (plain, coded):
        assert sum(reader.sizes(path).values()) == path.stat().st_size
    by_plain, by_coded = reader.sizes(plain), reader.sizes(coded)
    assert all(by_coded[name] <= by_plain[name] for name in by_plain)
    n = int(model.kept.sum())
    assert by_plain["places"] == 1 + 6 * n and by_plain["scales"] == 3 * (5 + math.ceil(4 * n / 8))
    ply = export.save_ply(Gaussians.random(BOX, n, sh_degree=3), tmp_path / "plain.ply")
    parts = inspect.ply_sizes(ply, export.load_ply(ply))
    assert sum(parts.values()) == ply.stat().st_size and 0 < parts["header"] < 2500
    assert sum(inspect.bits_per_splat(parts, n).values()) == pytest.approx(8 * ply.stat().st_size / n)
    assert inspect.grown(parts, n, 2 * n) == pytest.approx(2 * ply.stat().st_size - parts["header"])
    assert inspect.file_sizes(ply, export.load_ply(ply)) == parts and inspect.file_sizes(coded, model) == by_coded
    row = inspect.file_row("coded", coded, reader.load(coded), 30.0)
    assert row["kB"] == coded.stat().st_size / 1000 and row["splats"] == n
    assert row["MB with a million splats"] == pytest.approx(inspect.grown(by_coded, n, 1_000_000) / 1e6)


def test_fewer_stages_are_a_coarser_scene_of_the_same_splats(tmp_path):
    """Read from a file of all stages, or from a file of fewer."""
    model = a_model(400, **FULL)
    path = codec.save(model, tmp_path / "scene.nswc")
    full = reader.load(path)
    apart = []
    for stages in (0, 1, 2, 3):
        some = reader.load(path, stages)
        assert torch.equal(some.means, full.means)
        apart.append(float((some.own_scales - full.own_scales).detach().square().mean().sqrt()))
        if stages:
            written = reader.decode(codec.encode(model, stages=stages))
            assert torch.equal(written.own_scales, some.own_scales) and torch.equal(written.quats, some.quats)
    assert apart[0] > apart[1] > apart[2] > apart[3] == 0


def test_a_dead_zone_makes_zeros_and_a_smaller_file():
    model = a_model(**FULL)
    wide = reader.decode(codec.encode(model, dead_zone=0.2))
    assert float((wide.field.table == 0).float().mean()) > 0.4
    assert len(codec.encode(model, dead_zone=0.2)) < len(codec.encode(model))


def test_a_fresh_process_draws_the_same_picture(tmp_path):
    path = codec.save(a_model(**FULL), tmp_path / "scene.nswc")
    here = reader.load(path).render_view(VIEW).rgb.detach()
    program = (
        "import sys, torch\n"
        "from nsw.cameras import orbit\n"
        "from nsw.methods import compact_3dgs_reader as reader\n"
        "picture = reader.load(sys.argv[1]).render_view(orbit(1, 4.0, 20.0, width=32, height=32)).rgb.detach()\n"
        "open(sys.argv[2], 'wb').write(picture.numpy().tobytes())\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path), str(tmp_path / "picture")], check=True, timeout=120)
    there = torch.frombuffer(bytearray((tmp_path / "picture").read_bytes()), dtype=torch.float32).reshape(here.shape)
    assert torch.equal(here, there)


def test_a_model_without_splats_is_not_written(tmp_path):
    model = a_model(**FULL)
    with torch.no_grad():
        model.mask.fill_(-9.0)
    with pytest.raises(InputError, match="no splat"):
        codec.save(model, tmp_path / "scene.nswc")
    assert not list(tmp_path.iterdir())


def sealed(data: bytes) -> bytes:
    """Return the bytes with the checksum that fits them, so that what is behind it is met."""
    return data[: codec.HEADER.size - 4] + struct.pack("<I", zlib.crc32(data[codec.HEADER.size :])) + data[codec.HEADER.size :]


def test_files_that_are_none_get_one_sentence(tmp_path):
    path, good = tmp_path / "scene.nswc", codec.encode(a_model(**FULL))
    bad = {
        "empty": b"",
        "another": b"ply\nformat",
        "short": good[:20],
        "cut": good[:-1],
        "longer": good + b"\0",
        "newer": good[:4] + b"\2" + good[5:],
    }
    bad["damaged"] = good[:500] + bytes([good[500] ^ 1]) + good[501:]
    for data in bad.values():
        path.write_bytes(data)
        for read in (reader.load, reader.sizes):
            with pytest.raises(InputError) as caught:
                read(path)
            said = str(caught.value)
            assert said.startswith(f"{path} is not a compact scene") and "\n" not in said and len(said) < 300, said
    with pytest.raises(InputError, match="There is no file"):
        reader.load(tmp_path / "none")
    with pytest.raises(InputError, match="Cannot read"):
        reader.load(tmp_path)


def header_with(good: bytes, **changes) -> bytes:
    names = ["magic", "version", "mode", "n", "degree", "stages", "log2", *(f"box{i}" for i in range(6)), "n_levels", "n_features"]
    names += ["log2_entries", "n_min", "n_max", "width", *(f"colour{i}" for i in range(6)), "checksum"]
    values = dict(zip(names, codec.HEADER.unpack_from(good), strict=True)) | changes
    return sealed(codec.HEADER.pack(*values.values()) + good[codec.HEADER.size :])


@pytest.mark.parametrize("changes", [
    dict(n=2**32 - 1), dict(n=0), dict(n=101), dict(mode=7), dict(degree=200), dict(stages=255), dict(stages=0), dict(log2=31),
    dict(box0=math.nan), dict(box0=9.0), dict(box3=math.inf), dict(n_levels=255), dict(n_features=255), dict(log2_entries=255),
    dict(log2_entries=24, n_max=4096), dict(n_min=0), dict(n_min=60000), dict(width=65535), dict(width=17), dict(colour0=5.0),
    dict(degree=2), dict(n_levels=0),
], ids=str)  # fmt: skip
def test_hostile_headers_get_one_sentence_and_no_memory(changes, tmp_path):
    path = tmp_path / "scene.nswc"
    path.write_bytes(header_with(codec.encode(a_model(**FULL)), **changes))
    with pytest.raises(InputError) as caught:
        reader.load(path)
    assert re.fullmatch(r".* is not a compact scene that can be read: .*; copy or write the file again\.", str(caught.value))


@pytest.mark.parametrize("coded", [False, True])
def test_hostile_bytes_behind_a_fitting_checksum_never_crash(coded, tmp_path):
    """Whatever a forger changes, the answer is a finite model of the promised size or one sentence."""
    good, rng, refused = codec.encode(a_model(60, **FULL), coded=coded), np.random.default_rng(0), 0
    for _ in range(150):
        data = bytearray(good)
        for _ in range(int(rng.integers(1, 6))):
            begin = 8 if rng.random() < 0.5 else codec.HEADER.size
            data[int(rng.integers(begin, len(data) if begin > 8 else 300))] = int(rng.integers(0, 256))
        try:
            model = reader.decode(sealed(bytes(data)))
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters()) and len(model) <= 8 * len(good)
        assert bool(torch.isfinite(render_view(model, VIEW).rgb).all())
    assert refused > 20


def test_contradicting_code_words_are_refused():
    good = bits_of.encode(SKEWED, 6)
    assert good[0] == bits_of.HUFFMAN
    for lengths in (np.zeros(64, int), np.full(64, 1), np.full(64, 7), np.array([1, 2] + [0] * 62)):
        with pytest.raises(ValueError, match="contradict"):
            bits_of.decode(good[:1] + bits_of.pack(lengths, np.full(64, 4)) + good[33:], 900, 6)
    with pytest.raises(ValueError, match="promised"):
        bits_of.decode(good[:-20], 900, 6)
    with pytest.raises(ValueError, match="not known"):
        bits_of.decode(b"\7" + good[1:], 900, 6)
