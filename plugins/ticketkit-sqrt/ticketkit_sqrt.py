"""For ticketkit: a schedule that goes down in stairs, and an allocator that gives layers the square root of their size.

Both hooks work on whole numbers alone; neither needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import isqrt, prod

from pydantic import Field

import ticketkit

BITS = 64  # of a root's fraction: its relative error is below 2^-64


class StaircaseOptions(ticketkit.Options):
    """What a stair is like."""

    hold: int = Field(default=2, strict=True, ge=1)
    """How many rounds a stair is long; the last may be shorter."""


@ticketkit.hookimpl
def ticketkit_register_schedules(register: Callable[..., None]) -> None:
    """Register the schedule under its name."""
    register("staircase", staircase, options=StaircaseOptions)


@ticketkit.hookimpl
def ticketkit_register_allocators(register: Callable[..., None]) -> None:
    """Register the allocator under its name."""
    register("sqrt", sqrt)


def staircase(total: int, target: ticketkit.Target | None, *, options: StaircaseOptions) -> tuple[int, ...]:
    """Return counts that fall to the end in equal stairs of `hold` rounds each; the last stair may be shorter.

    Round 1 prunes, the next hold - 1 rounds train what is left, and so on: n rounds make s = ⌈n / hold⌉ stairs, and in
    round t there are end + (total - end)(1 - ⌈t / hold⌉ / s) weights, to the nearest whole number. It is for runs that
    train on (`rewind: none`); with rewinding, a held round trains the ticket before it once more.

    >>> staircase(100, ticketkit.Target.of(rounds=5, density=0.1), options=StaircaseOptions())
    (100, 70, 70, 40, 40, 10)
    """
    target = ticketkit.Target.required(target)
    end, stairs = target.end(total), -(-target.rounds // options.hold)
    taken = (-(-index // options.hold) for index in range(1, target.rounds + 1))
    return (total, *(end + round(Fraction((total - end) * (stairs - down), stairs)) for down in taken))


def sqrt(
    shapes: Mapping[str, tuple[int, ...]],
    keep: int,
    *,
    floors: Mapping[str, int],
    capacities: Mapping[str, int],
) -> dict[str, int]:
    """Return counts in proportion to the square root of the parameters' sizes: density ∝ 1 / √size.

    Small parameters stay dense and large ones get sparse, whatever their shape; one that this would fill is kept whole
    and the others share the rest. `ticketkit.apportion` makes whole counts that sum to `keep` and never fall when it
    grows.

    >>> sqrt({"small": (4, 4), "large": (12, 12)}, 32, floors={}, capacities={"small": 16, "large": 144})
    {'small': 8, 'large': 24}
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    return ticketkit.apportion(_roots(sizes), keep, floors=floors, capacities=capacities)


def _roots(sizes: Mapping[str, int]) -> dict[str, Fraction]:
    """Return the square roots, in ratios that are exact wherever those are rational: √18 is 3 · √2.

    So priorities that tie do tie, and the earlier parameter wins, as `apportion` promises.
    """
    bases: list[int] = []
    roots = {}
    for name, size in sizes.items():
        base = next((base for base in bases if isqrt(size * base) ** 2 == size * base), size or 1)
        bases += [base] * (base not in bases)
        roots[name] = Fraction(isqrt(size * base), base) * Fraction(isqrt(base << 2 * BITS), 1 << BITS)  # · √base
    return roots
