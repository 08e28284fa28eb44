"""The paper's CNN-LSTM (Deep Speech 2): convolutions, LSTMs and a linear layer, trained with CTC.

The LSTMs read in both directions, or forwards alone and then, in a lookahead convolution, a few frames on: the network
that can write while it listens, if its features allow it too (`centre: corpus`).

Batches are padded to their longest utterance, and padding never shows: what one utterance yields, and what batch
normalisation learns from it, depends on its valid frames alone.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import hardtanh, pad

from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.backbones.options import CnnLstmOptions, ConvOptions
from ticketkit_asr.backbones.rank_normalisation import normalised_over_ranks
from ticketkit_asr.features.extraction import FeatureExtractor
from ticketkit_asr.objectives.ctc import Ctc, CtcNetwork
from ticketkit_asr.text.labels import alphabet_of
from ticketkit_asr.training.ranks import world


def build_cnn_lstm(*, options: CnnLstmOptions) -> SpeechBundle:
    """Return a freshly initialised CNN-LSTM with its features and labels, by default the paper's 29.

    Every layer is initialised by its own `reset_parameters`, from torch's global generator.
    """
    extractor = FeatureExtractor(options.features, options.sample_rate)
    alphabet = alphabet_of(options.labels)
    module = CnnLstm(
        bins=extractor.bins,
        labels=alphabet.size,
        convs=options.convs,
        hidden=options.hidden,
        layers=options.layers,
        bidirectional=options.bidirectional,
        lookahead=options.lookahead,
        dropout=options.dropout,
    )
    return SpeechBundle.of(module, extractor, alphabet, Ctc(alphabet.blank))


class CnnLstm(CtcNetwork):
    """Features (batch, frames, bins) to label scores (batch, output frames, labels)."""

    def __init__(
        self,
        *,
        bins: int,
        labels: int,
        convs: Sequence[ConvOptions],
        hidden: int,
        layers: int,
        bidirectional: bool = True,
        lookahead: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = [1, *(conv.channels for conv in convs)]
        self.convs = nn.ModuleList(ConvBlock(inputs, conv) for inputs, conv in zip(channels, convs, strict=False))
        for conv in convs:
            bins = strided(bins, conv.stride[0])
        widths = [channels[-1] * bins, *[hidden] * (layers - 1)]
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:])
        self.lstms = nn.ModuleList((SummedBiLstm if bidirectional else nn.LSTM)(width, hidden) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.lookahead = Lookahead(hidden, lookahead) if lookahead else None
        self.output_norm = nn.BatchNorm1d(hidden)
        self.output = nn.Linear(hidden, labels, bias=False)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (batch, output frames, labels), zero beyond each utterance's output frames, and these."""
        maps = features.transpose(1, 2).unsqueeze(1)  # (batch, channel 1, bins, frames)
        maps = maps.masked_fill(~valid_frames(lengths, maps.shape[-1])[:, None, None, :], 0)
        for conv in self.convs:
            maps, lengths = conv(maps, lengths)
        x = maps.flatten(1, 2).permute(2, 0, 1)  # (frames, batch, channels * bins)
        valid = valid_frames(lengths, x.shape[0]).T
        order = reversal(lengths, x.shape[0])
        for norm, lstm in zip([None, *self.norms], self.lstms, strict=True):
            if norm is not None:
                x = over_valid(norm, self.dropout(x), valid)
            x = lstm(x, order) if isinstance(lstm, SummedBiLstm) else lstm(x)[0]
        if self.lookahead is not None:
            x = self.lookahead(x, valid)
        scores = self.output(over_valid(self.output_norm, x, valid))
        return scores.transpose(0, 1), lengths

    def output_lengths(self, frames: Tensor) -> Tensor:
        """Return the number of output frames for each number of feature frames."""
        for conv in self.convs:
            frames = cast(ConvBlock, conv).output_lengths(frames)
        return frames


class ConvBlock(nn.Module):
    """Convolution, batch normalisation and Hardtanh(0, 20) over (batch, channels, bins, frames)."""

    def __init__(self, inputs: int, options: ConvOptions) -> None:
        super().__init__()
        padding = (options.kernel[0] // 2, options.kernel[1] // 2)
        self.conv = nn.Conv2d(inputs, options.channels, options.kernel, options.stride, padding)
        self.norm = nn.BatchNorm1d(options.channels)

    def forward(self, maps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps and their lengths, zero beyond each utterance's own; `maps` must be zero beyond `lengths`."""
        lengths = self.output_lengths(lengths)
        maps = self.conv(maps).permute(0, 3, 1, 2)  # (batch, frames, channels, bins)
        maps = over_valid(self.norm, maps, valid_frames(lengths, maps.shape[1]))
        return hardtanh(maps, 0.0, 20.0).permute(0, 2, 3, 1), lengths

    def output_lengths(self, frames: Tensor) -> Tensor:
        """Return the frames that are left of each number of frames."""
        return (frames - 1) // self.conv.stride[1] + 1


class SummedBiLstm(nn.Module):
    """A bidirectional LSTM layer whose two directions are added: (frames, batch, width) to (frames, batch, hidden).

    Two one-way layers, the second over each utterance turned round within its own length: the same numbers as a packed
    `nn.LSTM(bidirectional=True)`, three times as fast to train on a CPU, where packed sequences miss oneDNN.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(width, hidden)
        self.backwards = nn.LSTM(width, hidden)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """Return the sum of both directions, given the batch's `reversal`; frames beyond a length hold anything."""
        ahead, _ = self.forwards(x)
        back, _ = self.backwards(reordered(x, order))
        summed: Tensor = ahead + reordered(back, order)
        return summed


class Lookahead(nn.Module):
    """Each channel's weighted sum of this and the next `frames` frames, and Hardtanh(0, 20): (frames, batch, channels).

    The row convolution of Deep Speech 2 (Amodei et al. 2016) as deepspeech.pytorch has it, whose `context` counts the
    present frame too.
    """

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, frames + 1, groups=channels, bias=False)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Return `x` convolved; frames that are not `valid` (frames, batch) count as zero."""
        x = x.masked_fill(~valid[:, :, None], 0).permute(1, 2, 0)  # (batch, channels, frames)
        x = self.conv(pad(x, (0, self.conv.kernel_size[0] - 1)))
        return hardtanh(x, 0.0, 20.0).permute(2, 0, 1)


def strided(size: int, stride: int) -> int:
    """Return the size after an odd-sized convolution with half its size as padding on both sides."""
    return (size - 1) // stride + 1


def valid_frames(lengths: Tensor, frames: int) -> Tensor:
    """Return a bool tensor (batch, frames): which frames lie within their utterance."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def reversal(lengths: Tensor, frames: int) -> Tensor:
    """Return, for (frames, batch), the frame to take so that each utterance is turned round and its padding stays."""
    time = torch.arange(frames, device=lengths.device)[:, None]
    return torch.where(time < lengths, lengths - 1 - time, time)


def reordered(x: Tensor, order: Tensor) -> Tensor:
    """Return `x` (frames, batch, width) with the frames of each utterance taken in `order` (frames, batch)."""
    return x.gather(0, order[:, :, None].expand_as(x))


def over_valid(norm: nn.BatchNorm1d, x: Tensor, valid: Tensor) -> Tensor:
    """Return `x` normalised over its valid frames alone (sequence-wise batch normalisation), zero elsewhere.

    `x` is (a, b, features) or (a, b, channels, bins), `valid` (a, b). Several ranks that train together normalise over
    the frames of all.
    """
    if not norm.training and torch.onnx.is_in_onnx_export():
        return by_running_statistics(norm, x, valid)
    rows = x[valid]
    shared = norm.training and world()[1] > 1
    normalised = torch.zeros_like(x)
    normalised[valid] = normalised_over_ranks(norm, rows) if shared else norm(rows)
    return normalised


def by_running_statistics(norm: nn.BatchNorm1d, x: Tensor, valid: Tensor) -> Tensor:
    """Return `over_valid` of evaluation mode, computed of all frames: no size depends on data, which exporters refuse.

    What lies in other frames must be finite.
    """
    normalised: Tensor = norm(x.flatten(0, 1)).view_as(x)
    return normalised.masked_fill(~beside(valid, x), 0)


def beside(valid: Tensor, x: Tensor) -> Tensor:
    """Return `valid` with as many dimensions as `x`, the new ones of size one."""
    return valid.view(*valid.shape, *[1] * (x.dim() - valid.dim()))
