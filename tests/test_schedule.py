from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ticketkit import BudgetError, ConfigError, Target
from ticketkit.builtin.schedules import geometric, one_shot
from ticketkit.schedule import plan

SHARES = st.integers(1, 999).map(lambda per_mille: per_mille / 1000)
RATES = st.sampled_from([0.001, 0.1, 0.2, 0.5, 0.999])


@given(SHARES, st.integers(0, 30))
def test_rate_and_rounds_are_exact_decimals(rate: float, rounds: int) -> None:
    assert Target.of(rate=rate, rounds=rounds).density == (1 - Fraction(str(rate))) ** rounds


@given(RATES, SHARES)
@example(0.5, 0.5)
@example(0.5, 0.25)
@example(0.1, 0.729)
@example(0.0001, 0.05)
@example(0.9999999999999999, 0.05)
def test_a_rate_and_a_density_take_as_few_rounds_as_reach_it(rate: float, density: float) -> None:
    target = Target.of(rate=rate, density=density)
    kept = 1 - Fraction(str(rate))
    assert kept**target.rounds <= target.density < kept ** (target.rounds - 1)
    assert target.density == Fraction(str(density))


def test_the_paper_keeps_4_4_percent_after_14_prunings_of_20_percent() -> None:
    counts = plan(geometric, 1_000_000, Target.of(rounds=14))
    assert counts[:3] == (1_000_000, 800_000, 640_000)
    assert counts[-1] == round(0.8**14 * 1_000_000) == 43_980


def test_nothing_asked_is_no_target() -> None:
    assert Target.of() is None


@pytest.mark.parametrize(
    ("settings", "rounds", "end"),
    [
        ({"rounds": 3}, True, False),
        ({"density": 0.1}, False, True),
        ({"rate": 0.5, "rounds": 3}, True, True),
        ({"rate": 0.5, "density": 0.1}, True, True),
        ({"rounds": 3, "density": 0.1}, True, True),
    ],
)
def test_a_rate_that_nobody_asked_for_settles_nothing(settings: dict[str, float], rounds: bool, end: bool) -> None:
    target = Target.of(**settings)
    assert (target.settles_rounds, target.settles_end) == (rounds, end)
    assert target.asked == settings.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.2}, "say how far to prune"),
        ({"rate": 0.2, "rounds": 3, "density": 0.5}, "give two of rate, rounds and density"),
        ({"rounds": 0, "density": 0.5}, "rounds=0 prunes nothing"),
        ({"rounds": -1}, "rounds must be a whole number"),
        ({"rounds": 1.0}, "rounds must be a whole number"),
        ({"rounds": True}, "rounds must be a whole number"),
        ({"rounds": 10**9}, "at most 100000, not 1000000000"),
        ({"rate": 1e-9, "density": 0.05}, r"at a rate of 1e-09 a density of 0.05 takes \d+ prunings"),
        ({"rate": 1e-18, "density": 0.05}, r"at a rate of 1e-18 a density of 0.05 takes \d+ prunings"),
    ],
)
def test_a_target_that_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Target.of(**settings)


@pytest.mark.parametrize("what", ["rate", "density"])
@pytest.mark.parametrize("value", [0, 1, 1.0, 20, -0.1, True, float("nan"), float("inf"), "0.5"])
def test_trap_27_a_share_is_a_number_strictly_between_0_and_1(what: str, value: object) -> None:
    other = {"rounds": 1} if what == "rate" else {}
    with pytest.raises(ConfigError, match=rf"{what} must lie strictly between 0 and 1 \(0.2 is 20 %\), not"):
        Target.of(**{what: value}, **other)


def test_a_share_means_its_decimal_spelling() -> None:
    assert Target.of(density=0.1).density == Fraction(1, 10) != Fraction(0.1)


STARTS = st.integers(1, 10**10).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total)))


@given(STARTS, SHARES, st.integers(1, 20))
@example((1000, 400), 0.1, 3)
@example((1000, 1000), 0.1, 3)
def test_a_density_is_of_the_whole_scope_wherever_the_run_starts(sizes: tuple[int, int], density: float, rounds: int):
    total, start = sizes
    end = round(Fraction(str(density)) * total)
    assume(Fraction(str(density)) * total < start and end > 0)
    for target in (Target.of(rounds=rounds, density=density), Target.of(density=density)):
        counts = plan(geometric, total, target, start=start)
        assert (counts[0], counts[-1]) == (start, end)


@given(STARTS, RATES, SHARES)
@example((1000, 51), 0.2, 0.05)
def test_a_rate_and_a_density_take_as_few_rounds_as_are_left(
    sizes: tuple[int, int], rate: float, density: float
) -> None:
    total, start = sizes
    kept, goal = 1 - Fraction(str(rate)), Fraction(str(density)) * total
    assume(goal < start)
    rounds = Target.of(rate=rate, density=density).rescaled(total, start).rounds
    assert start * kept**rounds <= goal < start * kept ** (rounds - 1)


@given(STARTS, RATES, st.integers(0, 20))
def test_a_rate_and_rounds_prune_what_the_run_starts_from(sizes: tuple[int, int], rate: float, rounds: int) -> None:
    total, start = sizes
    for target in (Target.of(rate=rate, rounds=rounds), Target.of(rounds=rounds)):
        assume(target.end(start) > 0)
        assert plan(geometric, total, target, start=start) == plan(geometric, start, target)


def test_a_run_that_starts_no_denser_than_it_ends_is_refused() -> None:
    for start in (499, 500):
        with pytest.raises(ConfigError, match=rf"starts from {start} of 1000 weights, .* density of 0.5 \(500 weights"):
            plan(geometric, 1000, Target.of(density=0.5), start=start)
    assert plan(one_shot, 1000, Target.of(density=0.5), start=501) == (501, 500)


@pytest.mark.parametrize("start", [0, -1, 1001, 1.0, True])
def test_a_start_is_a_number_of_weights_in_scope(start: object) -> None:
    with pytest.raises(BudgetError, match="must start from 1 to 1000 weights"):
        plan(geometric, 1000, Target.of(rounds=1), start=start)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((10, 8.0), "whole numbers"),
        ((10, True), "whole numbers"),
        ((), "from 10 weights to 8 in at most 2 counts, not ()"),
        ((10,), "from 10 weights to 8 in at most 2 counts"),
        ((10, 9, 8), "from 10 weights to 8 in at most 2 counts"),
        ((9, 8), "from 10 weights to 8"),
        ((10, 7), "from 10 weights to 8"),
    ],
)
def test_a_schedule_that_breaks_its_contract_is_refused(counts: tuple[object, ...], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        plan(lambda total, target: counts, 10, Target.of(rate=0.2, rounds=1))


@pytest.mark.parametrize(
    ("target", "accepted", "refused"),
    [
        (Target.of(rounds=2), (10, 7, 3), (10, 7, 5, 3)),
        (Target.of(density=0.5), (10, *[9] * 50, 5), (10, 6)),
        (None, (10, 9, 8, 1), (9, 8)),
    ],
)
def test_a_schedule_is_free_in_what_the_target_leaves_open(
    target: Target | None, accepted: tuple[int, ...], refused: tuple[int, ...]
) -> None:
    assert plan(lambda total, target: accepted, 10, target) == accepted
    with pytest.raises(BudgetError, match="must go from 10 weights"):
        plan(lambda total, target: refused, 10, target)


@pytest.mark.parametrize("target", [None, Target.of(rate=0.2, rounds=2)])
def test_a_schedule_that_rises_is_refused(target: Target | None) -> None:
    with pytest.raises(BudgetError, match="never rise"):
        plan(lambda total, target: (100, 60, 64), 100, target)


def test_a_plan_that_leaves_no_weight_is_refused() -> None:
    with pytest.raises(BudgetError, match="leaves 0 of 2 weights, which is none"):
        plan(geometric, 2, Target.of(rate=0.5, rounds=3))
    with pytest.raises(BudgetError, match="which is none"):
        plan(lambda total, target: (2, 0), 2, None)


def test_a_long_plan_is_shortened_in_errors() -> None:
    with pytest.raises(BudgetError, match=r"never rise, not \(50, .*, … 35 more …, .*, 51\)$"):
        plan(lambda total, target: (*range(50, 0, -1), 51), 50, None)
