"""Built-in allocators: how a budget is split between parameters, or spaces of units.

They see shapes, floors, what is left (`capacities`) and a budget, all in weights, and nothing else.
"""

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ticketkit.allocation import Allocator, apportion, densities_by_name
from ticketkit.errors import BudgetError, ConfigError
from ticketkit.options import Options

if TYPE_CHECKING:
    from ticketkit.mask import Mask

Shapes = Mapping[str, tuple[int, ...]]
Counts = Mapping[str, int]
Density = Annotated[float, Field(strict=True, ge=0, le=1)]


class ByPatternOptions(Options):
    """Options of `by_pattern`: the density of parameters by a shell glob over their names, or by their full name."""

    densities: dict[str, Density] = Field(min_length=1)


class LayerCountsOptions(Options):
    """Options of `layer_counts`: the ticket files whose counts are taken over."""

    tickets: tuple[Path, ...] = Field(min_length=1)


def global_ranking(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> int:
    """Return the budget undivided: all parameters are ranked together, whoever scores highest stays."""
    return keep


def uniform(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> dict[str, int]:
    """Return counts in proportion to the parameters' sizes: every parameter gets the same density."""
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    return apportion(sizes, keep, floors=floors, capacities=capacities)


def erdos_renyi(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> dict[str, int]:
    """Return counts of a sparse random graph: density ∝ (n_in + n_out) / (n_in · n_out), whatever the kernel's size.

    For shapes (n_out, n_in, *kernel); a vector or a scalar counts as the densest of all, ∝ 1. Layers that this would
    fill are kept whole and the others share the rest (Mocanu et al. 2018, SET, equation 1; Evci et al. 2020, RigL).
    """
    weights = {name: sum(_sides(shape)[:2]) * prod(shape[2:]) for name, shape in shapes.items()}
    return apportion(weights, keep, floors=floors, capacities=capacities)


def erk(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> dict[str, int]:
    """Return counts of the Erdős-Rényi-Kernel rule: density ∝ (n_in + n_out + k_h + k_w) / (n_in · n_out · k_h · k_w).

    In words, the sum of a shape over its product, for any number of kernel dimensions (Evci et al. 2020, RigL, section
    3, as in its published code). The rest is as for `erdos_renyi`, which it equals without kernels.
    """
    weights = {name: sum(_sides(shape)) for name, shape in shapes.items()}
    return apportion(weights, keep, floors=floors, capacities=capacities)


def by_pattern(
    shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts, options: ByPatternOptions
) -> dict[str, int]:
    """Return fixed densities for parameters by pattern; the others share what remains in proportion to their sizes.

    A fixed count is the nearest to density · size, but not below the floor nor above what is left. A full name goes
    before patterns. Raises `ConfigError` for a pattern that matches nothing and for two that contradict each other,
    `BudgetError` for a budget that the others cannot make up.
    """
    fixed = {
        name: min(max(round(density * prod(shapes[name])), floors.get(name, 0)), capacities[name])
        for name, density in densities_by_name("by_pattern", options.densities, shapes).items()
    }
    others = {name: prod(shape) for name, shape in shapes.items() if name not in fixed}
    least = sum(fixed.values()) + sum(floors.get(name, 0) for name in others)
    most = sum(fixed.values()) + sum(capacities[name] for name in others)
    if not least <= keep <= most:
        listed = ", ".join(f"{name}: {count}" for name, count in fixed.items())
        raise BudgetError(
            f"by_pattern cannot keep {keep} weights: it fixes {sum(fixed.values())} ({listed}) and the {len(others)} "
            f"other parameters can keep {least - sum(fixed.values())} to {most - sum(fixed.values())}, which makes "
            f"{least} to {most} in all; change the densities or the rounds"
        )
    shared = apportion(others, keep - sum(fixed.values()), floors=floors, capacities=capacities)
    return {name: fixed[name] if name in fixed else shared[name] for name in shapes}


def layer_counts(
    shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts, options: LayerCountsOptions
) -> dict[str, int]:
    """Return the counts per parameter of the ticket that keeps exactly this many weights.

    With the criterion `random` it is the control for what is in a mask beyond its layer densities: random pruning with
    the counts that IMP found.
    """
    from ticketkit.ticket import Ticket

    masks = [(str(path), Ticket.load(path).mask) for path in options.tickets]
    return _counts_of(masks, shapes, keep, floors, capacities)


def counts_like(masks: "Iterable[Mask]") -> Allocator:
    """Return an allocator that splits a budget as the mask does that keeps exactly so many weights."""
    named = [(f"mask {index}", mask) for index, mask in enumerate(masks)]

    def allocate(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> dict[str, int]:
        """Return the counts per parameter of the mask that keeps exactly this many weights."""
        return _counts_of(named, shapes, keep, floors, capacities)

    return allocate


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape or (1,)  # a scalar is a vector of one


def _counts_of(
    masks: "Iterable[tuple[str, Mask]]", shapes: Shapes, keep: int, floors: Counts, capacities: Counts
) -> dict[str, int]:
    """Return the counts of the one mask that keeps `keep` weights; raise `BudgetError` if they cannot be met."""
    found: dict[str, dict[str, int]] = {}
    kept: list[int] = []
    for origin, mask in masks:
        if wrong := sorted(mask.sizes.items() ^ {(name, prod(shape)) for name, shape in shapes.items()}):
            names = ", ".join(dict.fromkeys(name for name, _ in wrong))
            raise ConfigError(f"{origin} does not cover what is pruned here; of other name or size: {names}")
        kept.append(mask.kept)
        if mask.kept == keep:
            found[origin] = mask.counts
    if not found:
        there = ", ".join(map(str, sorted(set(kept), reverse=True))) or "none"
        raise BudgetError(f"no mask keeps exactly {keep} weights; those given keep {there}: use the same plan as they")
    (origin, counts), *others = found.items()
    for other, different in others:
        if different != counts:
            raise ConfigError(f"{origin} and {other} both keep {keep} weights, with other counts; give one of them")
    for name, count in counts.items():
        if not floors.get(name, 0) <= count <= capacities[name]:
            raise BudgetError(
                f"{origin} keeps {count} weights of {name!r}, but from {floors.get(name, 0)} (its floor) to "
                f"{capacities[name]} (what is left) can be kept here"
            )
    return {name: counts[name] for name in shapes}
