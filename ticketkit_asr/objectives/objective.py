"""What a network learns and how it is read, as everything around it sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Emission:
    """One label that is written, at one output frame."""

    frame: int
    label: int


class Objective(Protocol):
    """What a network learns, and how its output is read: CTC or a transducer."""

    def losses(self, network: nn.Module, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Return the loss of each utterance, in nats: (batch,).

        `network` is the module or a wrapper around it, `features` (batch, frames, bins), `lengths` (batch,) the frames
        of each utterance, `targets` its label indices.
        """
        ...

    def inputs(self, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what the network is called with to learn from a batch."""
        ...

    def evaluated(
        self, module: Any, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]
    ) -> tuple[Tensor, list[list[Emission]]]:
        """Return the losses, and what the module writes, greedily; one pass for both where that is possible."""
        ...

    def written(self, module: Any, features: Tensor, lengths: Tensor, *, beam: int = 1) -> list[list[Emission]]:
        """Return what the module writes: greedily, or the best of a beam search."""
        ...

    def fits(self, target: Sequence[int], frames: int) -> bool:
        """Say whether an utterance of so many output frames can hold a target at all."""
        ...
