"""The paper's Conformer: attention and convolution at a frame rate that falls from stage to stage, trained with CTC.

Blocks of our own rather than torchaudio.models.Conformer, which knows neither relative positions nor strides nor
growing widths, and whose batch normalisation counts padding. Sizes and layout follow the Efficient Conformer (Burchi
and Vielzeuf 2021), on which the paper's code is built. Padding never shows: what one utterance yields, and what batch
normalisation learns from it, depends on its valid frames alone.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import glu, silu

from ticketkit_asr.backbones.attention import FeedForward, RelativeSelfAttention
from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.backbones.cnn_lstm import valid_frames
from ticketkit_asr.backbones.normalisation import batch_normalised
from ticketkit_asr.backbones.options import ConvOptions
from ticketkit_asr.backbones.subsampling import ConvSubsampling, shortened
from ticketkit_asr.backbones.transformer_options import ConformerOptions, StageOptions
from ticketkit_asr.features.extraction import FeatureExtractor
from ticketkit_asr.objectives.ctc import Ctc, CtcNetwork
from ticketkit_asr.text.labels import alphabet_of

_STRIDE = 2
"""Frames that the last block of a stage makes one of."""


def build_conformer(*, options: ConformerOptions) -> SpeechBundle:
    """Return a freshly initialised Conformer with its features and labels, by default the paper's 29.

    Every layer is initialised by its own `reset_parameters`, from torch's global generator.
    """
    extractor = FeatureExtractor(options.features, options.sample_rate)
    alphabet = alphabet_of(options.labels)
    module = Conformer(
        bins=extractor.bins,
        labels=alphabet.size,
        subsampling=options.subsampling,
        stages=options.stages,
        heads=options.heads,
        expansion=options.expansion,
        kernel=options.kernel,
        dropout=options.dropout,
    )
    return SpeechBundle.of(module, extractor, alphabet, Ctc(alphabet.blank))


class Conformer(CtcNetwork):
    """Features (batch, frames, bins) to label scores (batch, output frames, labels)."""

    def __init__(
        self,
        *,
        bins: int,
        labels: int,
        subsampling: Sequence[ConvOptions],
        stages: Sequence[StageOptions],
        heads: int,
        expansion: int,
        kernel: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.subsampling = ConvSubsampling(bins=bins, convs=subsampling, dim=stages[0].dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        self.strides = self.subsampling.strides
        for stage, following in zip(stages, [*stages[1:], None], strict=True):
            for number in range(stage.blocks):
                widened = following if number == stage.blocks - 1 else None
                block = ConformerBlock(
                    stage.dim,
                    downsampled_dim=widened.dim if widened else None,
                    heads=heads,
                    group=stage.group,
                    expansion=expansion,
                    kernel=kernel,
                    dropout=dropout,
                )
                self.blocks.append(block)
                self.strides.append(block.stride)
        self.output = nn.Linear(stages[-1].dim, labels)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (batch, output frames, labels), zero beyond each utterance's output frames, and these."""
        x, lengths = self.subsampling(features, lengths)
        x = self.dropout(x)
        for block in self.blocks:
            x, lengths = block(x, lengths)
        return self.output(x).masked_fill(~valid_frames(lengths, x.shape[1])[:, :, None], 0), lengths

    def output_lengths(self, frames: Tensor) -> Tensor:
        """Return the number of output frames for each number of feature frames."""
        for stride in self.strides:
            frames = shortened(frames, stride)
        return frames


class ConformerBlock(nn.Module):
    """Half a feed-forward layer, attention, convolution, the other half and a norm (Gulati et al. 2020, equation 1).

    With a `downsampled_dim`, the convolution halves the frames and widens them to that many features.
    """

    def __init__(
        self,
        dim: int,
        *,
        downsampled_dim: int | None,
        heads: int,
        group: int,
        expansion: int,
        kernel: int,
        dropout: float,
    ) -> None:
        super().__init__()
        output_dim = downsampled_dim or dim
        self.stride = _STRIDE if downsampled_dim else 1
        self.feed_forward_1 = FeedForward(dim, expansion=expansion, dropout=dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = RelativeSelfAttention(dim, heads, group=group)
        self.convolution = ConvolutionModule(dim, output_dim, kernel=kernel, stride=self.stride)
        self.shortcut = nn.Conv1d(dim, output_dim, 1, self.stride) if downsampled_dim else None
        self.feed_forward_2 = FeedForward(output_dim, expansion=expansion, dropout=dropout)
        self.norm = nn.LayerNorm(output_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return (batch, frames, dim) and the frames of each utterance, (batch,), from the same."""
        x = x + 0.5 * self.feed_forward_1(x)
        x = x + self.dropout(self.attention(self.attention_norm(x), valid_frames(lengths, x.shape[1])))
        convolved, lengths = self.convolution(x, lengths)
        x = self.dropout(convolved) + (x if self.shortcut is None else self.shortcut(x.mT).mT)
        x = x + 0.5 * self.feed_forward_2(x)
        return self.norm(x), lengths


class ConvolutionModule(nn.Module):
    """A gated pointwise, a depthwise and a pointwise convolution over time (Gulati et al. 2020, section 2.2)."""

    def __init__(self, dim: int, output_dim: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Conv1d(dim, 2 * output_dim, 1)
        self.depthwise = nn.Conv1d(output_dim, output_dim, kernel, stride, kernel // 2, groups=output_dim)
        self.batch_norm = nn.BatchNorm1d(output_dim)
        self.contract = nn.Conv1d(output_dim, output_dim, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return (batch, frames / stride, output dim) and (batch,) lengths from (batch, frames, dim) and lengths."""
        gated = glu(self.expand(self.norm(x).mT), dim=1)
        gated = gated.masked_fill(~valid_frames(lengths, x.shape[1])[:, None, :], 0)
        deep = self.depthwise(gated).mT
        lengths = shortened(lengths, self.stride)
        normalised = batch_normalised(self.batch_norm, deep, valid_frames(lengths, deep.shape[1]))
        return self.contract(silu(normalised).mT).mT, lengths
