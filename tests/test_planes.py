import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketkit import StorageError
from ticketkit.planes import HEAD, deflated, inflated


@given(content=st.binary(max_size=50))
def test_what_was_deflated_comes_back(content) -> None:
    assert inflated(deflated(content)) == content


def test_weights_shrink_by_their_exponents() -> None:
    content = torch.randn(20_000).mul(0.05).numpy().tobytes()
    assert len(deflated(content)) < 0.9 * len(content)


def test_a_size_that_is_smaller_by_a_zero_is_noticed() -> None:
    packed = bytearray(deflated(bytes(7)))
    packed[8] = 6
    with pytest.raises(StorageError, match="something else"):
        inflated(bytes(packed))


@given(content=st.binary(max_size=50), data=st.data())
def test_a_byte_that_was_changed_or_cut_off_never_gives_another_content(content, data) -> None:
    packed = bytearray(deflated(content))
    place = data.draw(st.integers(0, len(packed) - 1))
    if data.draw(st.booleans()):
        packed[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del packed[place:]
    try:
        assert inflated(bytes(packed)) == content
    except StorageError:
        return


@given(size=st.sampled_from([0, 1, 2**40, 2**63, 2**64 - 1]))
def test_a_size_that_is_none_is_refused_without_room_for_it(size) -> None:
    magic, _, check, *lengths = HEAD.unpack_from(deflated(bytes(20)))
    packed = HEAD.pack(magic, size, check, *lengths) + deflated(bytes(20))[HEAD.size :]
    with pytest.raises(StorageError):
        inflated(packed)
