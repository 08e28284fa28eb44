"""`check_schedule` refuses every kind of bad schedule, and says why."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ticketkit import BudgetError, ConfigError, Target
from ticketkit.testing import ConformanceError, check_schedule


def straight(total: int, target: Target | None) -> tuple[int, ...]:
    """Go down on a straight line, in whole numbers."""
    target = Target.required(target)
    end, rounds = target.end(total), target.rounds
    return (*(total - (total - end) * index // max(rounds, 1) for index in range(rounds)), end)


def changed(change: Callable[[tuple[int, ...]], Any]) -> Callable[..., Any]:
    """Return the straight schedule with its plan changed."""
    return lambda total, target: change(straight(total, target))


def on_every(number: int, change: Callable[[tuple[int, ...]], Any]) -> Callable[..., Any]:
    """Return the straight schedule with every so-and-so-many-th plan changed."""
    calls = []

    def schedule(total: int, target: Target | None) -> tuple[int, ...]:
        calls.append(None)
        counts = straight(total, target)
        return counts if len(calls) % number else change(counts)

    return schedule


def bent(counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return another plan for the same run, where there is one: all is pruned in the first round."""
    return (counts[0], *counts[-1:] * (len(counts) - 1))


def in_floats(total: int, target: Target | None) -> tuple[int, ...]:
    target = Target.required(target)
    factor = float(target.density) ** (1 / max(target.rounds, 1))
    return (total, *(int(total * factor**index) for index in range(1, target.rounds + 1)))


def at_random(total: int, target: Target | None) -> tuple[int, ...]:
    counts = straight(total, target)
    return (
        counts
        if len(counts) < 3 or total < 1000
        else (counts[0], *[random.randint(counts[-1], total)] * (len(counts) - 2), counts[-1])
    )


def two_weights_left(total: int, target: Target | None) -> tuple[int, ...]:
    return (total, min(total, 2)) if Target.required(target).rounds else (total,)


def to_nothing(total: int, target: Target | None) -> tuple[int, ...]:
    if target is not None:
        raise ConfigError("this schedule knows itself where it ends")
    return (total, 0)


def needs_room(total: int, target: Target | None) -> tuple[int, ...]:
    if target is not None and total < 1000:
        raise BudgetError(f"{total} weights are too few for this schedule; it needs 1000")
    return straight(total, target)


def unpolite(total: int, target: Target | None) -> tuple[int, ...]:
    if target is None:
        raise BudgetError("no target")
    return straight(total, target)


def refuses(total: int, target: Target | None) -> tuple[int, ...]:
    raise ConfigError("not today")


@pytest.mark.parametrize("good", [straight, needs_room], ids=lambda good: good.__name__)
def test_good_schedules_pass(good: Callable[..., Any]) -> None:
    check_schedule(good)


def test_a_schedule_that_serves_its_own_end_alone_passes() -> None:
    def own_end(total: int, target: Target | None) -> tuple[int, ...]:
        if target is not None:
            raise ConfigError("this schedule knows itself where it ends")
        return (total, -(-total // 2), -(-total // 4))

    check_schedule(own_end)


MUTANTS: dict[str, tuple[Callable[..., Any], str]] = {
    "a number": (lambda total, target: total, r"return a tuple of counts.*\n.*1 weights, no target\n  came: 1$"),
    "floats": (changed(lambda c: tuple(map(float, c))), r"return Python ints.*\n.*\n  came: 1.0, a float"),
    "numpy's integers": (changed(lambda c: tuple(np.array(c))), r"return Python ints.*\n.*\n.*a int64"),
    "a bool": (changed(lambda c: (*c[:-1], c[-1] > 0) if c[-1] < 2 else c), r"return Python ints.*\n.*\n.*a bool"),
    "no dense round": (changed(lambda c: c[1:] or c), r"start from all weights that there are\n"),
    "no counts": (changed(lambda _: ()), r"start from all weights.*\n.*\n  came: \(\)"),
    "a rise": (
        changed(lambda c: (*c[:-2], *c[:-3:-1]) if len(c) > 2 else c),
        r"never rise\n.*\n.*which rises at round",
    ),
    "a weight too few": (
        changed(lambda c: (*c[:-1], max(0, c[-1] - 1)) if len(c) > 1 else c),
        r"end at exactly target.end\(",
    ),
    "floats inside": (in_floats, r"end at exactly target.end\((\d+)\) = \d+\n  where: \1 "),
    "a round too many": (changed(lambda c: (*c, c[-1])), r"at most target.rounds \+ 1 = 1 counts\n.*rounds=0"),
    "nothing left": (to_nothing, r"plan for some kind of target, or for none, and leave a weight"),
    "less than nothing": (changed(lambda c: (*c[:-1], c[-1] - c[0] - 1)), r"return Python ints of 0 or more"),
    "an end of its own": (two_weights_left, "end at exactly"),
    "at random": (at_random, r"plan the same again.*wherever the global random generators stand"),
    "a memory": (on_every(2, bent), "plan the same again, whatever it planned before"),
    "a long memory": (on_every(3, bent), "plan in a run what it plans alone"),
    "a bug without a target": (
        lambda total, target: (total, target.end(total)) if target.rounds else (total,),
        r"raise nothing but a TicketkitError.*\n  where: 1 weights, no target\n  came: AttributeError",
    ),
    "no target, wrong refusal": (unpolite, r"with a ConfigError \(without a target: Target.required\(target\)\)"),
    "everything refused": (refuses, r"plan for some kind of target.*\n.*\n  came: ConfigError: not today"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bad_schedule_is_refused(name: str) -> None:
    schedule, message = MUTANTS[name]
    with pytest.raises(ConformanceError, match=message):
        check_schedule(schedule)
