"""Convolutions in front of attention: fewer frames, each of which has seen its neighbours."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.functional import silu

from ticketkit_asr.backbones.cnn_lstm import strided, valid_frames
from ticketkit_asr.backbones.normalisation import batch_normalised
from ticketkit_asr.backbones.options import ConvOptions


class ConvSubsampling(nn.Module):
    """Strided convolutions and a linear layer: features (batch, frames, bins) to (batch, fewer frames, dim)."""

    def __init__(self, *, bins: int, convs: Sequence[ConvOptions], dim: int) -> None:
        super().__init__()
        channels = [1, *(conv.channels for conv in convs)]
        self.convs = nn.ModuleList(SwishConv(inputs, conv) for inputs, conv in zip(channels, convs, strict=False))
        for conv in convs:
            bins = strided(bins, conv.stride[0])
        self.output = nn.Linear(channels[-1] * bins, dim)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames that are left, and how many of each utterance, (batch,), given how many there were.

        Features beyond `lengths` do not matter, not even NaN; frames beyond come out as anything finite.
        """
        maps = features.masked_fill(~valid_frames(lengths, features.shape[1])[:, :, None], 0)
        maps = maps.transpose(1, 2).unsqueeze(1)  # (batch, channel 1, bins, frames)
        for conv in self.convs:
            maps, lengths = conv(maps, lengths)
        return self.output(maps.permute(0, 3, 1, 2).flatten(2)), lengths

    @property
    def strides(self) -> list[int]:
        """The steps in time of the convolutions, in order."""
        return [cast(SwishConv, conv).stride for conv in self.convs]


class SwishConv(nn.Module):
    """Convolution, batch normalisation over valid frames and Swish, over (batch, channels, bins, frames)."""

    def __init__(self, inputs: int, options: ConvOptions) -> None:
        super().__init__()
        padding = (options.kernel[0] // 2, options.kernel[1] // 2)
        self.conv = nn.Conv2d(inputs, options.channels, options.kernel, options.stride, padding)
        self.norm = nn.BatchNorm1d(options.channels)
        self.stride = options.stride[1]

    def forward(self, maps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps and their lengths, zero beyond each utterance's own; `maps` must be zero beyond `lengths`."""
        lengths = shortened(lengths, self.stride)
        maps = self.conv(maps).permute(0, 3, 1, 2)  # (batch, frames, channels, bins)
        maps = batch_normalised(self.norm, maps, valid_frames(lengths, maps.shape[1]))
        return silu(maps).permute(0, 2, 3, 1), lengths


def shortened(lengths: Tensor, stride: int) -> Tensor:
    """Return how many frames are left of so many: those at 0, stride, 2 * stride, ..."""
    return (lengths - 1) // stride + 1
