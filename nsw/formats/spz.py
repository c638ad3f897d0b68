"""Gaussians as .spz (Niantic): fixed-point columns, compressed. Versions 1 to 3 (gzip) and 4 (zstd) are read, 3 is written.

After a header of 16 bytes come the columns of all splats, one after the other:

| column | bytes a splat | value |
|---|---|---|
| centre | 9 | 3 x 24-bit integers / 2^fraction_bits (version 1: 3 x float16) |
| opacity | 1 | a / 255 |
| colour | 3 | harmonic (c / 255 - 0.5) / 0.15 |
| scale | 3 | log scale s / 16 - 10 |
| rotation | 4 | the three smallest components, sign and 9 bits each, and which one is missing (versions 1, 2: x y z in 3 bytes) |
| harmonics | 0, 9, 24 or 45 | (h - 128) / 128, the channel changing fastest |

The file's axes are right, up, back. See github.com/nianticlabs/spz.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nsw.errors import InputError
from nsw.formats.checks import X_SIGNS, built, degree_of, half_turn, logit, raw_values, read_file, y_down
from nsw.formats.spz_streams import columns_of_gzip, columns_of_zstd
from nsw.models.gaussians import Gaussians
from nsw.models.state import write_bytes

_COLOUR = 0.15  # of the stored harmonic: wider than SH0, so that colours beyond [0, 1] survive
_REST = (0, 3, 8, 15)


class Header(NamedTuple):
    """The 16 bytes that begin every version."""

    version: int
    n: int
    degree: int
    fraction_bits: int

    @classmethod
    def read(cls, path: Path, head: bytes) -> Header:
        """Return the header.

        Raises:
            InputError: when it is no .spz, of another version, empty or of another degree.
        """
        if len(head) < 16 or head[:4] != b"NGSP":
            raise InputError(f"{path} is not an .spz file, or it is cut off: expected a header of 16 bytes that begins with NGSP.")
        version, n, degree, fraction_bits = struct.unpack_from("<IIBB", head, 4)
        if not 1 <= version <= 4:
            raise InputError(f"{path} is an .spz file of version {version}: versions 1 to 4 are read here.")
        if n == 0:
            raise InputError(f"{path} is empty: its header promises 0 splats.")
        if degree > 3:
            raise InputError(f"{path} holds harmonics of degree {degree}: degrees 0 to 3 are read here.")
        if fraction_bits > 23:
            raise InputError(f"{path} is damaged: centres of 24 bits cannot have {fraction_bits} bits of fraction.")
        return cls(version, n, degree, fraction_bits)

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes a splat of each column."""
        return (6 if self.version == 1 else 9, 1, 3, 3, 4 if self.version >= 3 else 3, 3 * _REST[self.degree])


def load_spz(path: Path | str) -> Gaussians:
    """Return the Gaussians of an .spz, turned to right, down, front.

    Raises:
        InputError: when the file is missing, cut off, damaged, or of a version or degree that is not read.
    """
    path = Path(path)
    data = read_file(path)
    if data.startswith(b"\x1f\x8b"):
        header, columns = columns_of_gzip(path, data, Header.read)
    else:
        header, columns = columns_of_zstd(path, data, Header.read(path, data[:16]))
    centre, opacity, colour, scale, rotation, harmonics = columns
    raw = {
        "means": centre.view("<f2") if header.version == 1 else _signed_24(centre) * 2.0**-header.fraction_bits,
        "scales": scale / 16 - 10,
        "quats": _smallest_three(rotation) if header.version >= 3 else _first_three(rotation),
        "opacities": logit(opacity[:, 0] / 255),
        "sh0": ((colour / 255 - 0.5) / _COLOUR)[:, None],
        "shN": ((harmonics.astype(np.float32) - 128) / 128).reshape(header.n, -1, 3),
    }
    return half_turn(built(path, raw), X_SIGNS)


def _signed_24(column: np.ndarray) -> np.ndarray:
    """Return little-endian signed 24-bit integers [n, 3] of bytes [n, 9]."""
    low, middle, high = column.reshape(len(column), 3, 3).astype(np.int32).transpose(2, 0, 1)
    value = low | middle << 8 | high << 16
    return value - ((value & 0x800000) << 1)


def _first_three(column: np.ndarray) -> np.ndarray:
    xyz = column / 127.5 - 1
    return np.concatenate([np.sqrt(np.maximum(0, 1 - (xyz**2).sum(axis=1, keepdims=True))), xyz], axis=1)


def _smallest_three(column: np.ndarray) -> np.ndarray:
    """Return quaternions (w, x, y, z); in the file they are x y z w, and components come in that order, the first one highest."""
    words = np.ascontiguousarray(column).view("<u4")[:, 0]
    fields = np.stack([(words >> shift) & 1023 for shift in (20, 10, 0)], axis=1).astype(np.int64)
    others = np.where(fields & 512, -1, 1) * (fields & 511) / 511 * np.sqrt(0.5)
    xyzw = np.empty((len(words), 4))
    rest = np.arange(4)[None] != (words >> 30).astype(np.int64)[:, None]
    xyzw[rest] = others.ravel()
    xyzw[~rest] = np.sqrt(np.maximum(0, 1 - (others**2).sum(axis=1)))
    return xyzw[:, [3, 0, 1, 2]]


def save_spz(gaussians: Gaussians, path: Path | str, up: str = "+z", sh_bits: tuple[int, int] = (5, 4)) -> Path:
    """Write Gaussians as .spz of version 3.

    Centres get 12 bits of fraction (0.24 mm where the unit is a metre), fewer where the scene is wider than 2048 units.

    Args:
        up: the direction that is up in the Gaussians' world; the file's is +y.
        sh_bits: bits of the harmonics of degree 1 and of those above: fewer compress better, at most 8.
    """
    path = Path(path)
    raw = raw_values(half_turn(y_down(gaussians, up), X_SIGNS), path)
    reach = float(np.abs(raw["means"]).max())
    bits = min(12, int(np.floor(np.log2((2**23 - 1) / max(reach, 1e-9)))))
    if bits < 0:
        raise InputError(
            f"{path}: a centre lies {reach:.3g} units from the origin, .spz reaches {2**23 - 1}; scale the scene down."
        )
    fixed = np.rint(raw["means"].astype(np.float64) * 2**bits).astype("<i4")
    columns = [
        fixed.view("u1").reshape(-1, 3, 4)[:, :, :3],
        _bytes(255 / (1 + np.exp(-raw["opacities"].astype(np.float64)))),
        _bytes(raw["sh0"] * (_COLOUR * 255) + 127.5),
        _bytes((raw["scales"] + 10) * 16),
        _packed_smallest_three(raw["quats"][:, [1, 2, 3, 0]]),
        _packed_harmonics(raw["shN"], sh_bits),
    ]
    head = struct.pack("<4sIIBBBB", b"NGSP", 3, len(fixed), degree_of(raw["shN"].shape[1]), bits, 0, 0)
    packer = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    packed = [packer.compress(part) for part in (head, *(column.tobytes() for column in columns))]
    write_bytes(path, b"".join([*packed, packer.flush()]))
    return path


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype("u1")


def _packed_smallest_three(xyzw: np.ndarray) -> np.ndarray:
    largest = np.abs(xyzw).argmax(axis=1)
    xyzw = xyzw * np.where(np.take_along_axis(xyzw, largest[:, None], 1) < 0, -1, 1)  # q and -q turn alike: the largest is positive
    others = xyzw[np.arange(4)[None] != largest[:, None]].reshape(-1, 3)
    fields = np.floor(511 * np.abs(others) * np.sqrt(2) + 0.5).astype(np.uint32).clip(0, 511) | np.where(others < 0, 512, 0)
    words = largest.astype(np.uint32) << 30 | fields[:, 0] << 20 | fields[:, 1] << 10 | fields[:, 2]
    return words.astype("<u4")


def _packed_harmonics(harmonics: np.ndarray, sh_bits: tuple[int, int]) -> np.ndarray:
    """Return the harmonics in 8 bits, rounded to fewer: 0 stays 0."""
    if not all(1 <= bits <= 8 for bits in sh_bits):
        raise InputError(f"sh_bits are {sh_bits}: expected two numbers from 1 to 8.")
    step = np.where(np.arange(harmonics.shape[1]) < 3, 2 ** (8 - sh_bits[0]), 2 ** (8 - sh_bits[1]))[None, :, None]
    codes = np.rint(harmonics * 128).astype(np.int64) + 128
    return ((codes + step // 2) // step * step).clip(0, 255).astype("u1")
