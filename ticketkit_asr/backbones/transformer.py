"""A plain Transformer encoder: strided convolutions, then blocks of attention and feed-forward layers, with CTC.

Padding never shows: what one utterance yields depends on its valid frames alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ticketkit_asr.backbones.attention import FeedForward, SelfAttention, sinusoids
from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.backbones.cnn_lstm import valid_frames
from ticketkit_asr.backbones.options import ConvOptions
from ticketkit_asr.backbones.subsampling import ConvSubsampling, shortened
from ticketkit_asr.backbones.transformer_options import TransformerOptions
from ticketkit_asr.features.extraction import FeatureExtractor
from ticketkit_asr.objectives.ctc import Ctc, CtcNetwork
from ticketkit_asr.text.labels import alphabet_of


def build_transformer(*, options: TransformerOptions) -> SpeechBundle:
    """Return a freshly initialised Transformer encoder with its features and labels, by default the paper's 29.

    Every layer is initialised by its own `reset_parameters`, from torch's global generator.
    """
    extractor = FeatureExtractor(options.features, options.sample_rate)
    alphabet = alphabet_of(options.labels)
    module = Transformer(
        bins=extractor.bins,
        labels=alphabet.size,
        subsampling=options.subsampling,
        blocks=options.blocks,
        dim=options.dim,
        heads=options.heads,
        expansion=options.expansion,
        dropout=options.dropout,
    )
    return SpeechBundle.of(module, extractor, alphabet, Ctc(alphabet.blank))


class Transformer(CtcNetwork):
    """Features (batch, frames, bins) to label scores (batch, output frames, labels)."""

    def __init__(
        self,
        *,
        bins: int,
        labels: int,
        subsampling: Sequence[ConvOptions],
        blocks: int,
        dim: int,
        heads: int,
        expansion: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.subsampling = ConvSubsampling(bins=bins, convs=subsampling, dim=dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, heads=heads, expansion=expansion, dropout=dropout) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, labels)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (batch, output frames, labels), zero beyond each utterance's output frames, and these."""
        x, lengths = self.subsampling(features, lengths)
        valid = valid_frames(lengths, x.shape[1])
        positions = sinusoids(torch.arange(x.shape[1], device=x.device), x.shape[2])
        x = self.dropout(x + positions.to(x.dtype))
        for block in self.blocks:
            x = block(x, valid)
        return self.output(self.norm(x)).masked_fill(~valid[:, :, None], 0), lengths

    def output_lengths(self, frames: Tensor) -> Tensor:
        """Return the number of output frames for each number of feature frames."""
        for stride in self.subsampling.strides:
            frames = shortened(frames, stride)
        return frames


class TransformerBlock(nn.Module):
    """Attention and a feed-forward layer, each normalised before it and added to what it reads (Xiong et al. 2020)."""

    def __init__(self, dim: int, *, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.feed_forward = FeedForward(dim, expansion=expansion, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Return (batch, frames, dim) from the same; `valid` (batch, frames) says which frames may be attended to."""
        x = x + self.dropout(self.attention(self.attention_norm(x), valid))
        added: Tensor = self.feed_forward(x)
        return x + added
