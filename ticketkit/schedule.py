"""How many weights stay after each round: exact integers, computed from the original total. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import ceil, log, log1p
from typing import Protocol, Self

from ticketkit.errors import BudgetError, ConfigError

MOST_ROUNDS = 100_000

NO_TARGET = "say how far to prune: rounds=14 (a number of prunings) or density=0.05 (a share kept)"


@dataclass(frozen=True)
class Target:
    """Where a pruning run goes: `rounds` prunings after the dense round, each of `rate`, to a final `density`.

    `rate` and `density` are exact fractions of the decimal numbers the user wrote: 0.2 is 1/5. `rate` is None when
    rounds and density were asked for together, which leave no rational rate. `asked` names what the user gave; the
    rest follows from it, with a rate of 0.2 when only one was given.
    """

    rounds: int
    density: Fraction
    rate: Fraction | None
    asked: frozenset[str]

    @classmethod
    def of(cls, *, rate: float | None = None, rounds: int | None = None, density: float | None = None) -> Self | None:
        """Return the target that any two of rate, rounds and density describe; the rate alone defaults to 0.2.

        With a rate and a density, the rounds are as few as reach the density, and the last one ends exactly on it.
        With nothing given there is no target: None, for a schedule that knows itself how far it goes.

        >>> Target.of(rate=0.2, density=0.05).rounds
        14
        """
        given = {"rate": rate, "rounds": rounds, "density": density}
        asked = frozenset(name for name, value in given.items() if value is not None)
        if not asked:
            return None
        if rounds is not None:
            _check_rounds(rounds)
        if rounds is not None and density is not None:
            if rate is not None:
                raise ConfigError("give two of rate, rounds and density; the third follows from them")
            if rounds == 0:
                raise ConfigError("rounds=0 prunes nothing, so a density cannot be reached; give at least one round")
            return cls(rounds, share("density", density), None, asked)
        exact_rate = share("rate", 0.2 if rate is None else rate)
        if rounds is not None:
            return cls(rounds, (1 - exact_rate) ** rounds, exact_rate, asked)
        if density is None:
            raise ConfigError(NO_TARGET)
        goal = share("density", density)
        return cls(_fewest_rounds(exact_rate, goal), goal, exact_rate, asked)

    @staticmethod
    def required(target: "Target | None") -> "Target":
        """Return the target; raise `ConfigError` if there is none, for a schedule that cannot do without."""
        if target is None:
            raise ConfigError(NO_TARGET)
        return target

    @property
    def settles_rounds(self) -> bool:
        """Whether the number of rounds was asked for, or follows from two numbers that were."""
        return "rounds" in self.asked or len(self.asked) > 1

    @property
    def settles_end(self) -> bool:
        """Whether the final density was asked for, or follows from two numbers that were."""
        return "density" in self.asked or len(self.asked) > 1

    def end(self, total: int) -> int:
        """Return how many of `total` weights the target keeps in the end."""
        return round(self.density * total)

    def rescaled(self, total: int, start: int) -> "Target":
        """Return the same goal for a run over the `start` weights that are left of `total`.

        A density that was asked for is one of all `total` weights, so of `start` weights it is the exact fraction that
        ends at the same count. A density that follows from a rate and rounds is one of whatever the run starts from.

        >>> target = Target.of(rounds=3, density=0.1).rescaled(1000, 400)
        >>> target.density, target.end(400)
        (Fraction(1, 4), 100)
        """
        if start == total or "density" not in self.asked:
            return self
        goal = self.density * Fraction(total, start)
        if goal >= 1:
            raise ConfigError(
                f"the run starts from {start} of {total} weights, which is not above the density of "
                f"{float(self.density):.3g} ({self.end(total)} weights); give a lower density, or rounds"
            )
        rounds = self.rounds if self.rate is None else _fewest_rounds(self.rate, goal)
        return replace(self, density=goal, rounds=rounds)


class Schedule(Protocol):
    """Plans the counts of a whole run before it starts."""

    def __call__(self, total: int, target: Target | None) -> tuple[int, ...]:
        """Return a count for the first round, `total`, and one after each pruning: never rising, the last at the end.

        There are at most `target.rounds` prunings. Without a target a schedule says itself how far it goes, or raises
        what `Target.required(None)` does.
        """
        ...


def plan(schedule: Schedule, total: int, target: Target | None, *, start: int | None = None) -> tuple[int, ...]:
    """Return the counts that a schedule plans; raise `BudgetError` if it breaks its contract or prunes to nothing.

    A run may start from a mask that keeps only `start` of the `total` weights in scope. The schedule then plans over
    these: a density asked for still means a share of `total`, while a rate takes its share of what is left.

    >>> from ticketkit.builtin.schedules import geometric
    >>> plan(geometric, 1000, Target.of(rounds=2, density=0.1))
    (1000, 316, 100)
    >>> plan(geometric, 1000, Target.of(rounds=2, density=0.1), start=400)
    (400, 200, 100)
    >>> plan(geometric, 1000, Target.of(rounds=2, rate=0.5), start=400)
    (400, 200, 100)
    """
    first = total if start is None else start
    if start is not None and not (_is_count(start) and 1 <= start <= total):
        raise BudgetError(f"a run must start from 1 to {total} weights (an int), not from {start!r}")
    goal = None if target is None else target.rescaled(total, first)
    planned = schedule(first, goal)
    if not isinstance(planned, Sequence) or isinstance(planned, str):
        raise BudgetError(f"a schedule must return a sequence of whole numbers of weights, not {planned!r}")
    counts = tuple(planned)
    if not all(map(_is_count, counts)):
        raise BudgetError(f"a schedule must return whole numbers of weights, not {_listed(counts)}")
    if counts[:1] != (first,) or (goal is not None and not _reaches(goal, counts)):
        raise BudgetError(f"a schedule must go from {first} weights{_ending(goal, first)}, not {_listed(counts)}")
    if any(later > earlier for earlier, later in pairwise(counts)):
        raise BudgetError(f"a schedule must never rise, not {_listed(counts)}")
    if counts[-1] < 1:
        raise BudgetError(f"the plan leaves {counts[-1]} of {first} weights, which is none; prune fewer rounds")
    return counts


def share(what: str, value: float) -> Fraction:
    """Return a number strictly between 0 and 1 as the exact fraction of its decimal spelling."""
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction) or not 0 < value < 1:
        raise ConfigError(f"{what} must lie strictly between 0 and 1 (0.2 is 20 %), not {value!r}")
    return Fraction(str(value))


def _reaches(target: Target, counts: Sequence[int]) -> bool:
    """Say whether counts keep to what the target settles; a rate that nobody asked for settles nothing."""
    if target.settles_rounds and len(counts) > target.rounds + 1:
        return False
    return not target.settles_end or counts[-1] == target.end(counts[0])


def _ending(target: Target | None, first: int) -> str:
    if target is None:
        return ""
    end = f" to {target.end(first)}" if target.settles_end else ""
    return end + (f" in at most {target.rounds + 1} counts" if target.settles_rounds else "")


def _check_rounds(rounds: int) -> None:
    if not _is_count(rounds) or rounds < 0:
        raise ConfigError(f"rounds must be a whole number of prunings, 0 or more, not {rounds!r}")
    if rounds > MOST_ROUNDS:
        raise ConfigError(f"rounds must be a whole number of prunings, at most {MOST_ROUNDS}, not {rounds}")


def _fewest_rounds(rate: Fraction, goal: Fraction) -> int:
    """Return how many prunings of `rate` it takes to come down to a density of `goal`; at least one."""
    kept = 1 - rate
    step = log(kept) if rate > Fraction(1, 2) else log1p(-rate)
    rounds = max(1, ceil(log(goal) / step) - 1)  # rounding errors apart; the exact powers settle it
    if rounds > MOST_ROUNDS:
        raise ConfigError(
            f"at a rate of {float(rate):.3g} a density of {float(goal):.3g} takes {rounds} prunings, more than "
            f"{MOST_ROUNDS}; give a higher rate"
        )
    while kept**rounds > goal:
        rounds += 1
    return rounds


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(counts: Sequence[object]) -> str:
    """Return the counts in brackets, the middle of many left out."""
    if len(counts) <= 24:
        return str(tuple(counts))
    ends = [", ".join(map(str, part)) for part in (counts[:8], counts[-8:])]
    return f"({ends[0]}, … {len(counts) - 16} more …, {ends[1]})"
