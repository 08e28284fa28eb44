"""How many weights stay after each round: exact integers, computed from the original total. No torch."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, log
from typing import Protocol, Self

from ticketkit.errors import BudgetError, ConfigError


@dataclass(frozen=True)
class Target:
    """Where a pruning run goes: `rounds` prunings after the dense round, each of `rate`, to a final `density`.

    `rate` and `density` are exact fractions of the decimal numbers the user wrote: 0.2 is 1/5. `rate` is None when
    rounds and density were asked for together, which leave no rational rate.
    """

    rounds: int
    density: Fraction
    rate: Fraction | None

    @classmethod
    def of(cls, *, rate: float | None = None, rounds: int | None = None, density: float | None = None) -> Self:
        """Return the target that any two of rate, rounds and density describe; the rate alone defaults to 0.2.

        With a rate and a density, the rounds are as few as reach the density, and the last one ends exactly on it.

        >>> Target.of(rate=0.2, density=0.05).rounds
        14
        """
        if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0):
            raise ConfigError(f"rounds must be a whole number of prunings, 0 or more, not {rounds!r}")
        if rounds is not None and density is not None:
            if rate is not None:
                raise ConfigError("give two of rate, rounds and density; the third follows from them")
            if rounds == 0:
                raise ConfigError("rounds=0 prunes nothing, so a density cannot be reached; give at least one round")
            return cls(rounds, _share("density", density), None)
        exact_rate = _share("rate", 0.2 if rate is None else rate)
        if rounds is not None:
            return cls(rounds, (1 - exact_rate) ** rounds, exact_rate)
        if density is None:
            raise ConfigError("say how far to prune: rounds=14 (a number of prunings) or density=0.05 (a share kept)")
        goal = _share("density", density)
        kept = 1 - exact_rate
        rounds = max(1, ceil(log(goal) / log(kept)) - 1)  # rounding errors apart; the exact powers settle it
        while kept**rounds > goal:
            rounds += 1
        return cls(rounds, goal, exact_rate)


class Schedule(Protocol):
    """Plans the counts of a whole run before it starts."""

    def __call__(self, total: int, target: Target) -> tuple[int, ...]:
        """Return `target.rounds + 1` counts: `total` for the dense round, never rising, the last at the density."""
        ...


def plan(schedule: Schedule, total: int, target: Target) -> tuple[int, ...]:
    """Return the counts that a schedule plans; raise `BudgetError` if it breaks its contract or prunes to nothing."""
    counts = tuple(schedule(total, target))
    end = round(target.density * total)
    if any(isinstance(count, bool) or not isinstance(count, int) for count in counts):
        raise BudgetError(f"a schedule must return whole numbers of weights, not {counts}")
    if len(counts) != target.rounds + 1 or counts[0] != total or counts[-1] != end:
        raise BudgetError(
            f"a schedule over {target.rounds} rounds must go from {total} weights to {end} in {target.rounds + 1} "
            f"counts, not {counts}"
        )
    if any(later > earlier for earlier, later in pairwise(counts)):
        raise BudgetError(f"a schedule must never rise, not {counts}")
    if counts[-1] < 1:
        raise BudgetError(
            f"the plan leaves {float(target.density):.3g} of {total} weights, which is none; prune fewer rounds"
        )
    return counts


def _share(what: str, value: float) -> Fraction:
    """Return a number strictly between 0 and 1 as the exact fraction of its decimal spelling."""
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction) or not 0 < value < 1:
        raise ConfigError(f"{what} must lie strictly between 0 and 1 (0.2 is 20 %), not {value!r}")
    return Fraction(str(value))
