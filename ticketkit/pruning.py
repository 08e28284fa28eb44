"""One pruning step: trained weights → scores → counts → the next mask."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ticketkit.criterion import ScoreInputs
from ticketkit.errors import ScoreError
from ticketkit.mask import Mask
from ticketkit.registry import Choice
from ticketkit.selection import select


@dataclass(frozen=True)
class Pruner:
    """How every round of a run prunes: the criterion, the split of the budget, the floors and the seed."""

    criterion: Choice
    allocation: Choice
    floors: Mapping[str, int]
    seed: int

    def next_mask(
        self,
        mask: Mask,
        keep: int,
        *,
        weights: Mapping[str, torch.Tensor],
        initial: Mapping[str, torch.Tensor],
        index: int,
    ) -> Mask:
        """Return the mask of round `index`: a subset of `mask` that keeps exactly `keep` of the trained `weights`.

        Raises `ScoreError` if the criterion changes a weight, besides what `select` raises.
        """
        inputs = ScoreInputs(
            weights={name: weights[name].detach() for name in mask},
            initial={name: initial[name].detach() for name in mask},
            mask=mask,
            generator=torch.Generator().manual_seed(derived_seed(self.seed, index)),
        )
        versions = {name: tensor._version for name, tensor in inputs.weights.items()}
        counts = self.allocation.call(mask.shapes, keep, floors=self.floors, capacities=mask.counts)
        floors = None if isinstance(counts, Mapping) else self.floors
        chosen = select(self.criterion.call(inputs), mask, counts, floors=floors)
        if changed := [name for name, tensor in inputs.weights.items() if tensor._version != versions[name]]:
            raise ScoreError(
                f"criterion {self.criterion.provenance.entry} changed the weights of {', '.join(changed)} in place; "
                "a criterion must only read them (use abs(), not abs_())"
            )
        return chosen


def derived_seed(seed: int, index: int) -> int:
    """Return a generator seed for one round: 63 bits of SHA-256 over the run's seed and the round's index."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big") >> 1
