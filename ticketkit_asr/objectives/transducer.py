"""The transducer (Graves 2012): labels and blanks alternate freely, each scored given all that was written before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ticketkit_asr.objectives.objective import Emission
from ticketkit_asr.objectives.rnnt_loss import rnnt_loss
from ticketkit_asr.objectives.transducer_search import MAX_SYMBOLS, Reader, beam_search, greedy


class TransducerNetwork(Reader, Protocol):
    """A network that listens and reads: called as a module it returns scores and their lengths, for DDP's sake."""

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return encoder states (batch, output frames, width) and the output frames of each utterance."""
        ...

    def score(self, encoded: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return scores (batch, output frames, most labels + 1, labels), before any softmax."""
        ...


@dataclass(frozen=True)
class Transducer:
    """Learns which labels are written, wherever; reads what the network writes, frame by frame."""

    blank: int
    max_symbols: int = MAX_SYMBOLS
    """Labels written at one frame, at most; learning knows no bound."""

    def losses(self, network: nn.Module, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Return the RNN-T loss of each utterance, in nats: (batch,)."""
        _, _, padded, counts = inputs = self.inputs(features, lengths, targets)
        scores, lengths = network(*inputs)
        return rnnt_loss(scores, padded, lengths, counts, blank=self.blank)

    def inputs(self, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what the network is called with: it reads the targets, padded to (batch, most labels), with counts."""
        return features, lengths, *self._collated(targets, features.device)

    def evaluated(
        self, module: TransducerNetwork, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]
    ) -> tuple[Tensor, list[list[Emission]]]:
        """Return losses and greedily decoded labels; the encoder runs once for both."""
        padded, counts = self._collated(targets, features.device)
        encoded, lengths = module.encode(features, lengths)
        losses = rnnt_loss(module.score(encoded, padded, counts), padded, lengths, counts, blank=self.blank)
        return losses, self._greedily(module, encoded, lengths)

    def written(
        self, module: TransducerNetwork, features: Tensor, lengths: Tensor, *, beam: int = 1
    ) -> list[list[Emission]]:
        """Return what the module writes: greedily, or the best of a beam search of that width."""
        with torch.no_grad():
            encoded, lengths = module.encode(features, lengths)
        if beam == 1:
            return self._greedily(module, encoded, lengths)
        found = beam_search(module, encoded, lengths, blank=self.blank, width=beam, max_symbols=self.max_symbols)
        return [list(hypotheses[0].emissions) for hypotheses in found]

    def fits(self, target: Sequence[int], frames: int) -> bool:
        """Say whether there is a frame: any number of labels can be written at it."""
        return frames >= 1

    def _greedily(self, module: TransducerNetwork, encoded: Tensor, lengths: Tensor) -> list[list[Emission]]:
        return greedy(module, encoded, lengths, blank=self.blank, max_symbols=self.max_symbols)

    def _collated(self, targets: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return targets padded to (batch, most labels), and the labels of each: (batch,)."""
        counts = torch.tensor([len(target) for target in targets], device=device)
        return pad_sequence(list(targets), batch_first=True, padding_value=self.blank).to(device), counts
