"""Convolutions in front of attention: fewer frames, each of which has seen its neighbours."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.functional import silu

from ticketkit_asr.backbones.cnn_lstm import strided
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

    def forward(self, features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames that are left and which of them are valid, given which of `features` are.

        `valid` is (batch, frames). Invalid features do not matter, not even NaN; invalid frames come out as anything.
        """
        maps = features.masked_fill(~valid[:, :, None], 0).transpose(1, 2).unsqueeze(1)
        for conv in self.convs:
            maps, valid = conv(maps, valid)
        return self.output(maps.permute(0, 3, 1, 2).flatten(2)), valid

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

    def forward(self, maps: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps, zero in invalid frames, and which are valid; `maps` must be zero in invalid frames."""
        valid = valid[:, :: self.stride]
        maps = self.conv(maps).permute(0, 3, 1, 2)  # (batch, frames, channels, bins)
        return silu(batch_normalised(self.norm, maps, valid)).permute(0, 2, 3, 1), valid
