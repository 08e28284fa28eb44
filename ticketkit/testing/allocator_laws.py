"""The laws of allocators."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

from hypothesis import strategies as st

from ticketkit.errors import BudgetError, ConfigError
from ticketkit.mask import Shape
from ticketkit.plugins import Plugins
from ticketkit.testing.strategies import NAMES, shapes
from ticketkit.testing.subject import Named, Subject, for_every, move_generators, without_a_trace

Counts = Mapping[str, int]
REFUSED = object()  # instead of counts


@without_a_trace
def check_allocator(
    allocator: Named,
    *,
    plugins: Plugins | None = None,
    shapes: Mapping[str, Shape] | None = None,
    budgets: Collection[int] | None = None,
    monotone: bool = True,
    examples: int = 50,
) -> None:
    """Raise `ConformanceError` if an allocator breaks a law: exact sums within floors and capacities, and no surprises.

    `allocator` is what `IMP(allocation=...)` takes. It splits `examples` drawn budgets between drawn parameters,
    scalars and empty ones among them, or between those of `shapes` and of the sizes in `budgets`. It may refuse a
    budget that it cannot meet, with a `BudgetError` or a `ConfigError`; but not all of them. `monotone=False` waives
    the law that no count falls when the budget grows, without which masks of later rounds may not fit in earlier ones.

    >>> from ticketkit.testing import check_allocator
    >>> check_allocator("erk")
    """
    subject = Subject.of("allocation", allocator, plugins)
    split: list[_Budget] = []
    refusals: list[str] = []
    law = partial(_obeys, subject, split, refusals, monotone)
    for keep in budgets or ():
        if shapes is not None:
            law(_Budget(dict(shapes), {}, _sizes(shapes), keep))
    for_every(_budgets(shapes, budgets), law, examples=examples)
    if not split:
        raise subject.broken(
            "split some budget; give shapes= and budgets= that it is for",
            f"all {len(refusals)} budgets that were tried",
            refusals[-1],
        )


@dataclass(frozen=True)
class _Budget:
    """What an allocator is asked: shapes in canonical order, floors, what is left, and how many weights stay."""

    shapes: Mapping[str, Shape]
    floors: Counts
    capacities: Counts
    keep: int

    def __str__(self) -> str:
        """Return the call as messages show it."""
        return f"shapes={self.shapes}, keep={self.keep}, floors={self.floors}, capacities={self.capacities}"


@st.composite
def _budgets(draw: st.DrawFn, fixed: Mapping[str, Shape] | None, sizes: Collection[int] | None) -> _Budget:
    """Return a budget of at least one weight that floors and capacities allow."""
    chosen = dict(fixed) if fixed is not None else draw(_parameters())
    wholes = _sizes(chosen)
    capacities = {
        name: draw(st.sampled_from((whole, whole, whole - whole // 3, whole // 2))) for name, whole in wholes.items()
    }
    if not any(capacities.values()):
        capacities = dict(wholes)  # one weight at least is to be kept
    floors = {name: draw(st.sampled_from((None, 0, 1, 3))) for name in chosen}
    held = {name: min(floor, capacities[name]) for name, floor in floors.items() if floor is not None}
    least, most = max(1, sum(held.values())), sum(capacities.values())
    share = draw(st.sampled_from((0.5, 0.1, 0.3, 0.8, 0.0, 1.0)))
    keep = draw(st.sampled_from(sorted(sizes))) if sizes else least + round(share * (most - least))
    return _Budget(chosen, held, capacities, keep)


@st.composite
def _parameters(draw: st.DrawFn) -> dict[str, Shape]:
    """Return shapes of which one at least is not empty."""
    names = draw(st.permutations(NAMES))[: draw(st.sampled_from((2, 3, 5, 1)))]
    ordinary = st.tuples(st.integers(1, 9), st.integers(1, 9))
    found = {name: draw(st.one_of(ordinary, ordinary, shapes(max_dims=4))) for name in names}
    return found if any(map(prod, found.values())) else {**found, names[0]: (2, 1)}


def _obeys(subject: Subject, split: list[_Budget], refusals: list[str], monotone: bool, budget: _Budget) -> None:
    """Hold every law against one budget."""
    counts = _allocated(subject, budget, refusals)
    if counts is REFUSED:
        return
    split.append(budget)
    if isinstance(counts, Mapping):
        _names_all_parameters_in_their_order(subject, budget, counts)
        _counts_in_whole_numbers(subject, budget, counts)
        _lies_between_floors_and_capacities(subject, budget, counts)
    _sums_to_the_budget(subject, budget, counts)
    _splits_the_same_again(subject, budget, counts)
    _does_not_look_at_the_order_of_floors_and_capacities(subject, budget, counts)
    _takes_no_floor_for_a_floor_of_zero(subject, budget, counts)
    if monotone and isinstance(counts, Mapping):
        _takes_nothing_away_when_the_budget_grows(subject, budget, counts)


def _allocated(subject: Subject, budget: _Budget, refusals: list[str]) -> Any:
    """Return what an allocator makes of a budget, or `REFUSED`."""
    arguments: tuple[dict[str, Any], ...] = (dict(budget.shapes), dict(budget.floors), dict(budget.capacities))
    try:
        counts = subject.attempt(
            str(budget),
            subject.choice.call,
            arguments[0],
            budget.keep,
            floors=arguments[1],
            capacities=arguments[2],
        )
    except (BudgetError, ConfigError) as error:
        refusals.append(f"{type(error).__name__}: {error}")
        counts = REFUSED
    given: tuple[Mapping[str, Any], ...] = (budget.shapes, budget.floors, budget.capacities)
    for now, before in zip(arguments, given, strict=True):
        if list(now.items()) != list(before.items()):
            raise subject.broken("leave its arguments as they are", str(budget), f"{now} afterwards")
    return counts


def _names_all_parameters_in_their_order(subject: Subject, budget: _Budget, counts: Counts) -> None:
    if list(counts) != list(budget.shapes):
        law = "return a count for every name of shapes, in that order"
        raise subject.broken(law, str(budget), f"counts of {list(counts)}")


def _counts_in_whole_numbers(subject: Subject, budget: _Budget, counts: Counts) -> None:
    if wrong := {name: count for name, count in counts.items() if type(count) is not int}:
        name, count = next(iter(wrong.items()))
        law = "return Python ints, such as ticketkit.apportion makes them"
        raise subject.broken(law, str(budget), f"{name!r}: {count!r}, a {type(count).__name__}")


def _lies_between_floors_and_capacities(subject: Subject, budget: _Budget, counts: Counts) -> None:
    for name, count in counts.items():
        least, most = budget.floors.get(name, 0), budget.capacities[name]
        if not least <= count <= most:
            law = "give every parameter no less than its floor and no more than its capacity"
            raise subject.broken(law, str(budget), f"{count} for {name!r}, where {least} to {most} are allowed")


def _sums_to_the_budget(subject: Subject, budget: _Budget, counts: Any) -> None:
    law = "split the budget to the last weight: counts that sum to keep, or keep itself"
    if not isinstance(counts, Mapping):
        if type(counts) is not int or counts != budget.keep:
            raise subject.broken(law, str(budget), f"{counts!r}")
    elif sum(counts.values()) != budget.keep:
        raise subject.broken(law, str(budget), f"{dict(counts)}, which sum to {sum(counts.values())}")


def _splits_the_same_again(subject: Subject, budget: _Budget, counts: Any) -> None:
    move_generators()
    law = "split the same budget the same again, wherever the global random generators stand"
    _same(subject, law, budget, counts)


def _does_not_look_at_the_order_of_floors_and_capacities(subject: Subject, budget: _Budget, counts: Any) -> None:
    turned = replace(
        budget,
        floors=_turned(budget.floors),
        capacities=_turned(budget.capacities),
    )
    law = "go by names, not by the order of floors and capacities; the order of shapes is the canonical one"
    _same(subject, law, turned, counts)


def _takes_no_floor_for_a_floor_of_zero(subject: Subject, budget: _Budget, counts: Any) -> None:
    spelled = {name: budget.floors.get(name, 0) for name in budget.shapes}
    law = "treat a parameter without a floor like one whose floor is 0: floors.get(name, 0)"
    _same(subject, law, replace(budget, floors=spelled), counts)


def _takes_nothing_away_when_the_budget_grows(subject: Subject, budget: _Budget, counts: Counts) -> None:
    """House-monotone, so that the masks of a run can be nested."""
    if budget.keep >= sum(budget.capacities.values()):
        return
    more = _allocated(subject, replace(budget, keep=budget.keep + 1), [])
    if not isinstance(more, Mapping):
        return
    if fallen := {name: (counts[name], more[name]) for name in counts if more[name] < counts[name]}:
        name, (before, after) = next(iter(fallen.items()))
        raise subject.broken(
            "take nothing away when keep grows by one (a divisor method, as in ticketkit.apportion, does not)",
            str(budget),
            f"{before} for {name!r}, but {after} when {budget.keep + 1} weights are kept",
        )


def _same(subject: Subject, law: str, budget: _Budget, counts: Any) -> None:
    refusals: list[str] = []
    again = _allocated(subject, budget, refusals)
    if again != counts:
        raise subject.broken(law, str(budget), f"{counts}, then {refusals[0] if again is REFUSED else again}")


def _sizes(parameters: Mapping[str, Shape]) -> dict[str, int]:
    return {name: prod(shape) for name, shape in parameters.items()}


def _turned(counts: Counts) -> dict[str, int]:
    return dict(list(counts.items())[::-1])
