"""Layers with any mask, and what it means that two results are the same."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ticketkit.runtime.products import FORMS

TOLERANCE = 1e-5

forms = st.sampled_from(FORMS)
seeds = st.integers(0, 2**16)


@st.composite
def masks(draw: st.DrawFn, rows: int, columns: int) -> Tensor:
    """Return a mask of any density: single weights, blocks, whole rows and columns, nothing or everything."""
    random = torch.Generator().manual_seed(draw(seeds))
    density = draw(st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0)))

    def kept(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random) < density

    match draw(st.sampled_from(("weights", "blocks", "rows", "columns", "units"))):
        case "blocks":
            blocks = kept(-(-rows // 4), -(-columns // 4))
            return blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)[:rows, :columns]
        case "rows":
            return kept(rows, 1).expand(rows, columns)
        case "columns":
            return kept(1, columns).expand(rows, columns)
        case "units":
            return kept(rows, 1) & kept(1, columns)
    return kept(rows, columns)


@st.composite
def masked(draw: st.DrawFn, layer: nn.Module) -> nn.Module:
    """Return the layer in evaluation mode, each of its matrices under a mask of its own."""
    for parameter in layer.parameters():
        if parameter.dim() > 1:
            mask = draw(masks(parameter.shape[0], parameter[0].numel()))
            parameter.data.mul_(mask.view(parameter.shape))
    return layer.eval()


def flat(result: Any) -> list[Tensor]:
    """Return the tensors of what a layer returns, in order."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result if part is not None for tensor in flat(part)]


def assert_same(came: Any, expected: Any) -> None:
    """Demand the same types and shapes, and values that differ by rounding alone."""
    assert type(came) is type(expected)
    if isinstance(expected, PackedSequence):
        for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            one, two = getattr(came, field), getattr(expected, field)
            assert one is two or torch.equal(one, two), field
        came, expected = came.data, expected.data
    if isinstance(expected, tuple):
        assert len(came) == len(expected)
        for one, two in zip(came, expected, strict=True):
            assert_same(one, two)
        return
    assert came.shape == expected.shape
    assert came.dtype == expected.dtype
    assert came.is_contiguous() or not expected.is_contiguous()
    if expected.numel():
        assert (came - expected).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max()))
