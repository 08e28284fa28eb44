"""Batch normalisation over valid frames: torch's own statistics of them, whether compiled or not."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ticketkit_asr.backbones.cnn_lstm import valid_frames
from ticketkit_asr.backbones.normalisation import batch_normalised


def trained_norm(features: int) -> nn.BatchNorm1d:
    """Return a norm with weights and running statistics that are neither 0 nor 1, in float64."""
    norm = nn.BatchNorm1d(features).double()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)
    return norm


def compiled(norm: nn.BatchNorm1d, x: Tensor, valid: Tensor) -> Tensor:
    """Return what compiled code computes, without the time that compiling takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        return batch_normalised(norm, x, valid)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Return (batch, frames, features[, bins]) in float64, with at least two valid frames, and which are valid."""
    lengths = torch.tensor(draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
    frames = int(lengths.max()) + draw(st.integers(0, 3))
    bins = draw(st.sampled_from([(), (1,), (3,)]))
    return torch.randn(len(lengths), frames, 2, *bins, dtype=torch.float64) * 3 + 1, valid_frames(lengths, frames)


@settings(max_examples=50)
@given(batches(), st.booleans(), st.sampled_from([batch_normalised, compiled]))
def test_valid_frames_are_normalised_as_if_there_were_no_others(case, training, normalise) -> None:
    x, valid = case
    norm = trained_norm(2).train(training)
    alone = copy.deepcopy(norm)
    x.requires_grad_()
    normalised = normalise(norm, x, valid)
    expected = alone(x[valid])
    torch.testing.assert_close(normalised[valid], expected, atol=1e-12, rtol=1e-12)
    assert not normalised[~valid].any()
    assert norm.state_dict().keys() == alone.state_dict().keys()
    for name, tensor in norm.state_dict().items():
        torch.testing.assert_close(tensor, alone.state_dict()[name], atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((normalised[valid] * weights).sum(), [x, norm.weight, norm.bias])
    theirs = torch.autograd.grad((expected * weights).sum(), [x, alone.weight, alone.bias])
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-10, rtol=1e-10)


def test_half_precision_frames_are_summed_in_the_precision_of_the_norm() -> None:
    x, valid = torch.full((1, 4000, 1), 100.0, dtype=torch.float16), torch.ones(1, 4000, dtype=torch.bool)
    norm = nn.BatchNorm1d(1)
    normalised = compiled(norm, x, valid)
    assert normalised.dtype == torch.float16
    assert norm.running_mean.item() == pytest.approx(10.0)
    assert not normalised.any()
