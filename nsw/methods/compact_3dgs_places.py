"""Where the splats stand, in bits: a lattice in their box, put in Morton's order, and only the steps between neighbours kept.

A set has no order, but a file has: writing N splats one by one spends log2 N! bits on an order that nobody asked for.
Sorted, the numbers can only grow, and their differences are small.
"""

from __future__ import annotations

import numpy as np

from nsw.methods import compact_3dgs_bits as bits_of

AXIS_BITS = 16
MORTON_BITS = 3 * AXIS_BITS


def encode(code: np.ndarray, differences: bool = True) -> bytes:
    r"""Return ascending Morton numbers as bytes: 48 bits each, or their differences.

    A difference d is written as its length $\lfloor \log_2 d \rfloor + 1$ in Huffman's code, and its bits after the first.
    """
    if not differences:
        return bytes([bits_of.FIXED]) + bits_of.pack(code, np.full(len(code), MORTON_BITS))
    steps = np.diff(code, prepend=np.uint64(0))
    lengths = np.array([int(step).bit_length() for step in steps])
    head = bits_of.encode(lengths, 6)
    tail = bits_of.pack(steps, np.maximum(lengths - 1, 0))
    return bytes([bits_of.HUFFMAN]) + len(head).to_bytes(4, "little") + head + tail


def decode(data: bytes, n: int) -> np.ndarray:
    """Return the n Morton numbers that `encode` wrote.

    Raises:
        ValueError: for an unknown code, numbers beyond 48 bits, and data that end too soon.
    """
    if n > 8 * len(data):
        raise ValueError(f"{n} places are promised in {len(data)} bytes")
    if data[:1] == bytes([bits_of.FIXED]):
        return bits_of.unpack(data[1:], np.full(n, MORTON_BITS))
    if data[:1] != bytes([bits_of.HUFFMAN]) or len(data) < 5:
        raise ValueError("its places are in a code that is not known")
    split = 5 + int.from_bytes(data[1:5], "little")
    lengths = bits_of.decode(data[5:split], n, 6)
    if lengths.max(initial=0) > MORTON_BITS:
        raise ValueError("a place lies beyond the lattice")
    low = bits_of.unpack(data[split:], np.maximum(lengths - 1, 0))
    first = np.where(lengths > 0, np.uint64(1) << np.maximum(lengths - 1, 0).astype(np.uint64), np.uint64(0))
    code = np.cumsum(first | low, dtype=np.uint64)
    if len(code) and (code[-1] >> np.uint64(MORTON_BITS) or (np.diff(code.astype(np.int64)) < 0).any()):
        raise ValueError("a place lies beyond the lattice")
    return code
