"""The laws of a schedule and of an allocator, and a run that names both through the entry point."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import ticketkit
from ticketkit.testing import check_allocator, check_schedule, mlp, plugin_installed

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ticketkit.Plugins]:
    """The plugins of an environment where this one is installed."""
    with plugin_installed(PROJECT, tmp_path_factory.mktemp("site")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TICKETKIT_LOAD_PLUGINS", "sqrt")
        yield ticketkit.Plugins.discover()


# The schedule


@pytest.mark.parametrize("hold", [1, 2, 5])
def test_it_obeys_the_laws_of_schedules(plugins: ticketkit.Plugins, hold: int) -> None:
    check_schedule({"name": "staircase", "hold": hold}, plugins=plugins)


@given(st.integers(10_000, 10**9), st.integers(1, 30), st.integers(1, 50), st.integers(1, 12))
def test_every_stair_is_of_one_length_and_of_one_height(
    plugins: ticketkit.Plugins, total: int, rounds: int, percent: int, hold: int
) -> None:
    target = ticketkit.Target.of(rounds=rounds, density=percent / 100)
    assert target is not None
    counts = plugins.choose("schedule", {"name": "staircase", "hold": hold}).call(total, target)
    falls = [index for index, (earlier, later) in enumerate(pairwise(counts), start=1) if later < earlier]
    assert falls == list(range(1, rounds + 1, hold))
    height = Fraction(total - target.end(total), len(falls))
    for stair, index in enumerate(falls, start=1):
        assert abs(counts[index] - (total - stair * height)) <= Fraction(1, 2)


def test_a_staircase_needs_to_know_how_far_it_goes(plugins: ticketkit.Plugins) -> None:
    with pytest.raises(ticketkit.ConfigError, match="say how far to prune"):
        plugins.choose("schedule", "staircase").call(100, None)
    with pytest.raises(ticketkit.ConfigError, match="hold: Input should be greater than or equal to 1"):
        plugins.choose("schedule", {"name": "staircase", "hold": 0})


# The allocator


def test_it_obeys_the_laws_of_allocators(plugins: ticketkit.Plugins) -> None:
    check_allocator("sqrt", plugins=plugins)


def most_deserving(sizes: list[int], keep: int, floors: list[int], capacities: list[int]) -> list[int]:
    """Give one weight at a time to the highest √size / (n + ½); squares compare exactly, ties go to the earlier."""
    counts = list(floors)
    for _ in range(keep - sum(floors)):
        open_ = [i for i in range(len(sizes)) if counts[i] < capacities[i]]
        best = max(open_, key=lambda i: (Fraction(sizes[i], (2 * counts[i] + 1) ** 2), -i))
        counts[best] += 1
    return counts


@st.composite
def budgets(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], int]:
    side = st.sampled_from([0, 1, 2, 3, 5, 8, 18, 50])
    sizes = [a * b for a, b in draw(st.lists(st.tuples(side, st.integers(1, 3)), min_size=1, max_size=5))]
    capacities = [draw(st.integers(0, size)) for size in sizes]
    floors = [draw(st.integers(0, min(3, capacity))) for capacity in capacities]
    return sizes, floors, capacities, draw(st.integers(sum(floors), sum(capacities)))


def allocated(plugins: ticketkit.Plugins, budget: tuple[list[int], list[int], list[int], int]) -> list[int]:
    sizes, floors, capacities, keep = budget
    named = [{str(i): value for i, value in enumerate(values)} for values in (floors, capacities)]
    shapes = {str(i): (size,) for i, size in enumerate(sizes)}
    counts = plugins.choose("allocation", "sqrt").call(shapes, keep, floors=named[0], capacities=named[1])
    assert list(counts) == list(shapes)
    return list(counts.values())


@given(budgets())
@example(([2, 18], [0, 0], [2, 18], 2))  # √18 / 3 = √2 / 1: a tie, in no finite number of digits
@example(([18, 2], [0, 0], [18, 2], 2))
@example(([18, 50, 2], [0, 0, 0], [18, 50, 2], 7))
@example(([0, 0], [0, 0], [0, 0], 0))
@example(([0, 1], [0, 0], [0, 1], 1))  # nothing is no base for the others
def test_counts_are_those_of_giving_weights_one_by_one(
    plugins: ticketkit.Plugins, budget: tuple[list[int], list[int], list[int], int]
) -> None:
    sizes, floors, capacities, keep = budget
    counts = allocated(plugins, budget)
    assert counts == most_deserving(sizes, keep, floors, capacities)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), st.integers(1, 50))
def test_counts_are_in_proportion_to_the_sides_of_squares(
    plugins: ticketkit.Plugins, sides: list[int], share: int
) -> None:
    share = min(share, *sides)
    sizes = [side * side for side in sides]
    assert allocated(plugins, (sizes, [0] * len(sizes), sizes, share * sum(sides))) == [share * side for side in sides]


# Both


@pytest.mark.filterwarnings("ignore:rounds .* prune nothing:ticketkit.NoEffectWarning")
def test_a_run_that_names_both_goes_down_their_stairs(plugins: ticketkit.Plugins) -> None:
    model = mlp(hidden=24)
    imp = ticketkit.IMP(
        model, rounds=4, density=0.5, schedule="staircase", allocation="sqrt", rewind="none", plugins=plugins
    )
    for _ in imp:
        model(torch.randn(4, 6)).square().sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()
    total = imp.scope.total
    assert imp.plan == (total, total * 3 // 4, total * 3 // 4, total // 2, total // 2)
    sizes = [prod(shape) for shape in imp.scope.shapes.values()]
    for ticket, keep in zip(imp.tickets, imp.plan, strict=True):
        assert list(ticket.mask.counts.values()) == most_deserving(sizes, keep, [0, 0], sizes)
    assert imp.tickets[1].mask == imp.tickets[2].mask
    facts = imp.tickets[4].facts
    assert (facts.schedule.entry, facts.allocation.entry) == ("sqrt:staircase", "sqrt:sqrt")
