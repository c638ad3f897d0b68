"""The compressed part of an .spz: one gzip stream (versions 1 to 3), or a zstd stream a column (version 4).

Nothing is unpacked before the header's count has been held against the size of the file, and never more than it asks for.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nsw.errors import InputError

_DEFLATE_AT_MOST = 1032  # deflate packs no more than this many bytes into one
_ZSTD_AT_MOST = 1 << 16  # zstd packs runs far tighter; real columns stay far below
_EXTENSIONS_AT_MOST = 1 << 24


def _cut(path: Path) -> InputError:
    return InputError(f"{path} is cut off or damaged: it holds fewer bytes than its header promises; copy the file again.")


def _split(block: bytes, n: int, widths: tuple[int, ...]) -> list[np.ndarray]:
    columns, begin = [], 0
    for width in widths:
        columns.append(np.frombuffer(block, "u1", count=n * width, offset=begin).reshape(n, width))
        begin += n * width
    return columns


def columns_of_gzip(path: Path, data: bytes, read_header: Callable[[Path, bytes], Any]) -> tuple[Any, list[np.ndarray]]:
    """Return the header and the columns, bytes [n, width] each.

    Raises:
        InputError: when the stream is damaged, or shorter than its header promises.
    """
    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        header = read_header(path, stream.decompress(data, 16))
        if header.version > 3:
            raise InputError(f"{path} is damaged: an .spz file of version {header.version} is no gzip stream.")
        size = header.n * sum(header.widths)
        if size > _DEFLATE_AT_MOST * len(data):
            raise _cut(path)
        block = stream.decompress(stream.unconsumed_tail, size)
        if len(block) < size:
            raise _cut(path)
        stream.decompress(stream.unconsumed_tail, _EXTENSIONS_AT_MOST)  # what vendors add, up to the checksum
        if not stream.eof:
            raise _cut(path)
    except zlib.error as error:
        raise InputError(f"{path} is damaged ({error}); copy the file again.") from error
    return header, _split(block, header.n, header.widths)


def columns_of_zstd(path: Path, data: bytes, header: Any) -> tuple[Any, list[np.ndarray]]:
    """Return the header and the columns, bytes [n, width] each.

    Raises:
        InputError: when a stream is missing, damaged, or of another length than its header promises.
    """
    import zstandard

    if header.version < 4 or len(data) < 32:
        raise InputError(f"{path} is damaged: an .spz file of version {header.version} is a gzip stream, this one is not.")
    n_streams, table = data[15], struct.unpack_from("<I", data, 16)[0]
    begin = table + 16 * n_streams
    widths = [width for width in header.widths if width]
    if n_streams not in (len(widths), len(header.widths)) or table < 32 or begin > len(data):
        raise _cut(path)
    columns = []
    for i in range(len(header.widths)):
        width = header.widths[i]
        packed, unpacked = struct.unpack_from("<QQ", data, table + 16 * i) if i < n_streams else (0, 0)
        if unpacked != header.n * width or packed > len(data) - begin or unpacked > _ZSTD_AT_MOST * max(1, packed):
            raise _cut(path)
        try:
            block = (
                zstandard.ZstdDecompressor().decompress(data[begin : begin + packed], max_output_size=unpacked) if unpacked else b""
            )
        except zstandard.ZstdError as error:
            raise InputError(f"{path} is damaged ({error}); copy the file again.") from error
        if len(block) != unpacked:
            raise _cut(path)
        columns.append(np.frombuffer(block, "u1").reshape(header.n, width))
        begin += packed
    return header, columns
