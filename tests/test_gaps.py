"""Laws of the shorter mask code: exact, canonical, near the entropy."""

from math import log2

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ticketkit import TicketError
from ticketkit.gaps import decoded, encoded


def packed(flags: list[bool]) -> bytes:
    return np.packbits(np.array(flags, np.uint8), bitorder="little").tobytes()


def rare(rng: np.random.Generator, size: int, density: float) -> tuple[bytes, int]:
    flags = rng.random(size) < density
    return np.packbits(flags, bitorder="little").tobytes(), int(flags.sum())


@given(st.integers(0, 2**32), st.integers(0, 3000), st.sampled_from([0.0, 0.001, 0.02, 0.1, 0.3, 0.7, 0.95, 1.0]))
def test_decoding_gives_what_was_encoded(seed: int, size: int, density: float) -> None:
    bits, kept = rare(np.random.default_rng(seed), size, density)
    code = encoded(bits, size, kept)
    if code is not None:
        assert len(code) < len(bits)
        assert decoded(code, size, kept) == bits


@given(st.lists(st.booleans(), max_size=200), st.binary(max_size=30))
@example([False] * 100, b"\x80")
@example([False] * 99 + [True], b"\xff\xff\xff")
def test_any_other_bytes_are_refused_or_are_the_code(flags: list[bool], code: bytes) -> None:
    size, kept = len(flags), sum(flags)
    try:
        bits = decoded(code, size, kept)
    except TicketError:
        return
    assert encoded(bits, size, kept) == code
    assert int(np.unpackbits(np.frombuffer(bits, np.uint8)).sum()) == kept


@given(st.integers(0, 2**32), st.data())
def test_a_changed_byte_never_gives_another_mask(seed: int, data: st.DataObject) -> None:
    bits, kept = rare(np.random.default_rng(seed), 600, 0.05)
    code = encoded(bits, 600, kept)
    assert code is not None
    place = data.draw(st.integers(0, len(code) - 1))
    changed = code[:place] + bytes([code[place] ^ data.draw(st.integers(1, 255))]) + code[place + 1 :]
    try:
        other = decoded(changed, 600, kept)
    except TicketError:
        return
    assert other != bits  # a mask of as many weights: the ticket's digest tells it from the right one
    assert encoded(other, 600, kept) == changed


@pytest.mark.parametrize("density", [0.8, 0.49, 0.21, 0.15, 0.044, 0.01, 0.001])
def test_random_masks_cost_at_most_five_percent_above_their_entropy(density: float) -> None:
    size = 400_000
    bits, kept = rare(np.random.default_rng(1), size, density)
    share = kept / size
    entropy = -size * (share * log2(share) + (1 - share) * log2(1 - share)) / 8
    assert len(encoded(bits, size, kept) or bits) <= 1.05 * entropy


def test_evenly_and_wildly_spaced_weights_are_coded() -> None:
    for places in (range(0, 10_000, 97), [0, 1, 2, 9_999], [9_999], [0]):
        flags = [False] * 10_000
        for place in places:
            flags[place] = True
        bits = packed(flags)
        code = encoded(bits, 10_000, len(list(places)))
        assert code is not None
        assert decoded(code, 10_000, len(list(places))) == bits
