"""`check_allocator` refuses every kind of bad allocator, and says why."""

import random
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import pytest

from ticketkit import BudgetError, apportion
from ticketkit.testing import ConformanceError, check_allocator

Shapes = Mapping[str, tuple[int, ...]]
Counts = Mapping[str, int]


def fair(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> dict[str, int]:
    """Give every parameter the same, as far as it goes."""
    return apportion(dict.fromkeys(shapes, 1), keep, floors=floors, capacities=capacities)


def changed(change: Callable[..., Any]) -> Callable[..., Any]:
    """Return the fair allocator with its counts changed by a function of them and of the call's other arguments."""

    def allocator(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> Any:
        return change(fair(shapes, keep, floors=floors, capacities=capacities), keep, floors, capacities)

    return allocator


def moved(counts: dict[str, int], giver: str, taker: str) -> dict[str, int]:
    return {**counts, giver: counts[giver] - 1, taker: counts[taker] + 1} if giver != taker else counts


def over_full(counts: dict[str, int], keep: int, floors: Counts, capacities: Counts) -> dict[str, int]:
    """Give a full parameter one more, and take it from one that has something."""
    full = [name for name in counts if counts[name] == capacities[name]]
    rich = [name for name in counts if counts[name] > floors.get(name, 0) and name not in full[:1]]
    return moved(counts, rich[0], full[0]) if full and rich else counts


def below_floor(counts: dict[str, int], keep: int, floors: Counts, capacities: Counts) -> dict[str, int]:
    low = [name for name in counts if 0 < counts[name] == floors.get(name, 0)]
    room = [name for name in counts if counts[name] < capacities[name] and name not in low[:1]]
    return moved(counts, low[0], room[0]) if low and room else counts


def filled_in_order(order: Callable[[Shapes, Counts, Counts], list[str]]) -> Callable[..., dict[str, int]]:
    """Return an allocator that gives one parameter after another all it can take, in some order."""

    def allocator(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> dict[str, int]:
        counts = {name: floors.get(name, 0) for name in shapes}
        left = keep - sum(counts.values())
        for name in order(shapes, floors, capacities):
            more = min(left, capacities[name] - counts[name])
            counts[name] += more
            left -= more
        return counts

    return allocator


def any_order(shapes: Shapes, floors: Counts, capacities: Counts) -> list[str]:
    return random.sample(list(shapes), len(shapes))


def unfloored_first(shapes: Shapes, floors: Counts, capacities: Counts) -> list[str]:
    return sorted(shapes, key=lambda name: name in floors)


def by_turns() -> Callable[..., dict[str, int]]:
    """Return an allocator that fills parameters from the first on, at the next call from the last on."""
    calls: list[None] = []

    def order(shapes: Shapes, floors: Counts, capacities: Counts) -> list[str]:
        calls.append(None)
        return list(shapes)[:: 1 if len(calls) % 2 else -1]

    return filled_in_order(order)


def largest_remainder(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> dict[str, int]:
    """Share in proportion to sizes by Hamilton's method, known for the Alabama paradox; floors and limits not met."""
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    counts = {name: keep * size // total for name, size in sizes.items()}
    by_rest = sorted(sizes, key=lambda name: -(keep * sizes[name] % total))
    for name in by_rest[: keep - sum(counts.values())]:
        counts[name] += 1
    if any(not floors.get(name, 0) <= count <= capacities[name] for name, count in counts.items()):
        raise BudgetError("floors and capacities are not looked at; choose another allocator")
    return counts


def refuses(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> dict[str, int]:
    raise BudgetError("no budget is large enough")


def spoil(arguments: Any) -> None:
    arguments.update(dict.fromkeys(list(arguments), 0))


def spoiling(which: str) -> Callable[..., Any]:
    def allocator(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> dict[str, int]:
        counts = fair(shapes, keep, floors=floors, capacities=capacities)
        spoil({"floors": floors, "capacities": capacities}[which])
        return counts

    return allocator


def wants_all_floors(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> dict[str, int]:
    assert all(floors[name] >= 0 for name in shapes)
    return fair(shapes, keep, floors=floors, capacities=capacities)


def density(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> dict[str, int]:
    return apportion(
        {n: capacities[n] // prod(s) for n, s in shapes.items()}, keep, floors=floors, capacities=capacities
    )


GOOD: dict[str, Callable[..., Any]] = {
    "fair": fair,
    "the budget itself": lambda shapes, keep, *, floors, capacities: keep,
    "one after another": filled_in_order(lambda shapes, *_: list(shapes)),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_allocators_pass(name: str) -> None:
    check_allocator(GOOD[name])


MUTANTS: dict[str, tuple[Callable[..., Any], str]] = {
    "a name missing": (
        changed(lambda c, *_: {n: k for n, k in c.items() if k}),
        r"a count for every name of shapes, in that order\n.*\n  came: counts of \[",
    ),
    "another order": (changed(lambda c, *_: dict(sorted(c.items()))), "for every name of shapes, in that order"),
    "floats": (changed(lambda c, *_: {n: float(k) for n, k in c.items()}), r"return Python ints.*\n.*\n.*a float"),
    "numpy's integers": (
        changed(lambda c, *_: dict(zip(c, np.array(list(c.values())), strict=True))),
        r"return Python ints.*\n.*\n.*a int64",
    ),
    "more than is left": (changed(over_full), r"no less than its floor and no more than its capacity\n.*keep=\d+"),
    "less than the floor": (changed(below_floor), r"no less than its floor.*\n.*\n  came: \d for '.*', where \d to \d"),
    "a weight lost": (
        changed(lambda c, keep, *_: {n: k - (k == max(c.values())) for n, k in c.items()}),
        r"split the budget to the last weight.*\n.*\n.*which sum to",
    ),
    "one more": (lambda shapes, keep, *, floors, capacities: keep + 1, r"split the budget to the last weight"),
    "the budget as a float": (
        lambda shapes, keep, *, floors, capacities: float(keep),
        r"counts that sum to keep, or keep",
    ),
    "nothing": (
        lambda shapes, keep, *, floors, capacities: None,
        r"counts that sum to keep, or keep itself\n.*\n.*None",
    ),
    "floors changed": (spoiling("floors"), "leave its arguments as they are"),
    "capacities changed": (spoiling("capacities"), "leave its arguments as they are"),
    "at random": (filled_in_order(any_order), r"the same again, wherever the global|go by names|whose floor is 0"),
    "a memory": (by_turns(), "the same again, wherever the global random generators stand"),
    "the order of capacities": (filled_in_order(lambda _, __, capacities: list(capacities)), "go by names, not by the"),
    "floors of zero": (filled_in_order(unfloored_first), r"like one whose floor is 0: floors.get\(name, 0\)"),
    "floors for all": (wants_all_floors, r"raise nothing but a TicketkitError.*\n.*\n  came: KeyError"),
    "empty parameters": (density, r"raise nothing but a TicketkitError.*\n.*\n  came: ZeroDivisionError"),
    "everything refused": (refuses, r"split some budget.*\n.*\n  came: BudgetError: no budget is large enough"),
}
WAIVED = (
    "more than is left",
    "less than the floor",
    "at random",
    "a memory",
)  # these break the law of monotony as well
PARADOX = {"shapes": {"a": (6,), "b": (3, 2), "c": (2,)}, "budgets": [10]}  # 4, 4 and 2; but of 11 weights 5, 5 and 1


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bad_allocator_is_refused(name: str) -> None:
    allocator, message = MUTANTS[name]
    with pytest.raises(ConformanceError, match=message):
        check_allocator(allocator, monotone=name not in WAIVED)


def test_the_law_of_monotony_can_be_waived() -> None:
    message = r"take nothing away when keep grows by one.*\n  where: .*keep=10.*\n  came: 2 for 'c', but 1 when 11"
    with pytest.raises(ConformanceError, match=message):
        check_allocator(largest_remainder, **PARADOX)
    check_allocator(largest_remainder, monotone=False, **PARADOX)


def test_shapes_and_budgets_of_ones_own_are_tried() -> None:
    def two_or_nothing(shapes: Shapes, keep: int, *, floors: Counts, capacities: Counts) -> dict[str, int]:
        if (
            keep != 2
            or list(shapes) != ["left", "right"]
            or min(capacities.values()) < 1
            or max(floors.values(), default=0) > 1
        ):
            raise BudgetError("only two weights, one left and one right, can be kept")
        return {"left": 1, "right": 1}

    check_allocator(two_or_nothing, shapes={"left": (3,), "right": (2, 2)}, budgets=[2, 3])
    with pytest.raises(ConformanceError, match="split some budget"):
        check_allocator(two_or_nothing, shapes={"left": (3,), "right": (2, 2)}, budgets=[3])
