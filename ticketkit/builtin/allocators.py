"""Built-in allocators: how a budget is split between parameters."""

from collections.abc import Mapping
from math import prod

from ticketkit.allocation import apportion


def global_ranking(
    shapes: Mapping[str, tuple[int, ...]],
    keep: int,
    *,
    floors: Mapping[str, int],
    capacities: Mapping[str, int],
) -> int:
    """Return the budget undivided: all parameters are ranked together, whoever scores highest stays."""
    return keep


def uniform(
    shapes: Mapping[str, tuple[int, ...]],
    keep: int,
    *,
    floors: Mapping[str, int],
    capacities: Mapping[str, int],
) -> dict[str, int]:
    """Return counts in proportion to the parameters' sizes: every parameter gets the same density."""
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    return apportion(sizes, keep, floors=floors, capacities=capacities)
