"""Tickets in loops of one's own with an `Accelerator`.

One ticket:

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with held(accelerator, model, ticket, optimizer):
        train(accelerator, model, optimizer, loader)

The rounds of an `IMP` run, over a model that is prepared once, so that every round trains the same wrapper:

    model = accelerator.prepare(network)
    for round in IMP(model, rounds=14):
        accelerator.free_memory()
        optimizer, scheduler = build(model)
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        start = track(accelerator, round, optimizer=optimizer, scheduler=scheduler)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ticketkit.adapters.holding import Holding, MaskSource, check_same_mask, mask_state, missing
from ticketkit.enforce import Enforcement
from ticketkit.errors import ConfigError
from ticketkit.mask import Mask
from ticketkit.round import Round
from ticketkit.state import Stateful

try:
    from accelerate import Accelerator
except ModuleNotFoundError as error:
    raise missing("accelerate", "accelerate", error) from error


@contextmanager
def held(
    accelerator: Accelerator, model: nn.Module, ticket: MaskSource, *optimizers: Optimizer
) -> Iterator["HeldTicket"]:
    """Hold a ticket's mask on a prepared model inside the block, and in what the accelerator saves there.

    `ticket`: a `Ticket`, a mask or a ticket's file. Call `accelerator.load_state` in the block, too; it raises
    `TicketError` for a state that was saved with another mask. Raises `ScopeError` for a ticket of another model, and
    for prepared optimizers that do not hold what the mask is on.
    """
    holding = Holding(ticket)
    enforcement = holding.start(model, *optimizers)
    try:
        holder = HeldTicket(holding.mask, enforcement)
        accelerator.register_for_checkpointing(holder)
        yield holder
    finally:
        holding.end()
        accelerator._custom_objects[:] = [thing for thing in accelerator._custom_objects if thing is not holder]


class HeldTicket:
    """A mask that is held, for `accelerator.register_for_checkpointing` and for the loop's own log."""

    def __init__(self, mask: Mask, enforcement: Enforcement):
        self.mask = mask
        self._enforcement = enforcement

    @property
    def density(self) -> float:
        """Kept weights as a share of the scope."""
        return self.mask.density

    @property
    def steps(self) -> int:
        """Optimizer steps taken under the mask, those before a `load_state` included."""
        return self._enforcement.steps

    def state_dict(self) -> dict[str, Any]:
        """Return the mask, with its digest, and the number of steps."""
        return {**mask_state(self.mask), "steps": self.steps}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a number of steps; raises `TicketError` if they were taken under another mask.

        The weights were loaded before, and are masked now.
        """
        self._enforcement.apply()
        check_same_mask(state_dict, self.mask)
        self._enforcement.continue_from(state_dict["steps"])


def track(accelerator: Accelerator, round: Round, **objects: Stateful) -> int:
    """Hand a round's prepared objects over to it as `round.track` does, and the accelerator's scaler if it has one.

    Returns the step from which the loop goes on. Raises `ScopeError` if the optimizers among them do not hold the
    parameters in scope, and `ConfigError` if the accelerator has other optimizers, which it would unscale and save too.
    """
    optimizers = [thing for thing in objects.values() if isinstance(thing, Optimizer)]
    others = [thing for thing in accelerator._optimizers if not any(thing is ours for ours in optimizers)]
    if others:
        raise ConfigError(
            f"the accelerator has {len(others)} optimizers besides those that round {round.index} tracks; begin each "
            "round with accelerator.free_memory(), prepare the model again with its optimizer, and track what "
            "accelerator.prepare returned"
        )
    round.check_optimizer(*optimizers)
    scaler = {} if accelerator.scaler is None else {"scaler": accelerator.scaler}
    return round.track(**objects, **scaler)
