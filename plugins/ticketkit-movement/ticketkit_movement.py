"""A pruning criterion for ticketkit: keep the weights that moved farthest from where they began."""

from __future__ import annotations

from collections.abc import Callable

import ticketkit


@ticketkit.hookimpl
def ticketkit_register_criteria(register: Callable[..., None]) -> None:
    """Register the criterion under its name."""
    register("movement", movement)


def movement(inputs: ticketkit.ScoreInputs) -> dict[str, ticketkit.Tensor]:
    """Return |w - w0| for every parameter in scope; larger is kept (Zhou et al. 2019, the criterion `movement`)."""
    return {name: (weights - inputs.initial[name]).abs() for name, weights in inputs.weights.items()}
