"""One budget → counts per parameter, by exact integer arithmetic. No torch."""

import difflib
import heapq
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from fractions import Fraction
from math import ceil, floor, prod
from typing import Protocol

from ticketkit.errors import BudgetError, ConfigError


class Allocator(Protocol):
    """Splits a budget between parameters before they are ranked."""

    def __call__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        keep: int,
        *,
        floors: Mapping[str, int],
        capacities: Mapping[str, int],
    ) -> int | Mapping[str, int]:
        """Return counts per parameter that sum to `keep`, or `keep` itself to rank all parameters together.

        Each count lies between the parameter's floor and its capacity, the weights it still has.
        """
        ...


def checked_counts(
    counts: object,
    keep: int,
    *,
    floors: Mapping[str, int],
    capacities: Mapping[str, int],
) -> int | Mapping[str, int]:
    """Return what an allocator made of a budget.

    Raises `BudgetError` listing what is wrong with it: names, whole numbers, floors, capacities, and the sum.
    """
    if not isinstance(counts, Mapping):
        if counts != keep or isinstance(counts, bool):
            raise BudgetError(f"an allocator must return {keep} itself or counts by name, not {counts!r}")
        return keep
    faults = [f"{name!r} has no count" for name in capacities if name not in counts]
    for name, count in counts.items():
        if name not in capacities:
            faults.append(f"{name!r} is none of the {len(capacities)} names")
        elif isinstance(count, bool) or not isinstance(count, int):
            faults.append(f"the count of {name!r} is {count!r}, no whole number (an int)")
        elif not floors.get(name, 0) <= count <= capacities[name]:
            faults.append(f"{name!r} gets {count}; {floors.get(name, 0)} (floor) to {capacities[name]} (left) can be")
    if not faults and sum(counts.values()) != keep:
        faults.append(f"the counts sum to {sum(counts.values())}")
    if faults:
        raise BudgetError(f"an allocator must split {keep} weights, but:\n  " + "\n  ".join(faults))
    return counts


def apportion(
    weights: Mapping[str, Fraction | int],
    keep: int,
    *,
    floors: Mapping[str, int] | None = None,
    capacities: Mapping[str, int],
) -> dict[str, int]:
    """Return whole counts in proportion to `weights`, summing to `keep`, by the Sainte-Laguë divisor method.

    The n-th unit of a parameter has the priority weight / (n - ½); the `keep` highest priorities win, ties going to the
    earlier parameter; floors are given first and nobody exceeds its capacity: what a full parameter cannot take is
    shared among the others in proportion. Parameters of weight 0 take in their order what is left when all others are
    full. A divisor method is house-monotone: when the budget grows no count falls (Balinski & Young 1982), so masks
    stay nested from round to round.

    Raises `BudgetError` when floors or capacities cannot be met.

    >>> apportion({"a": 6, "b": 4}, 5, capacities={"a": 6, "b": 4})
    {'a': 3, 'b': 2}
    """
    least = {name: (floors or {}).get(name, 0) for name in weights}
    for name in weights:
        if least[name] > capacities[name]:
            raise BudgetError(f"floor of {name!r} is {least[name]} weights, but only {capacities[name]} are left")
    if not sum(least.values()) <= keep <= sum(capacities[name] for name in weights):
        raise BudgetError(
            f"cannot keep {keep} weights: floors ask for {sum(least.values())}, "
            f"{sum(capacities[name] for name in weights)} are left"
        )

    if filled := _filled(weights, keep, least, capacities):
        return filled

    def units_above(level: Fraction) -> dict[str, int]:
        """Return how many units of each parameter have a priority of at least `level`."""
        return {
            name: min(max(floor(Fraction(weight) / level + Fraction(1, 2)), least[name]), capacities[name])
            for name, weight in weights.items()
        }

    counts = units_above(_level_within_budget(weights, keep, units_above))
    queue = [
        (-Fraction(weight) / (counts[name] + Fraction(1, 2)), position, name)
        for position, (name, weight) in enumerate(weights.items())
        if counts[name] < capacities[name]
    ]
    heapq.heapify(queue)
    for _ in range(keep - sum(counts.values())):
        _, position, name = heapq.heappop(queue)
        counts[name] += 1
        if counts[name] < capacities[name]:
            priority = -Fraction(weights[name]) / (counts[name] + Fraction(1, 2))
            heapq.heappush(queue, (priority, position, name))
    return counts


def _filled(
    weights: Mapping[str, Fraction | int], keep: int, least: Mapping[str, int], capacities: Mapping[str, int]
) -> dict[str, int]:
    """Return the counts of a budget that fills every parameter of some weight, and none for a smaller budget."""
    counts = {name: capacities[name] if weight else least[name] for name, weight in weights.items()}
    left = keep - sum(counts.values())
    if left < 0:
        return {}
    for name, count in counts.items():
        counts[name] = min(count + left, capacities[name])
        left -= counts[name] - count
    return counts


def _level_within_budget(
    weights: Mapping[str, Fraction | int], keep: int, units_above: Callable[[Fraction], Mapping[str, int]]
) -> Fraction:
    """Return a priority that no more than `keep` units reach, and nearly as many do."""
    low, high = 0.0, 2.0 * float(max(weights.values(), default=0)) + 1.0  # above twice its weight nobody has a unit
    for _ in range(128):
        if keep - sum(units_above(Fraction(high)).values()) <= len(weights):
            break
        middle = (low + high) / 2
        if sum(units_above(Fraction(middle)).values()) > keep:
            low = middle
        else:
            high = middle
    return Fraction(high)


def floor_counts(shapes: Mapping[str, tuple[int, ...]], density: float | Mapping[str, float] | None) -> dict[str, int]:
    """Return the least number of weights each parameter keeps when `density` of it must stay (rounded up).

    A mapping gives densities by full name or pattern; the parameters that it does not mention have no floor.

    >>> floor_counts({"encoder.w": (10, 10), "head.w": (5, 5)}, {"head.*": 0.1})
    {'head.w': 3}
    """
    if density is None:
        return {}
    if not isinstance(density, Mapping):
        _check_floor(density)
        return {name: ceil(Fraction(str(density)) * prod(shape)) for name, shape in shapes.items()}
    for value in density.values():
        _check_floor(value)
    floors = densities_by_name("floor", density, shapes)
    return {name: ceil(floor * prod(shapes[name])) for name, floor in floors.items()}


def densities_by_name(
    what: str, densities: Mapping[str, float], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Fraction]:
    """Return the density, exact as written, of every parameter that is given one by its full name or a shell glob.

    A full name goes before patterns. Raises `ConfigError` for a pattern that matches nothing, and for patterns that
    give one parameter different densities: their order decides nothing.
    """
    for pattern in densities:
        if pattern not in shapes and not any(fnmatchcase(name, pattern) for name in shapes):
            nearest = difflib.get_close_matches(pattern, shapes, n=3, cutoff=0.3)
            hint = f"; nearest: {', '.join(map(repr, nearest))}" if nearest else ""
            raise ConfigError(f"{what}: {pattern!r} matches none of {len(shapes)} parameters{hint}")
    patterns = sorted(densities.keys() - shapes.keys())
    chosen = {}
    for name in shapes:
        matching = [name] if name in densities else [p for p in patterns if fnmatchcase(name, p)]
        if len({densities[pattern] for pattern in matching}) > 1:
            listed = ", ".join(f"{pattern!r}: {densities[pattern]}" for pattern in matching)
            raise ConfigError(
                f"{what}: {name!r} matches patterns of different densities ({listed}); give its full name a density, "
                "which goes before patterns"
            )
        if matching:
            chosen[name] = Fraction(str(densities[matching[0]]))
    return chosen


def _check_floor(density: float) -> None:
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 <= density < 1:
        raise ConfigError(f"floor must be a density from 0 to below 1 (0.01 keeps 1 % of each), not {density!r}")
