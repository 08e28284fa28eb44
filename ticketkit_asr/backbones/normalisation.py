"""Batch normalisation that knows which frames are speech and which are padding, in a form that torch.compile takes."""

from typing import cast

import torch
from torch import Tensor, nn

from ticketkit_asr.backbones.cnn_lstm import beside, by_running_statistics, over_valid


def batch_normalised(norm: nn.BatchNorm1d, x: Tensor, valid: Tensor) -> Tensor:
    """Return `x` normalised by statistics of its valid frames alone, when training, or the running ones; 0 elsewhere.

    `x` is (batch, frames, features) or (batch, frames, channels, bins), `valid` (batch, frames). Running statistics
    learn what `norm` itself would from the valid frames. What lies in other frames must be finite.
    """
    if not norm.training:
        return by_running_statistics(norm, x, valid)
    if not torch.compiler.is_compiling():
        return over_valid(norm, x, valid)
    frames = _compilable(norm, x.flatten(0, 1), valid.flatten())
    return frames.view_as(x).masked_fill(~beside(valid, x), 0)


def _compilable(norm: nn.BatchNorm1d, x: Tensor, valid: Tensor) -> Tensor:
    """Return (frames, features) or (frames, channels, bins) normalised over the valid frames, (frames,), of them.

    Picking the frames out, as `over_valid` does, makes a tensor whose size depends on data, which would cut the
    compiled graph in pieces. Uncompiled, this takes two to five times as long, which is why it is not the only way.
    """
    masked = ~beside(valid, x)
    dims = [0, *range(2, x.dim())]
    count = valid.sum() * x[0, 0].numel()
    wide = x.to(norm.weight.dtype)  # half precision is too narrow for sums
    mean = wide.masked_fill(masked, 0).sum(dims, keepdim=True) / count
    centred = (wide - mean).masked_fill(masked, 0)
    variance = centred.square().sum(dims, keepdim=True) / count
    _remember(norm, mean.detach().flatten(), variance.detach().flatten() * count / (count - 1).clamp_min(1))
    scale = norm.weight.view_as(mean[0]) * (variance + norm.eps).rsqrt()
    return (centred * scale + norm.bias.view_as(mean[0])).to(x.dtype)


@torch.no_grad()
def _remember(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor) -> None:
    """Let the running statistics of `norm` learn from a batch's mean and unbiased variance of each feature."""
    momentum = cast(float, norm.momentum)
    cast(Tensor, norm.num_batches_tracked).add_(1)
    cast(Tensor, norm.running_mean).lerp_(mean, momentum)
    cast(Tensor, norm.running_var).lerp_(variance, momentum)
