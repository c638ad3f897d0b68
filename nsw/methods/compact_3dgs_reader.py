"""Read the file of a compact scene. Every number in it may be wrong or hostile: one clear sentence is the answer to that."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nsw.errors import InputError
from nsw.formats.checks import read_file
from nsw.methods import compact_3dgs_bits as bits_of
from nsw.methods import compact_3dgs_places as places_of
from nsw.methods.compact_3dgs_codec import CODED, HEADER, LENGTHS, MAGIC, PARTS, PEAK, VERSION, Head
from nsw.models.compact_gaussians import SMALLEST, CompactGaussians
from nsw.models.morton import separate
from nsw.models.neural_colour import NeuralColour, NeuralColourSettings
from nsw.models.residual_codebooks import total

LIMITS = {"n_levels": 32, "n_features": 16, "log2_entries": 24, "width": 1024, "n_stages": 16, "log2_codewords": 12}


def _need(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)


def read_head(data: bytes) -> Head:
    """Return the header, once magic, version, checksum and every number in it have been looked at.

    Raises:
        ValueError: with the reason.
    """
    _need(data[:4] == MAGIC, "it does not begin as one")
    _need(len(data) >= HEADER.size + LENGTHS.size, "it ends within its header")
    values = HEADER.unpack_from(data)
    _need(values[1] == VERSION, f"it has version {values[1]}, and this nsw reads version {VERSION}")
    _need(zlib.crc32(data[HEADER.size :]) == values[-1], "its checksum does not fit: it is damaged or cut off")
    (mode, n, degree, stages, log2), box, sizes, colour_box = values[2:7], values[7:13], values[13:19], values[19:25]
    _need(mode in (0, CODED), f"it is in a mode {mode} that is not known")
    _need(0 < n <= 8 * len(data), f"it promises {n} splats in {len(data)} bytes")
    _need(degree <= 3 and stages <= LIMITS["n_stages"], "its harmonics or its codebooks are more than can be")
    _need((1 <= log2 <= LIMITS["log2_codewords"]) == (stages > 0), f"it has codebooks of 2^{log2} words in {stages} stages")
    _need(all(map(math.isfinite, box)) and all(a < b for a, b in zip(box[:3], box[3:], strict=True)), "its box is none")
    colour = _colour(sizes, colour_box, degree) if sizes[0] else None
    return Head(mode, n, degree, stages, log2, box, colour)


def _colour(sizes: tuple, box: tuple, degree: int) -> NeuralColourSettings:
    settings = NeuralColourSettings(box, *sizes)
    names = ("n_levels", "n_features", "log2_entries", "width")
    _need(all(1 <= getattr(settings, name) <= LIMITS[name] for name in names), "its colour field has impossible sizes")
    _need(settings.n_min <= settings.n_max, "its colour field has impossible sizes")
    _need(all(map(math.isfinite, box)) and degree == 0, "its colour field has impossible values")
    return settings


def split(data: bytes) -> tuple[Head, dict[str, bytes]]:
    """Return the header and the parts by name.

    Raises:
        ValueError: with the reason.
    """
    head = read_head(data)
    lengths = LENGTHS.unpack_from(data, HEADER.size)
    begin = HEADER.size + LENGTHS.size
    _need(begin + sum(lengths) == len(data), "the lengths of its parts do not add up")
    parts = {}
    for name, length in zip(PARTS, lengths, strict=True):
        parts[name], begin = data[begin : begin + length], begin + length
    return head, parts


def _halves(data: bytes, shape: tuple[int, ...], what: str) -> Tensor:
    """Return half floats as float32, all of them finite."""
    _need(len(data) == 2 * math.prod(shape), f"its {what} have the wrong length")
    values = torch.from_numpy(np.frombuffer(data, "<f2").astype(np.float32)).reshape(shape)
    _need(bool(torch.isfinite(values).all()), f"its {what} are not finite")
    return values


def _streams(data: bytes, n: int, what: str) -> list[bytes]:
    """Return n streams, each of which stands behind its length."""
    streams = []
    for _ in range(n):
        _need(len(data) >= 4, f"its {what} end too soon")
        length = int.from_bytes(data[:4], "little")
        _need(length <= len(data) - 4, f"its {what} end too soon")
        streams.append(data[4 : 4 + length])
        data = data[4 + length :]
    return streams


def _codes(data: bytes, head: Head, what: str) -> np.ndarray:
    """Return the indices [N, L] of one attribute."""
    return np.stack([bits_of.decode(s, head.n, head.log2_codewords) for s in _streams(data, head.n_stages, what)], axis=1)


def _signed(data: bytes, n: int, bits: int, what: str) -> Float[Tensor, "n"]:
    """Return numbers that stand behind their largest absolute value."""
    _need(len(data) > PEAK.size, f"its {what} end too soon")
    peak, half = PEAK.unpack_from(data)[0], (1 << (bits - 1)) - 1
    _need(math.isfinite(peak) and 0 < peak < 1e6, f"its {what} are not finite")
    entries = torch.from_numpy(bits_of.decode(data[PEAK.size :], n, bits)) - (half + 1)
    return entries.double() / half * peak


def _shapes(head: Head, parts: dict[str, bytes], stages: int | None) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 4"]]:
    """Return log scales and quaternions."""
    if head.n_stages == 0:
        return _halves(parts["scales"], (head.n, 3), "scales"), _halves(parts["rotations"], (head.n, 4), "rotations")
    words = _halves(parts["codewords"], (head.n_stages << head.log2_codewords, 7), "codewords").reshape(-1)
    split_at = 3 * (head.n_stages << head.log2_codewords)
    out = []
    for name, book, size in (("scales", words[:split_at], 3), ("rotations", words[split_at:], 4)):
        indices = torch.from_numpy(_codes(parts[name], head, name))
        out.append(total(indices, book.reshape(head.n_stages, -1, size), stages))
    return out[0].clamp_min(SMALLEST).log(), out[1]


@torch.no_grad()
def _fill_field(field: NeuralColour, head: Head, parts: dict[str, bytes]) -> None:
    field.ready.fill_(True)
    field.table.copy_(_signed(parts["table"], field.table.numel(), head.value_bits, "table").reshape(field.table.shape))
    weights = list(field.network.parameters())
    for weight, stream in zip(weights, _streams(parts["network"], len(weights), "weights"), strict=True):
        weight.copy_(_signed(stream, weight.numel(), head.value_bits, "weights").reshape(weight.shape))


def _field_fits(head: Head, parts: dict[str, bytes]) -> None:
    """Refuse a colour field that is larger than the bytes that would fill it, before it is made."""
    from nsw.kernels.hash_encoding import hash_levels
    from nsw.models.neural_colour import network_sizes

    c = head.colour
    n_entries = hash_levels(c.n_levels, c.n_min, c.n_max, c.log2_entries).n_rows * c.n_features
    _need(n_entries <= 8 * len(parts["table"]), "its colour field promises more than is there")
    _need(sum(a * b for a, b in network_sizes(c)) <= 8 * len(parts["network"]), "its colour field promises more than is there")


def decode(data: bytes, stages: int | None = None) -> CompactGaussians:
    """Return the model that the bytes of a file hold; nothing but the bytes is asked.

    Args:
        stages: read the codes of scales and rotations up to here only; a prefix of a code is a coarser code.

    Raises:
        ValueError: with the reason, when they hold none.
    """
    head, parts = split(data)
    if head.colour is not None:
        _field_fits(head, parts)
    low, high = torch.tensor(head.box, dtype=torch.float64).reshape(2, 3)
    code = places_of.decode(parts["places"], head.n).astype(np.int64)
    cells = separate(torch.from_numpy(code), places_of.AXIS_BITS)
    opacities = torch.from_numpy(bits_of.decode(parts["opacities"], head.n, head.value_bits)) / ((1 << head.value_bits) - 1)
    scales, quats = _shapes(head, parts, stages)
    n_sh = (head.sh_degree + 1) ** 2
    sh = torch.zeros(head.n, 1, 3) if head.colour else _halves(parts["harmonics"], (head.n, n_sh, 3), "harmonics")
    model = CompactGaussians(head.settings)
    if head.colour is not None:
        _fill_field(model.field, head, parts)
    return model.fill(
        means=low + cells / ((1 << places_of.AXIS_BITS) - 1) * (high - low),
        scales=scales,
        quats=quats,
        opacities=opacities.clamp(1e-6, 1 - 1e-6).logit(),
        sh0=sh[:, :1],
        shN=sh[:, 1:],
    )


def _refused(path: Path | str, error: Exception) -> InputError:
    return InputError(f"{path} is not a compact scene that can be read: {str(error).rstrip('.')}; copy or write the file again.")


def load(path: Path | str, stages: int | None = None) -> CompactGaussians:
    """Return the model of a file; see `decode`.

    Raises:
        InputError: one sentence, for whatever is wrong with the file.
    """
    data = read_file(Path(path))
    try:
        return decode(data, stages)
    except (ValueError, struct.error) as error:
        raise _refused(path, error) from error


def sizes(path: Path | str) -> dict[str, int]:
    """Return how many bytes of a file each part takes; their sum is the size of the file.

    Raises:
        InputError: as `load`.
    """
    data = read_file(Path(path))
    try:
        parts = split(data)[1]
    except (ValueError, struct.error) as error:
        raise _refused(path, error) from error
    return {"header": HEADER.size + LENGTHS.size} | {name: len(part) for name, part in parts.items()}
