"""A packed mask in fewer bits: Rice codes of the gaps between its rarer bits, near the entropy of a random mask.

Either the kept or the pruned weights, whichever are fewer, are listed by the number of others before each. A gap g is
written as the quotient q = g >> k in unary (q zeros and a one) and k low bits; k is the best for the mean gap. Random
masks cost 1.00 to 1.03 of their entropy (Golomb 1966; Rice 1979). Unary and low bits lie in two runs of bytes, so that
neither direction needs a loop over weights.

| bytes | hold |
|---|---|
| 1 | k, plus 128 if the pruned weights are listed |
| then | the unary parts, little-endian bits, zero-padded to a byte |
| last ⌈n·k / 8⌉ | the low bits of all n gaps, k each, little-endian |
"""

from typing import Any

import numpy as np

from ticketkit.errors import TicketError

Array = np.ndarray[Any, np.dtype[Any]]

WORTH_CODING = 0.38  # above this share of rarer bits, packed bits are within 5 % of the entropy
PRUNED = 0x80


def encoded(bits: bytes, size: int, kept: int) -> bytes | None:
    """Return the code of a packed mask over `size` weights, or None where packed bits are as good.

    >>> len(encoded(bytes([0, 16] + [0] * 1000), 8016, 1)), encoded(bytes([0b10110100]), 8, 4)
    (3, None)
    """
    listed = min(kept, size - kept)
    if listed > WORTH_CODING * size:
        return None
    flags = np.unpackbits(np.frombuffer(bits, np.uint8), count=size, bitorder="little")
    places = np.flatnonzero(flags if listed == kept else flags == 0)
    gaps = np.diff(places, prepend=-1) - 1
    k = _parameter(gaps)
    ends = np.cumsum((gaps >> k) + 1)
    unary = np.zeros(int(ends[-1]) if listed else 0, np.uint8)
    unary[ends - 1] = 1
    low = np.empty((listed, k), np.uint8)
    for place in range(k):
        low[:, place] = (gaps >> place) & 1
    head = k | (0 if listed == kept else PRUNED)
    code = bytes([head]) + _packed(unary) + _packed(low.reshape(-1))
    return code if len(code) < len(bits) else None


def decoded(code: bytes, size: int, kept: int) -> bytes:
    """Return the packed mask; raises `TicketError` unless the code is exactly the one that `encoded` writes."""
    listed, k = min(kept, size - kept), code[0] & ~PRUNED if code else 0
    low_bytes = (listed * k + 7) // 8
    unary = np.unpackbits(np.frombuffer(code[1 : len(code) - low_bytes], np.uint8), bitorder="little")
    ends = np.flatnonzero(unary) + 1
    places = np.zeros(0, np.int64)
    if len(ends) == listed and listed and k < 40:
        low = np.unpackbits(np.frombuffer(code[len(code) - low_bytes :], np.uint8), count=listed * k, bitorder="little")
        quotients = np.diff(ends, prepend=0) - 1
        gaps = (quotients << k) + (low.reshape(listed, k).astype(np.int64) << np.arange(k)).sum(axis=1)
        places = np.cumsum(gaps + 1) - 1
    flags = np.full(size, listed != kept, np.uint8)
    if len(places) and places.min() >= 0 and places.max() < size:
        flags[places] = listed == kept
    bits = _packed(flags)
    if int(flags.sum()) != kept or encoded(bits, size, kept) != code:
        raise TicketError(f"the gaps of a mask over {size} weights that keeps {kept} are not what ticketkit writes")
    return bits


def _parameter(gaps: Array) -> int:
    """Return the k that makes the code shortest; the mean gap m leaves those near log2 m."""
    near = max(0, int(gaps.sum()).bit_length() - len(gaps).bit_length())
    return min(range(max(0, near - 2), near + 2), key=lambda k: len(gaps) * k + int((gaps >> k).sum()))


def _packed(flags: Array) -> bytes:
    return np.packbits(flags, bitorder="little").tobytes()
