"""The file of a compact scene: a real stream of bits, and a reader that trusts none of them.

Layout, little-endian: a header of fixed size with a checksum of all that follows it, the lengths of the parts, the parts.
Nothing is allocated before the bytes that would fill it are known to be there.

| part | plain | coded |
|---|---|---|
| places | 48 bits | steps along Morton's curve, 16 bits an axis |
| opacities | 16 bits | 8 bits, Huffman |
| scales, rotations | an index a stage, or half floats | the same, Huffman |
| codewords | half floats | half floats |
| harmonics | half floats | half floats |
| table, network | 16 bits | 8 bits, small entries of the table zeroed, Huffman |
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nsw.errors import InputError
from nsw.methods import compact_3dgs_bits as bits_of
from nsw.methods import compact_3dgs_places as places_of
from nsw.models.compact_gaussians import CompactGaussians, CompactSettings
from nsw.models.morton import interleave
from nsw.models.neural_colour import NeuralColourSettings
from nsw.models.residual_codebooks import assign
from nsw.models.state import write_bytes

MAGIC, VERSION = b"NSWC", 1
HEADER = struct.Struct("<4sBBIBBB6fBBBHHH6fI")  # in the order of `Head.pack`
PARTS = ("places", "opacities", "scales", "rotations", "codewords", "harmonics", "table", "network")
LENGTHS = struct.Struct(f"<{len(PARTS)}I")
PEAK = struct.Struct("<f")
PLAIN, CODED = 0, 1
DEAD_ZONE = 0.02  # the paper takes 0.1, for tables whose entries are larger


@dataclass(frozen=True)
class Head:
    """What the header says besides the checksum."""

    mode: int
    n: int
    sh_degree: int
    n_stages: int
    log2_codewords: int
    box: tuple[float, ...]  # of the places
    colour: NeuralColourSettings | None

    @property
    def value_bits(self) -> int:
        """Bits of an opacity, of an entry of the table and of a weight of the network."""
        return 8 if self.mode == CODED else 16

    @property
    def settings(self) -> CompactSettings:
        """Settings of the model that the file decodes to: its codes have become numbers."""
        return CompactSettings(sh_degree=self.sh_degree, colour=self.colour)

    def pack(self, checksum: int) -> bytes:
        c = self.colour or NeuralColourSettings(n_levels=0, n_features=0, log2_entries=0, n_min=0, n_max=0, width=0)
        sizes = (c.n_levels, c.n_features, c.log2_entries, c.n_min, c.n_max, c.width)
        own = (MAGIC, VERSION, self.mode, self.n, self.sh_degree, self.n_stages, self.log2_codewords, *self.box)
        return HEADER.pack(*own, *sizes, *c.box, checksum)


def _levels(values: Float[Tensor, "*n"], bits: int) -> np.ndarray:
    """Return values in [0, 1] as whole numbers below 2^bits."""
    top = (1 << bits) - 1
    return (values.detach().double().clamp(0, 1) * top).round().long().cpu().numpy()


def _signed(values: Float[Tensor, "*n"], bits: int, coded: bool, dead_zone: float = 0.0) -> bytes:
    """Return the largest absolute value, and values as whole numbers around 2^(bits - 1), which is zero, of that scale."""
    values = torch.where(values.abs() > dead_zone, values, 0.0).detach().double().cpu()
    peak, half = float(values.abs().amax().clamp_min(1e-6)), (1 << (bits - 1)) - 1
    return PEAK.pack(peak) + bits_of.encode(((values / peak * half).round().long() + half + 1).numpy(), bits, coded)


def _half(values: Tensor) -> bytes:
    return values.detach().cpu().numpy().astype("<f2").tobytes()


@torch.no_grad()
def encode(gaussians: CompactGaussians, coded: bool = True, dead_zone: float = DEAD_ZONE, stages: int | None = None) -> bytes:
    """Return the kept splats as the bytes of a file.

    Args:
        coded: 8 bits, Morton's order and Huffman's code, the paper's post-processing; False keeps everything but the order at
            a fixed length.
        dead_zone: entries of the colour field's table at most this large are written as zeros.
        stages: write this many indices of a code, at least one; None writes all.
    """
    keep = gaussians.kept.nonzero()[:, 0]
    if len(keep) == 0:
        raise InputError("There is no splat to write: the mask keeps none; train with a smaller mask_weight.")
    splats, codes = gaussians, (gaussians.scale_codes, gaussians.quat_codes)
    fitted = codes[0] is not None and bool(codes[0].ready)
    low, high = splats.means[keep].amin(0), splats.means[keep].amax(0)
    span = (high - low).clamp_min(1e-6)
    cells = torch.from_numpy(_levels((splats.means[keep] - low) / span, places_of.AXIS_BITS))
    morton = interleave(cells, places_of.AXIS_BITS).numpy().astype(np.uint64)
    order = np.argsort(morton, kind="stable")
    keep = keep[torch.from_numpy(order).to(keep.device)]
    n_stages, log2 = gaussians.settings.n_stages, gaussians.settings.log2_codewords
    stages, log2 = (min(max(stages or n_stages, 1), n_stages), log2) if fitted else (0, 0)
    degree, colour = (0, gaussians.settings.colour) if splats.has_field else (gaussians.settings.sh_degree, None)
    head = Head(CODED if coded else PLAIN, len(keep), degree, stages, log2, (*low.tolist(), *(low + span).tolist()), colour)
    parts = dict.fromkeys(PARTS, b"")
    parts["places"] = places_of.encode(morton[order], coded)
    parts["opacities"] = bits_of.encode(_levels(splats.opacities[keep].sigmoid(), head.value_bits), head.value_bits, coded)
    shapes = {"scales": splats.own_scales[keep], "rotations": torch.nn.functional.normalize(splats.quats[keep], dim=-1)}
    for (name, value), book in zip(shapes.items(), codes, strict=True):
        if fitted:
            indices = assign(value, book.codewords[:stages]).T.cpu().numpy()
            parts[name] = _streams([bits_of.encode(stage, log2, coded) for stage in indices])
        else:
            parts[name] = _half(value.log() if name == "scales" else value)
    if fitted:
        parts["codewords"] = b"".join(_half(book.codewords[:stages]) for book in codes)
    if not splats.has_field:
        parts["harmonics"] = _half(splats.sh[keep])
    else:
        parts["table"] = _signed(splats.field.table, head.value_bits, coded, dead_zone if coded else 0.0)
        parts["network"] = _streams([_signed(p, head.value_bits, coded) for p in splats.field.network.parameters()])
    body = LENGTHS.pack(*(len(part) for part in parts.values())) + b"".join(parts.values())
    return head.pack(zlib.crc32(body)) + body


def _streams(streams: Iterable[bytes]) -> bytes:
    """Return streams one behind the other, each behind its length."""
    return b"".join(len(stream).to_bytes(4, "little") + stream for stream in streams)


def save(gaussians: CompactGaussians, path: Path | str, **options) -> Path:
    """Write a file of the kept splats, whole or not at all; options as in `encode`."""
    write_bytes(Path(path), encode(gaussians, **options))
    return Path(path)
