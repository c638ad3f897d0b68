"""Whole numbers to bits and back: a fixed number of bits each, or Huffman's code, whichever is shorter.

Huffman 1952; the code is canonical, so that its lengths alone are stored. Lee et al. 2024 code indices and 8-bit values so.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

MAX_LENGTH = 15  # bits of the longest code word: a length fits into half a byte
FIXED, HUFFMAN = 0, 1


def pack(values: np.ndarray, lengths: np.ndarray) -> bytes:
    """Write the lowest lengths[i] bits of values[i], the highest of them first, one behind the other; zeros fill the last byte.

    >>> pack(np.array([5, 1]), np.array([3, 2])).hex()
    'a8'
    """
    values, lengths = np.asarray(values, np.uint64), np.asarray(lengths, np.int64)
    ends = np.cumsum(lengths)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for place in range(int(lengths.max(initial=0))):
        rows = lengths > place
        bits[ends[rows] - 1 - place] = (values[rows] >> np.uint64(place)).astype(np.uint8) & 1
    return np.packbits(bits).tobytes()


def unpack(data: bytes, lengths: np.ndarray) -> np.ndarray:
    """Undo `pack`, uint64.

    Raises:
        ValueError: when the data are shorter than the lengths promise.
    """
    lengths = np.asarray(lengths, np.int64)
    ends = np.cumsum(lengths)
    if len(ends) and int(ends[-1]) > 8 * len(data):
        raise ValueError(f"{int(ends[-1])} bits are promised and {8 * len(data)} are there")
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    values = np.zeros(len(lengths), np.uint64)
    for place in range(int(lengths.max(initial=0))):
        rows = lengths > place
        values[rows] |= bits[ends[rows] - 1 - place].astype(np.uint64) << np.uint64(place)
    return values


def code_lengths(counts: Sequence[int]) -> np.ndarray:
    r"""Return the length in bits of each symbol's code word; 0 for symbols that never occur (Huffman 1952).

    The two rarest groups are joined until one is left; each join makes their words a bit longer. The mean length is less
    than one bit above the entropy. A lone symbol gets one bit. Where a word would exceed 15 bits, counts are flattened.

    >>> code_lengths([5, 1, 1, 0]).tolist()
    [1, 2, 2, 0]
    """
    counts = np.asarray(counts, np.int64)
    lengths = np.zeros(len(counts), np.int64)
    heap = [(int(count), symbol, (symbol,)) for symbol, count in enumerate(counts) if count > 0]
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (few, first, left), (more, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        joined = left + right
        lengths[list(joined)] += 1
        heapq.heappush(heap, (few + more, first, joined))
    return lengths if lengths.max(initial=0) <= MAX_LENGTH else code_lengths((counts + 1) // 2)


def code_words(lengths: np.ndarray) -> np.ndarray:
    """Return the canonical code word of each symbol: in the order of length, then of symbol, each word one above the last.

    >>> code_words(np.array([1, 2, 2, 0])).tolist()
    [0, 2, 3, 0]
    """
    words, word, before = np.zeros(len(lengths), np.int64), 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)):
        length = int(lengths[symbol])
        if length:
            word <<= length - before
            words[symbol], word, before = word, word + 1, length
    return words


def encode(symbols: np.ndarray, bits: int, huffman: bool = True) -> bytes:
    """Return symbols below 2^bits as bytes: a byte that names the code, Huffman's lengths in half bytes, then the words.

    Args:
        huffman: False takes the fixed length; True takes the shorter of both.
    """
    symbols = np.asarray(symbols, np.int64).reshape(-1)
    plain = bytes([FIXED]) + pack(symbols, np.full(len(symbols), bits))
    if not huffman:
        return plain
    lengths = code_lengths(np.bincount(symbols, minlength=1 << bits))
    short = bytes([HUFFMAN]) + pack(lengths, np.full(len(lengths), 4)) + pack(code_words(lengths)[symbols], lengths[symbols])
    return min(plain, short, key=len)


def decode(data: bytes, n: int, bits: int) -> np.ndarray:
    """Return the n symbols that `encode` wrote.

    Raises:
        ValueError: for an unknown code, code lengths that no code has, and data that end too soon.
    """
    if not data or data[0] not in (FIXED, HUFFMAN):
        raise ValueError("its numbers are in a code that is not known")
    if n > 8 * len(data):
        raise ValueError(f"{n} numbers are promised in {len(data)} bytes")
    if data[0] == FIXED:
        return unpack(data[1:], np.full(n, bits)).astype(np.int64)
    table = (1 << bits) // 2
    lengths = unpack(data[1 : 1 + table], np.full(1 << bits, 4)).astype(np.int64)
    return _read_words(np.unpackbits(np.frombuffer(data, np.uint8, offset=1 + table)), n, lengths)


def _read_words(bits: np.ndarray, n: int, lengths: np.ndarray) -> np.ndarray:
    """Return the symbols of n words: what stands at every bit is looked up at once, then one walk goes from word to word."""
    used = lengths[lengths > 0]
    filled = int((1 << (MAX_LENGTH - used)).sum())
    if filled > 1 << MAX_LENGTH or (filled < 1 << MAX_LENGTH and used.tolist() != [1]):
        raise ValueError("its code words contradict each other")
    symbol_at, length_at = np.zeros(1 << MAX_LENGTH, np.int64), np.ones(1 << MAX_LENGTH, np.int64)
    words = code_words(lengths)
    for symbol in np.flatnonzero(lengths):
        begin, span = int(words[symbol]) << (MAX_LENGTH - int(lengths[symbol])), 1 << (MAX_LENGTH - int(lengths[symbol]))
        symbol_at[begin : begin + span], length_at[begin : begin + span] = symbol, lengths[symbol]
    window = np.zeros(len(bits), np.int32)
    for place in range(MAX_LENGTH):
        window[: len(bits) - place] |= bits[place:].astype(np.int32) << (MAX_LENGTH - 1 - place)
    step, at, places = length_at[window].tolist(), 0, []
    for _ in range(n):
        if at >= len(step):
            raise ValueError(f"{n} numbers are promised and {len(places)} are there")
        places.append(at)
        at += step[at]
    if at > len(step):
        raise ValueError("its last number is cut off")
    return symbol_at[window[places]]


def entropy_bits(symbols: np.ndarray) -> float:
    r"""Return $-\sum_s p_s \log_2 p_s$, the least mean number of bits of a symbol that any code without memory can reach.

    >>> entropy_bits(np.array([0, 0, 1, 1]))
    1.0
    """
    counts = np.unique(np.asarray(symbols), return_counts=True)[1]
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum()) + 0.0
