"""Batch normalisation over the frames of all ranks, so that several processes train the network that one would."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


def normalised_over_ranks(norm: nn.BatchNorm1d, rows: Tensor) -> Tensor:
    """Return (frames, features) or (frames, features, bins) normalised by the statistics of all ranks' frames.

    The same on every rank but for its frames, which may be of another number; running statistics learn what one process
    would have taught them. torch's SyncBatchNorm does this on GPUs alone.
    """
    dims = [0, *range(2, rows.dim())]
    shape = [1, -1, *[1] * (rows.dim() - 2)]
    wide = rows.to(norm.weight.dtype)  # half precision is too narrow for sums
    held = torch.tensor([rows.numel() / rows.shape[1]], dtype=wide.dtype, device=rows.device)
    sums = all_reduce(torch.cat([wide.sum(dims), held]))  # type: ignore[no-untyped-call]
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = wide - mean.view(shape)
    variance = all_reduce(centred.square().sum(dims)) / count  # type: ignore[no-untyped-call]
    with torch.no_grad():
        cast(Tensor, norm.num_batches_tracked).add_(1)
        cast(Tensor, norm.running_mean).lerp_(mean, cast(float, norm.momentum))
        unbiased = variance * count / (count - 1).clamp_min(1)
        cast(Tensor, norm.running_var).lerp_(unbiased, cast(float, norm.momentum))
    scaled = centred * (variance + norm.eps).rsqrt().view(shape)
    normalised: Tensor = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    return normalised.to(rows.dtype)
