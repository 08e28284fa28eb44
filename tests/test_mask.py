import copy
import pickle
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketkit import Mask, MaskError
from ticketkit.testing import masks, shape_maps


def pairs() -> st.SearchStrategy[tuple[Mask, Mask]]:
    return shape_maps().flatmap(lambda shapes: st.tuples(masks(shapes), masks(shapes)))


@given(masks())
def test_bits_and_tensors_describe_the_same_mask(mask: Mask) -> None:
    assert Mask(dict(mask)) == mask
    assert Mask.from_bits(mask.shapes, {name: mask.bits(name) for name in mask}) == mask


@given(masks())
def test_counts_are_those_of_the_tensors(mask: Mask) -> None:
    assert mask.counts == {name: int(tensor.sum()) for name, tensor in mask.items()}
    assert mask.sizes == {name: tensor.numel() for name, tensor in mask.items()}
    assert (mask.kept, mask.total) == (sum(mask.counts.values()), sum(mask.sizes.values()))


@given(masks())
def test_weight_i_is_bit_i_of_the_packed_bytes(mask: Mask) -> None:
    for name, tensor in mask.items():
        packed = mask.bits(name)
        assert [bool(packed[i // 8] >> i % 8 & 1) for i in range(tensor.numel())] == tensor.flatten().tolist()


@given(masks())
def test_padding_bits_are_zero(mask: Mask) -> None:
    for name, size in mask.sizes.items():
        assert int.from_bytes(mask.bits(name), "little") < 2**size


@given(pairs())
def test_algebra_is_that_of_sets(two: tuple[Mask, Mask]) -> None:
    a, b = two
    for name in a:
        assert torch.equal((a | b)[name], a[name] | b[name])
        assert torch.equal((a & b)[name], a[name] & b[name])
        assert torch.equal((a - b)[name], a[name] & ~b[name])
    assert (a <= b) == all(bool((~a[name] | b[name]).all()) for name in a)
    assert (a & b) <= a <= (a | b)
    assert (a - b).kept + (a & b).kept == a.kept


@given(pairs())
def test_overlap_is_intersection_over_union(two: tuple[Mask, Mask]) -> None:
    a, b = two
    either = sum(int((a[name] | b[name]).sum()) for name in a)
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    assert a.overlap(b) == (both / either if either else 1.0)
    assert a.overlap(b) == b.overlap(a)


@given(pairs())
def test_digests_are_equal_exactly_when_masks_are(two: tuple[Mask, Mask]) -> None:
    a, b = two
    same = all(torch.equal(a[name], b[name]) for name in a)
    assert (a == b) == same
    assert (a.digest == b.digest) == same


@given(masks())
def test_digest_and_equality_ignore_the_order_of_names(mask: Mask) -> None:
    backwards = Mask({name: mask[name] for name in reversed(list(mask))})
    assert backwards == mask
    assert backwards.digest == mask.digest
    assert hash(backwards) == hash(mask)


@given(masks())
def test_copies_and_pickles_are_equal(mask: Mask) -> None:
    assert copy.deepcopy(mask) == mask
    assert pickle.loads(pickle.dumps(mask)) == mask


def test_digest_tells_shapes_apart() -> None:
    flags = torch.tensor([True, False, True, True])
    assert Mask({"w": flags}).digest != Mask({"w": flags.reshape(2, 2)}).digest


def test_a_looked_up_tensor_is_a_copy() -> None:
    source = torch.tensor([True, True])
    mask = Mask({"w": source})
    source[0] = False
    mask["w"][1] = False
    assert mask["w"].tolist() == [True, True]


def test_a_transposed_tensor_is_packed_in_logical_order() -> None:
    flags = torch.tensor([[True, False, False], [True, True, False]]).T
    assert torch.equal(Mask({"w": flags})["w"], flags)


@given(shape_maps())
def test_ones_keeps_everything(shapes: dict[str, tuple[int, ...]]) -> None:
    mask = Mask.ones(shapes)
    assert mask.kept == mask.total == sum(map(prod, shapes.values()))
    assert mask == Mask({name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()})
    assert mask.density == 1.0


def test_counts_are_exact_beyond_what_float32_can_hold() -> None:
    size = 2**24 + 3
    assert Mask.ones({"w": (size,)}).kept == size


def test_looking_for_a_name_does_not_unpack_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = Mask.ones({"w": (8,)})

    def refuse(*args: object, **kwargs: object) -> np.ndarray:
        raise AssertionError("unpacked")

    monkeypatch.setattr(np, "unpackbits", refuse)
    assert "w" in mask
    assert "v" not in mask
    assert mask.keys() == {"w"}


@pytest.mark.parametrize("flags", [torch.ones(2), torch.ones(2, dtype=torch.uint8), [True, False]])
def test_only_bool_tensors_are_masks(flags: object) -> None:
    with pytest.raises(MaskError, match=r"'layer\.w' must be a torch\.bool tensor"):
        Mask({"layer.w": flags})


def test_masks_of_other_parameters_do_not_combine() -> None:
    with pytest.raises(
        MaskError, match=r"(?s)b \(2,\): missing.*c \(2,\): unexpected.*a: expected shape \(2,\), found"
    ):
        Mask.ones({"a": (2,), "b": (2,)}) | Mask.ones({"a": (3,), "c": (2,)})
    with pytest.raises(MaskError, match="not with int"):
        Mask.ones({"a": (2,)}) & 3


@pytest.mark.parametrize(
    ("bits", "message"),
    [(b"\x08", "padding bits"), (b"", "0 bytes for 3 weights, 1 expected"), (b"\x01\x00", "2 bytes for 3 weights")],
)
def test_from_bits_refuses_bytes_that_are_no_mask(bits: bytes, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        Mask.from_bits({"w": (3,)}, {"w": bits})


def test_from_bits_refuses_names_without_shape() -> None:
    with pytest.raises(MaskError, match="only one of them names"):
        Mask.from_bits({"w": (3,)}, {"v": b"\x01"})


def test_aliases_survive_the_algebra() -> None:
    mask = Mask.ones({"a": (2,)}, aliases={"a": ["b"]})
    assert (mask & mask).aliases == {"a": ("b",)}
