"""The RNN transducer (Graves 2012): an LSTM encoder hears, an LSTM predictor reads what is written, a joiner decides.

Batches are padded to their longest utterance, and padding never shows: what one utterance yields depends on its valid
frames and labels alone.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.backbones.cnn_lstm import SummedBiLstm, reversal, valid_frames
from ticketkit_asr.backbones.rnnt_options import RnntOptions
from ticketkit_asr.features.extraction import FeatureExtractor
from ticketkit_asr.objectives.transducer import Transducer
from ticketkit_asr.objectives.transducer_search import State
from ticketkit_asr.text.labels import alphabet_of


def build_rnnt(*, options: RnntOptions) -> SpeechBundle:
    """Return a freshly initialised RNN-T with its features and labels, by default the paper's 29.

    Every layer is initialised by its own `reset_parameters`, from torch's global generator.
    """
    extractor = FeatureExtractor(options.features, options.sample_rate)
    alphabet = alphabet_of(options.labels)
    module = Rnnt(bins=extractor.bins, labels=alphabet.size, blank=alphabet.blank, options=options)
    return SpeechBundle.of(module, extractor, alphabet, Transducer(alphabet.blank))


class Rnnt(nn.Module):
    """Features and labels to the scores of what follows at every frame after every number of labels."""

    def __init__(self, *, bins: int, labels: int, blank: int, options: RnntOptions) -> None:
        super().__init__()
        self.blank = blank
        widths = [bins, *[options.hidden] * (len(options.stack) - 1)]
        self.encoder = nn.ModuleList(
            EncoderLayer(width, options.hidden, stack=stack, bidirectional=options.bidirectional)
            for width, stack in zip(widths, options.stack, strict=True)
        )
        self.embedding = nn.Embedding(labels, options.embedding)
        self.predictor = nn.LSTM(options.embedding, options.predictor, batch_first=True)
        self.from_encoder = nn.Linear(options.hidden, options.joint)
        self.from_predictor = nn.Linear(options.predictor, options.joint, bias=False)
        self.output = nn.Linear(options.joint, labels)

    def forward(
        self, features: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return scores (batch, output frames, most labels + 1, labels), before any softmax, and the output lengths.

        `features` is (batch, frames, bins), `targets` (batch, most labels); what lies beyond `lengths` and
        `target_lengths` may be anything. Scores beyond them mean nothing.
        """
        encoded, lengths = self.encode(features, lengths)
        return self.score(encoded, targets, target_lengths), lengths

    def score(self, encoded: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the scores of `forward` from encoder states (batch, output frames, hidden)."""
        valid = valid_frames(target_lengths.to(targets.device), targets.shape[1])
        predicted, _ = self.predict(pad(targets.masked_fill(~valid, self.blank), (1, 0), value=self.blank))
        return self.join(encoded[:, :, None], predicted[:, None])

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return encoder states (batch, output frames, hidden), zero beyond each utterance's, and these lengths."""
        x = zero_beyond(features.transpose(0, 1), lengths)  # (frames, batch, bins)
        for layer in self.encoder:
            x, lengths = layer(x, lengths)
        return x.transpose(0, 1), lengths

    def predict(self, labels: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return predictor states (batch, labels, units) after each label of (batch, labels), and what to go on from.

        A text begins with a blank. The state is (1, batch, units) twice.
        """
        states, state = self.predictor(self.embedding(labels), state)
        return states, state

    def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return scores (..., labels) from encoder states (..., hidden) and predictor states (..., units)."""
        scores: Tensor = self.output(torch.tanh(self.from_encoder(encoded) + self.from_predictor(predicted)))
        return scores

    def output_lengths(self, frames: Tensor) -> Tensor:
        """Return the number of output frames for each number of feature frames."""
        for layer in self.encoder:
            frames = layer.output_lengths(frames)  # type: ignore[operator]
        return frames


class EncoderLayer(nn.Module):
    """Frames stacked, an LSTM layer of one or two directions, layer normalisation; over (frames, batch, width)."""

    def __init__(self, width: int, hidden: int, *, stack: int, bidirectional: bool) -> None:
        super().__init__()
        self.stack = stack
        self.lstm = SummedBiLstm(stack * width, hidden) if bidirectional else nn.LSTM(stack * width, hidden)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer's output, zero beyond each utterance, and the lengths that are left."""
        x = stacked(x, self.stack)
        lengths = self.output_lengths(lengths)
        if isinstance(self.lstm, SummedBiLstm):
            x = self.lstm(x, reversal(lengths, x.shape[0]))
        else:
            x, _ = self.lstm(x)
        return zero_beyond(self.norm(x), lengths), lengths

    def output_lengths(self, frames: Tensor) -> Tensor:
        """Return the frames that are left of each number of frames; the last may be part padding."""
        return (frames + self.stack - 1) // self.stack


def stacked(x: Tensor, size: int) -> Tensor:
    """Return (frames, batch, width) with `size` frames joined into one, the last filled up with zeros."""
    frames, batch, width = x.shape
    x = pad(x, (0, 0, 0, 0, 0, -frames % size))
    return x.reshape(-1, size, batch, width).transpose(1, 2).flatten(2)


def zero_beyond(x: Tensor, lengths: Tensor) -> Tensor:
    """Return `x` (frames, batch, width) with zeros beyond each utterance's length."""
    return x.masked_fill(~valid_frames(lengths, x.shape[0]).T.unsqueeze(-1), 0)
