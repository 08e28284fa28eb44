"""A recogniser with all that belongs to it: network, features, alphabet, loss and decoding."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import ctc_loss

from ticketkit_asr.decode import greedy
from ticketkit_asr.features import FeatureExtractor
from ticketkit_asr.text import Alphabet


class CtcNetwork(nn.Module, ABC):
    """A network that scores every label at every output frame."""

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (batch, output frames, labels), before any softmax, and the output frames of each utterance.

        `features` is (batch, frames, bins), `lengths` (batch,) the frames of each; what lies beyond must not matter.
        """

    @abstractmethod
    def output_lengths(self, frames: Tensor) -> Tensor:
        """Return the number of output frames for each number of feature frames."""


@dataclass(frozen=True, eq=False)
class CtcBundle:
    """A network that scores labels frame by frame, and what turns audio into its input and its output into text."""

    module: CtcNetwork
    extractor: FeatureExtractor
    alphabet: Alphabet

    @property
    def sample_rate(self) -> int:
        """The rate of the audio that `features` takes, in Hz."""
        return self.extractor.sample_rate

    def features(self, waveform: Tensor) -> Tensor:
        """Return the features (frames, bins) of a waveform (samples,) at `sample_rate`."""
        return self.extractor(waveform)

    def frames(self, samples: int) -> int:
        """Return the number of output frames for an utterance of `samples` samples at `sample_rate`."""
        return self.output_frames(self.extractor.frames(samples))

    def output_frames(self, frames: int) -> int:
        """Return the number of output frames for an utterance of `frames` feature frames."""
        return int(self.module.output_lengths(torch.tensor(frames)))

    def loss(self, scores: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Return the CTC loss of each utterance, in nats: shape (batch,).

        `scores` (batch, frames, labels) and `lengths` (batch,) are what the module returns, `targets` label indices.
        """
        return ctc_loss(
            scores.log_softmax(-1).transpose(0, 1),
            torch.cat(list(targets)).to(scores.device),
            lengths,
            torch.tensor([len(target) for target in targets]),
            blank=self.alphabet.blank,
            reduction="none",
        )

    def decode(self, scores: Tensor, lengths: Tensor) -> list[str]:
        """Return the text of each utterance by greedy decoding."""
        paths = scores.argmax(-1).tolist()
        return [
            self.alphabet.decode(greedy(path[:length], blank=self.alphabet.blank))
            for path, length in zip(paths, lengths.tolist(), strict=True)
        ]
