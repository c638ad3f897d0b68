"""The header of a binary .ply: elements with their properties, whatever their order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nsw.errors import InputError

_TYPES = {
    **dict.fromkeys(("float", "float32"), "<f4"),
    **dict.fromkeys(("double", "float64"), "<f8"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("short", "int16"), "<i2"),
    **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("int", "int32"), "<i4"),
}
LIMIT = 65_536  # bytes of a header


@dataclass(frozen=True)
class Element:
    """One table of the file: `count` rows of type `record` from byte `begin`."""

    name: str
    count: int
    record: np.dtype
    begin: int

    @property
    def names(self) -> tuple[str, ...]:
        return self.record.names or ()

    def rows(self, path: Path, data: bytes) -> np.ndarray:
        """Return the table without a copy.

        Raises:
            InputError: when the file is shorter than its header promises.
        """
        there = max(0, len(data) - self.begin) // max(1, self.record.itemsize)
        if self.count == 0 or there < self.count:
            what = "splats" if self.name == "vertex" else f"rows of {self.name}"
            raise InputError(
                f"{path} is cut off or empty: its header promises {self.count} {what}, {there} are there; copy the file again."
            )
        return np.frombuffer(data, self.record, count=self.count, offset=self.begin)


def header_lines(path: Path, data: bytes) -> tuple[list[str], int]:
    """Return the header's lines between "ply" and "end_header", and where the tables begin.

    Raises:
        InputError: when there is no such header.
    """
    end = data.find(b"end_header", 0, LIMIT)
    newline = data.find(b"\n", end, end + 16)
    if not data.startswith(b"ply") or end < 0 or newline < 0:
        raise InputError(f'{path} is not a .ply file: expected a header from "ply" to "end_header".')
    return data[:end].decode("ascii", "replace").splitlines()[1:], newline + 1


def read_elements(path: Path, data: bytes) -> dict[str, Element]:
    """Return the tables that the header announces, up to the first one whose rows differ in length (lists, as of faces).

    Raises:
        InputError: for a header that is missing, of another encoding, or announces no vertices.
    """
    text, begin = header_lines(path, data)
    lines = [line.split() for line in text]
    lines = [words for words in lines if words and words[0] not in ("comment", "obj_info")]
    if not lines or lines[0] != ["format", "binary_little_endian", "1.0"]:
        raise InputError(f"{path}: only binary little-endian .ply files hold Gaussians here, convert it first.")
    starts = [i for i, words in enumerate(lines) if words[0] == "element"]
    found: dict[str, Element] = {}
    for at, after in zip(starts, [*starts, len(lines)][1:], strict=True):
        words = lines[at]
        if len(words) != 3 or not (words[2].isascii() and words[2].isdigit() and len(words[2]) < 16):
            raise InputError(f'{path}: expected "element vertex N" in the .ply header, found "{" ".join(words)[:60]}".')
        if any(line[1:2] == ["list"] for line in lines[at + 1 : after]) and "vertex" in found:
            break
        element = Element(words[1], int(words[2]), _record(path, lines[at + 1 : after]), begin)
        found[element.name] = element
        begin += element.count * element.record.itemsize
    if "vertex" not in found:
        raise InputError(f'{path}: expected "element vertex N" in the .ply header.')
    return found


def _record(path: Path, lines: list[list[str]]) -> np.dtype:
    fields = []
    for words in lines:
        if len(words) != 3 or words[0] != "property" or words[1] not in _TYPES:
            raise InputError(f'{path}: cannot read the header line "{" ".join(words)[:60]}" of a Gaussian .ply.')
        fields.append((words[2], _TYPES[words[1]]))
    if len({name for name, _ in fields}) != len(fields):
        raise InputError(f"{path}: the .ply header names a property twice; export the file again.")
    return np.dtype(fields)
