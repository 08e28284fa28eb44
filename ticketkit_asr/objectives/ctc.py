"""Connectionist temporal classification: the loss, and how frame-wise scores are read (Graves et al. 2006)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import ctc_loss

from ticketkit_asr.objectives.ctc_beam import prefix_beam
from ticketkit_asr.objectives.objective import Emission


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


@dataclass(frozen=True)
class Ctc:
    """Learns labels at frames, with a blank between them."""

    blank: int

    def losses(self, network: nn.Module, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Return the CTC loss of each utterance, in nats: (batch,)."""
        scores, lengths = network(*self.inputs(features, lengths, targets))
        return self.losses_of(scores, lengths, targets)

    def inputs(self, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what the network is called with: it reads no targets."""
        return features, lengths

    def losses_of(self, scores: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Return the losses (batch,) of scores (batch, frames, labels)."""
        return ctc_loss(
            scores.float().log_softmax(-1).transpose(0, 1),
            torch.cat(list(targets)).to(scores.device),
            lengths,
            torch.tensor([len(target) for target in targets]),
            blank=self.blank,
            reduction="none",
        )

    def evaluated(
        self, module: CtcNetwork, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]
    ) -> tuple[Tensor, list[list[Emission]]]:
        """Return losses and greedily decoded labels of one pass."""
        scores, lengths = module(features, lengths)
        return self.losses_of(scores, lengths, targets), self.greedily(scores, lengths)

    def written(self, module: CtcNetwork, features: Tensor, lengths: Tensor, *, beam: int = 1) -> list[list[Emission]]:
        """Return what the module writes: greedily, or the best of a prefix beam search of that width."""
        with torch.no_grad():
            scores, lengths = module(features, lengths)
        if beam == 1:
            return self.greedily(scores, lengths)
        log_probs = scores.float().log_softmax(-1).cpu().numpy()
        return [
            [
                Emission(frame, label)
                for frame, label in prefix_beam(log_probs[i, :length], blank=self.blank, width=beam)
            ]
            for i, length in enumerate(lengths.tolist())
        ]

    def greedily(self, scores: Tensor, lengths: Tensor) -> list[list[Emission]]:
        """Return the labels of the best path of each utterance, at the frames where they begin."""
        paths = scores.argmax(-1).tolist()
        return [greedy(path[:length], blank=self.blank) for path, length in zip(paths, lengths.tolist(), strict=True)]

    def fits(self, target: Sequence[int], frames: int) -> bool:
        """Say whether there are enough frames: one a label, and a blank between equal neighbours."""
        return needed_frames(target) <= frames


def greedy(path: Sequence[int], *, blank: int) -> list[Emission]:
    """Return what a CTC path spells: runs of a label count once, then blanks go (equation 1).

    >>> [(e.frame, e.label) for e in greedy([0, 1, 1, 0, 1, 2, 2], blank=0)]
    [(1, 1), (4, 1), (5, 2)]
    """
    before = blank
    found = []
    for frame, label in enumerate(path):
        if label not in (before, blank):
            found.append(Emission(frame, label))
        before = label
    return found


def needed_frames(target: Sequence[int]) -> int:
    """Return the fewest frames that can spell a target: one a label, and a blank between equal neighbours."""
    labels = list(map(int, target))
    return len(labels) + sum(label == before for before, label in pairwise(labels))
