from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ticketkit import BudgetError, ConfigError, Target
from ticketkit.builtin.schedules import geometric
from ticketkit.schedule import plan

TOTALS = st.integers(0, 10**12)
SHARES = st.integers(1, 999).map(lambda per_mille: per_mille / 1000)
TARGETS = st.one_of(
    st.builds(lambda rate, rounds: Target.of(rate=rate, rounds=rounds), SHARES, st.integers(0, 20)),
    st.builds(lambda density, rounds: Target.of(density=density, rounds=rounds), SHARES, st.integers(1, 20)),
    st.builds(lambda rate, density: Target.of(rate=rate, density=density), st.sampled_from([0.1, 0.2, 0.5]), SHARES),
)


def nearest(ideal_power: Fraction, root: int, total: int, count: int) -> bool:
    """Say whether `count` is within ½ of total · ideal_power^(1/root), by whole-number arithmetic alone."""
    ideal = ideal_power * total**root
    return max(Fraction(2 * count - 1, 2), Fraction(0)) ** root <= ideal <= Fraction(2 * count + 1, 2) ** root


@given(TOTALS, TARGETS)
def test_the_plan_starts_dense_and_ends_exactly_at_the_target(total: int, target: Target) -> None:
    counts = geometric(total, target)
    assert len(counts) == target.rounds + 1
    assert counts[0] == total
    assert counts[-1] == round(target.density * total)


@given(TOTALS, TARGETS)
def test_the_plan_never_rises(total: int, target: Target) -> None:
    assert all(later <= earlier for earlier, later in pairwise(geometric(total, target)))


@given(TOTALS, TARGETS)
def test_every_count_is_within_one_half_of_the_ideal(total: int, target: Target) -> None:
    counts = geometric(total, target)
    for index, count in enumerate(counts[:-1]):
        if target.rate is not None:
            assert abs(count - (1 - target.rate) ** index * total) <= Fraction(1, 2)
        else:
            assert nearest(target.density**index, target.rounds, total, count)


@given(SHARES, st.integers(0, 30))
def test_rate_and_rounds_are_exact_decimals(rate: float, rounds: int) -> None:
    assert Target.of(rate=rate, rounds=rounds).density == (1 - Fraction(str(rate))) ** rounds


@given(st.sampled_from([0.001, 0.1, 0.2, 0.5, 0.999]), SHARES)
@example(0.5, 0.5)
@example(0.5, 0.25)
@example(0.1, 0.729)
@example(0.0001, 0.05)
def test_a_rate_and_a_density_take_as_few_rounds_as_reach_it(rate: float, density: float) -> None:
    target = Target.of(rate=rate, density=density)
    kept = 1 - Fraction(str(rate))
    assert kept**target.rounds <= target.density < kept ** (target.rounds - 1)
    assert target.density == Fraction(str(density))


def test_the_paper_keeps_4_4_percent_after_14_prunings_of_20_percent() -> None:
    counts = plan(geometric, 1_000_000, Target.of(rounds=14))
    assert counts[:3] == (1_000_000, 800_000, 640_000)
    assert counts[-1] == round(0.8**14 * 1_000_000) == 43_980


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "say how far to prune"),
        ({"rate": 0.2}, "say how far to prune"),
        ({"rate": 0.2, "rounds": 3, "density": 0.5}, "give two of rate, rounds and density"),
        ({"rounds": 0, "density": 0.5}, "rounds=0 prunes nothing"),
        ({"rounds": -1}, "rounds must be a whole number"),
        ({"rounds": 1.0}, "rounds must be a whole number"),
        ({"rounds": True}, "rounds must be a whole number"),
        ({"rate": 0, "rounds": 1}, "rate must lie strictly between 0 and 1"),
        ({"rate": 1.0, "rounds": 1}, "rate must lie strictly between 0 and 1"),
        ({"rate": 20, "rounds": 1}, r"rate must lie strictly between 0 and 1 \(0.2 is 20 %\), not 20"),
        ({"density": float("nan")}, "density must lie strictly between 0 and 1"),
        ({"density": "0.5"}, "density must lie strictly between 0 and 1, *|density must lie"),
    ],
)
def test_a_target_that_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Target.of(**settings)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((10, 8.0), "whole numbers"),
        ((10, True), "whole numbers"),
        ((10,), "in 2 counts"),
        ((9, 8), "from 10 weights to 8"),
        ((10, 7), "from 10 weights to 8"),
    ],
)
def test_a_schedule_that_breaks_its_contract_is_refused(counts: tuple[object, ...], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        plan(lambda total, target: counts, 10, Target.of(rate=0.2, rounds=1))


def test_a_schedule_that_rises_is_refused() -> None:
    with pytest.raises(BudgetError, match="never rise"):
        plan(lambda total, target: (100, 60, 64), 100, Target.of(rate=0.2, rounds=2))


def test_a_plan_that_leaves_no_weight_is_refused() -> None:
    with pytest.raises(BudgetError, match="which is none"):
        plan(geometric, 2, Target.of(rate=0.5, rounds=3))
