"""Batch normalisation over the frames of all ranks, so that several processes train the network that one would."""

from typing import Any, cast

import torch
from torch import Tensor, distributed, nn


def normalised_over_ranks(norm: nn.BatchNorm1d, rows: Tensor) -> Tensor:
    """Return (frames, features) or (frames, features, bins) normalised by the statistics of all ranks' frames.

    The same on every rank but for its frames, which may be of another number; running statistics learn what one process
    would have taught them. torch's SyncBatchNorm does this on GPUs alone.
    """
    dims = [0, *range(2, rows.dim())]
    shape = [1, -1, *[1] * (rows.dim() - 2)]
    wide = rows.to(norm.weight.dtype)  # half precision is too narrow for sums
    held = torch.tensor([rows.numel() / rows.shape[1]], dtype=wide.dtype, device=rows.device)
    sums = _summed(torch.cat([wide.sum(dims), held]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = wide - mean.view(shape)
    variance = _summed(centred.square().sum(dims)) / count
    with torch.no_grad():
        cast(Tensor, norm.num_batches_tracked).add_(1)
        cast(Tensor, norm.running_mean).lerp_(mean, cast(float, norm.momentum))
        unbiased = variance * count / (count - 1).clamp_min(1)
        cast(Tensor, norm.running_var).lerp_(unbiased, cast(float, norm.momentum))
    scaled = centred * (variance + norm.eps).rsqrt().view(shape)
    normalised: Tensor = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    return normalised.to(rows.dtype)


class _SumOverRanks(torch.autograd.Function):
    """The sum of all ranks' tensors; torch's own function for that is deprecated, its successor private."""

    @staticmethod
    def forward(_: Any, mine: Tensor) -> Tensor:
        total = mine.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of what all ranks made of the sum."""
        return _SumOverRanks.forward(_, gradient)


def _summed(mine: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(mine)  # type: ignore[no-untyped-call]
    return total
