"""Controls: tickets that ought to lose, to show that what was found is worth something. Each checks its own effect.

| control | how |
|---|---|
| random pruning | `criterion="random"`; with IMP's counts per layer: `allocation={"name": "layer_counts", ...}` |
| random ticket | `random_ticket(ticket, seed)`: as many weights, anywhere in the scope |
| shuffled mask | `random_ticket(ticket, seed, within="parameter")`: as many weights in each parameter, anywhere in it |
| inverted scores | `criterion={"name": "inverted", "of": "magnitude"}`: keeps what the criterion would prune |
| other initialisation | `reinitialised_ticket(ticket, model, seed)`: the same mask over fresh weights |
| reinitialised IMP | `rewind="reinit"` |
| standard pruning | `rewind="none"`: never rewound |
| one-shot | `schedule="one_shot"`: pruned once, to the same density |

Train any of them with `ticket.apply_(model)` and `enforced(model, ticket.mask)`. Frankle & Carbin 2019; Frankle et al.
2021, "Pruning neural networks at initialization: why are we missing the mark?", for the shuffled and inverted ones.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import nn

from ticketkit.errors import MaskError, RunError, TicketError
from ticketkit.mask import Mask
from ticketkit.rewind import Initialiser, reinitialise_
from ticketkit.snapshot import Snapshot
from ticketkit.ticket import Ticket

Within = Literal["parameter", "model"]


def shuffled(mask: Mask, seed: int, *, within: Within = "parameter") -> Mask:
    """Return a mask that keeps as many weights as the given one at random places: a uniformly random permutation.

    `within="parameter"` keeps every parameter's count, `"model"` only the sum. Raises `MaskError` when the result is
    the same mask, as it must be when all or no weights are kept: such a control would show nothing.

    >>> mask = Mask({"w": torch.tensor([True, True, False, False, False, False])})
    >>> shuffled(mask, seed=1).counts, shuffled(mask, seed=1) == mask
    ({'w': 2}, False)
    """
    if within not in ("parameter", "model"):
        raise MaskError(f"within must be 'parameter' (keep each one's count) or 'model' (keep the sum), not {within!r}")
    generator = np.random.default_rng(seed)
    sizes = mask.sizes
    if within == "parameter":
        counts = mask.counts
    else:
        drawn = generator.multivariate_hypergeometric(list(sizes.values()), mask.kept, method="marginals")
        counts = dict(zip(sizes, map(int, drawn), strict=True))
    flags = {name: torch.zeros(size, dtype=torch.bool) for name, size in sizes.items()}
    for name, size in sizes.items():
        flags[name][torch.from_numpy(generator.permutation(size)[: counts[name]])] = True
    shapes = mask.shapes
    result = Mask({name: flag.reshape(shapes[name]) for name, flag in flags.items()}, aliases=mask.aliases)
    if result == mask:
        raise MaskError(
            f"shuffling within each {within} changed nothing: {mask!r}; a mask that keeps all or no weights, or very "
            "few weights, has no random control; try another seed or a sparser mask"
        )
    return result


def random_ticket(ticket: Ticket, seed: int, *, within: Within = "model") -> Ticket:
    """Return the ticket with a `shuffled` mask and the same rewind weights; what was measured is dropped."""
    facts = ticket.facts.model_copy(update={"metrics": {}, "seed": seed, "parent": ticket.mask.digest})
    return replace(ticket, mask=shuffled(ticket.mask, seed, within=within), facts=facts)


def reinitialised_ticket(
    ticket: Ticket, model: nn.Module, seed: int, *, initialise: Initialiser | None = None
) -> Ticket:
    """Return the ticket with the same mask over fresh initial weights of `model`, which is left as it was.

    Weights are drawn by each module's own `reset_parameters`, or by `initialise(model)`. Raises `TicketError` for a
    ticket without rewind weights, and `RunError` when a kept weight matrix came out as it was before.
    """
    if ticket.weights is None:
        raise TicketError("this ticket holds no rewind weights that others could take the place of")
    ticket.check_fits(model)
    before = Snapshot.capture(model)
    try:
        reinitialise_(model, seed, initialise)
        fresh = Snapshot.capture(model).tensors
    finally:
        before.restore(model)
    same = [
        name
        for name in ticket.mask
        if ticket.mask.counts[name] and _kept(ticket.mask, name, fresh).equal(_kept(ticket.mask, name, ticket.weights))
    ]
    if same:
        raise RunError(f"fresh weights of {', '.join(same)} equal the ticket's own; choose another seed")
    facts = ticket.facts.model_copy(update={"metrics": {}, "seed": seed, "rewind": "reinit"})
    return replace(ticket, weights=fresh, facts=facts)


def _kept(mask: Mask, name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return tensors[f"parameter/{name}"][mask[name]]
