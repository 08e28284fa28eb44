"""Invariant 7 of the design: a plan starts at N, never rises, is within ½ of the ideal and ends exactly at the target.

Every registered schedule is held against its own ideal curve, written down here a second time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ticketkit import ConfigError, Target
from ticketkit.builtin.schedules import cosine, cubic, geometric, linear, one_shot
from ticketkit.plugins import Plugins
from ticketkit.schedule import plan

REGISTRY = Plugins().registries["schedule"]
HALF = Fraction(1, 2)
TOTALS = st.integers(1, 10**10)
SHARES = st.integers(1, 999).map(lambda per_mille: per_mille / 1000)
TARGETS = st.one_of(
    st.builds(lambda rate, rounds: Target.of(rate=rate, rounds=rounds), SHARES, st.integers(0, 300)),
    st.builds(lambda density, rounds: Target.of(density=density, rounds=rounds), SHARES, st.integers(1, 300)),
    st.builds(
        lambda rate, density: Target.of(rate=rate, density=density), st.sampled_from([0.03, 0.1, 0.2, 0.5]), SHARES
    ),
)
Close = Callable[[int, int], bool]


@dataclass(frozen=True)
class Run:
    """What a schedule is asked, where it must end after how many prunings, and how close a count must be."""

    total: int
    target: Target | None
    options: dict[str, Any]
    rounds: int
    end: int
    close: Close

    def counts(self, name: str) -> tuple[int, ...]:
        return REGISTRY.get(name).configured(self.options).call(self.total, self.target)


def around(ideal: Callable[[int], Fraction], slack: Fraction = Fraction(0)) -> Close:
    return lambda index, count: abs(count - ideal(index)) <= HALF + slack


def along(curve: Callable[[int, Target, int], Fraction], slack: Fraction = Fraction(0)):
    """Return runs of a schedule that needs nothing but a target and goes along a curve over (total, target, index)."""

    @st.composite
    def runs(draw: st.DrawFn) -> Run:
        total, target = draw(TOTALS), draw(TARGETS)
        close = around(lambda index: curve(total, target, index), slack)
        return Run(total, target, {}, target.rounds, round(target.density * total), close)

    return runs()


def geometric_is_close(total: int, target: Target, index: int, count: int) -> bool:
    """Say whether a count is within ½ of the ideal, for irrational ideals by whole-number arithmetic alone."""
    if target.rate is not None:
        return abs(count - (1 - target.rate) ** index * total) <= HALF
    root, power = target.rounds, target.density**index * total**target.rounds
    return max(count - HALF, Fraction(0)) ** root <= power <= (count + HALF) ** root


@st.composite
def geometric_runs(draw: st.DrawFn) -> Run:
    total, target = draw(TOTALS), draw(TARGETS)
    end = round(target.density * total)

    def close(index: int, count: int) -> bool:
        return abs(count - target.density * total) <= HALF if index == target.rounds else inner(index, count)

    def inner(index: int, count: int) -> bool:
        return geometric_is_close(total, target, index, count)

    return Run(total, target, {}, target.rounds, end, close)


def cubic_curve(total: int, target: Target, index: int) -> Fraction:
    final = 1 - target.density  # the paper's sparsities: s_t = s_f + (s_i - s_f)(1 - t/n)^3
    return total * (1 - (final + (0 - final) * (1 - Fraction(index, max(target.rounds, 1))) ** 3))


def decimal_cos(x: Decimal) -> Decimal:
    """The recipe of the decimal module's documentation."""
    i, last, total, factorial, numerator, sign = 0, Decimal(0), Decimal(1), 1, Decimal(1), 1
    while total != last:
        last = total
        i += 2
        factorial *= i * (i - 1)
        numerator *= x * x
        sign *= -1
        total += numerator / factorial * sign
    return total


def decimal_pi() -> Decimal:
    """The recipe of the decimal module's documentation."""
    last, t, s, n, na, d, da = Decimal(0), Decimal(3), Decimal(3), 1, 0, 0, 24
    while s != last:
        last = s
        n, na = n + na, na + 8
        d, da = d + da, da + 32
        t = (t * n) / d
        s += t
    return s


def cosine_curve(total: int, target: Target, index: int) -> Fraction:
    with localcontext(prec=50):
        angle = decimal_pi() * index / max(target.rounds, 1)
        wave = Fraction(decimal_cos(angle))
    return total * (target.density + (1 - target.density) * (1 + wave) / 2)


@st.composite
def one_shot_runs(draw: st.DrawFn) -> Run:
    total, target = draw(TOTALS), draw(TARGETS)
    end = round(target.density * total)
    return Run(
        total, target, {}, min(target.rounds, 1), end, around(lambda i: [Fraction(total), target.density * total][i])
    )


@st.composite
def constant_count_runs(draw: st.DrawFn) -> Run:
    total, rounds = draw(TOTALS), draw(st.integers(1, 300))
    if draw(st.booleans()):
        count = draw(st.integers(1, 10**8))
        assume(count * rounds < total)
        close = around(lambda i: Fraction(total - count * i), -HALF)
        return Run(total, Target.of(rounds=rounds), {"count": count}, rounds, total - count * rounds, close)
    density = draw(SHARES)
    end = round(Fraction(str(density)) * total)
    assume(end < total)
    count = ceil(Fraction(total - end, rounds)) + draw(st.integers(0, 5))
    needed = ceil(Fraction(total - end, count))
    target = Target.of(density=density, rounds=needed) if draw(st.booleans()) else Target.of(density=density)
    close = around(lambda i: Fraction(max(total - count * i, end)), -HALF)
    return Run(total, target, {"count": count}, needed, end, close)


@st.composite
def explicit_runs(draw: st.DrawFn) -> Run:
    total = draw(TOTALS)
    if draw(st.booleans()):
        densities = sorted(draw(st.sets(SHARES, min_size=1, max_size=300)), reverse=True)
        ideals = [Fraction(total), *(Fraction(str(density)) * total for density in densities)]
        target = draw(st.sampled_from([None, Target.of(density=densities[-1]), Target.of(rounds=len(densities))]))
        return Run(
            total, target, {"densities": densities}, len(densities), round(ideals[-1]), around(ideals.__getitem__)
        )
    counts = sorted(draw(st.sets(st.integers(1, total), min_size=1, max_size=300)), reverse=True)
    target = draw(st.sampled_from([None, Target.of(rounds=len(counts))]))
    close = around(lambda i: Fraction([total, *counts][i]), -HALF)
    return Run(total, target, {"counts": counts}, len(counts), counts[-1], close)


RUNS = {
    "geometric": geometric_runs(),
    "one_shot": one_shot_runs(),
    "linear": along(
        lambda total, target, i: total - (total - target.density * total) * Fraction(i, max(target.rounds, 1))
    ),
    "cubic": along(cubic_curve),
    "cosine": along(cosine_curve, slack=Fraction(1, 10**30)),
    "constant_count": constant_count_runs(),
    "explicit": explicit_runs(),
}
every_schedule = pytest.mark.parametrize("name", [entry.name for entry in REGISTRY])


def test_every_registered_schedule_is_tested_here() -> None:
    assert sorted(RUNS) == [entry.name for entry in REGISTRY]


@every_schedule
@given(data=st.data())
def test_a_plan_starts_dense_never_rises_and_ends_exactly(name: str, data: st.DataObject) -> None:
    run = data.draw(RUNS[name])
    counts = run.counts(name)
    assert all(type(count) is int for count in counts)
    assert (len(counts), counts[0], counts[-1]) == (run.rounds + 1, run.total, run.end)
    assert all(later <= earlier for earlier, later in pairwise(counts))
    if run.end:
        call = REGISTRY.get(name).configured(run.options).call
        assert plan(call, run.total, run.target) == counts


@every_schedule
@given(data=st.data())
def test_every_count_is_within_one_half_of_the_ideal(name: str, data: st.DataObject) -> None:
    run = data.draw(RUNS[name])
    assert all(run.close(index, count) for index, count in enumerate(run.counts(name)))


def exact(total: int, target: Target, index: int) -> int:
    """The definition of a geometric count: exact powers, or 60 digits where there are none."""
    if target.rate is not None:
        return round((1 - target.rate) ** index * total)
    with localcontext(prec=60):
        density = Decimal(target.density.numerator) / Decimal(target.density.denominator)
        return round(Fraction(density ** (Decimal(index) / Decimal(target.rounds))) * total)


@given(TOTALS, TARGETS)
@example(5, Target.of(rounds=2, density=0.25))
@example(15, Target.of(rounds=2, density=0.25))
@example(15, Target.of(rounds=3, rate=0.1))
@example(2**9 * 3, Target.of(rounds=12, rate=0.5))
@example(10**10 + 1, Target.of(rounds=2, rate=0.5))
def test_geometric_counts_are_bit_for_bit_those_of_exact_powers(total: int, target: Target) -> None:
    assert geometric(total, target)[:-1] == tuple(exact(total, target, index) for index in range(target.rounds))


@pytest.mark.parametrize("schedule", [geometric, linear, cubic, cosine])
@pytest.mark.parametrize("settings", [{"rate": 0.0001}, {"density": 0.05}], ids=str)
def test_tens_of_thousands_of_rounds_are_planned_exactly(schedule: Any, settings: dict[str, float]) -> None:
    total, target = 10**10, Target.of(rounds=20_000, **settings)
    counts = schedule(total, target)
    assert (len(counts), counts[0], counts[-1]) == (20_001, total, round(target.density * total))
    assert all(later <= earlier for earlier, later in pairwise(counts))
    if schedule is geometric:
        assert all(counts[index] == exact(total, target, index) for index in (1, 7, 1234, 19_999))


@given(st.integers(1000, 10**10), st.integers(2, 60))
def test_trap_8_no_count_drifts_from_the_original_total(total: int, rounds: int) -> None:
    counts = geometric(total, Target.of(rate=0.2, rounds=rounds))
    assert all(abs(count - Fraction(4, 5) ** index * total) <= HALF for index, count in enumerate(counts))


def test_trap_8_rounding_each_round_up_would_drift() -> None:
    remaining = 1_000_001
    for _ in range(30):
        remaining -= ceil(0.2 * remaining)
    assert (
        remaining != geometric(1_000_001, Target.of(rate=0.2, rounds=30))[-1] == round(Fraction(4, 5) ** 30 * 1_000_001)
    )


@pytest.mark.parametrize("schedule", [geometric, one_shot, linear, cubic, cosine])
@given(total=TOTALS, density=SHARES, rounds=st.integers(1, 300))
def test_trap_26_the_last_count_is_the_target_itself(schedule: Any, total: int, density: float, rounds: int) -> None:
    for target in (Target.of(density=density, rounds=rounds), Target.of(density=density)):
        assert schedule(total, target)[-1] == round(Fraction(str(density)) * total)


def test_trap_26_the_cubic_curve_uses_the_number_of_prunings_as_denominator() -> None:
    """With n + 1 in the denominator the last count would be 0.9 · (1/5)³ · 1000 = 7 weights too high."""
    assert cubic(1000, Target.of(rounds=4, density=0.1)) == (1000, 480, 212, 114, 100)


def test_curves_have_their_shapes() -> None:
    target = Target.of(rounds=4, density=0.2)
    assert linear(1000, target) == (1000, 800, 600, 400, 200)
    assert cosine(1000, target) == (1000, 883, 600, 317, 200)
    assert one_shot(1000, target) == (1000, 200)


@pytest.mark.parametrize("name", ["geometric", "one_shot", "linear", "cubic", "cosine", "constant_count"])
def test_a_schedule_that_needs_a_target_says_how_to_give_one(name: str) -> None:
    call = REGISTRY.get(name).configured({"count": 3} if name == "constant_count" else {}).call
    with pytest.raises(ConfigError, match=r"say how far to prune: rounds=14 .* or density=0.05"):
        plan(call, 100, None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant_count", {}),
        ("constant_count", {"count": 0}),
        ("constant_count", {"count": 1.0}),
        ("constant_count", {"count": True}),
        ("constant_count", {"count": 0.2}),
        ("constant_count", {"count": 3, "rate": 1}),
        ("explicit", {}),
        ("explicit", {"densities": []}),
        ("explicit", {"densities": [0.5], "counts": [5]}),
        ("explicit", {"densities": [50, 20]}),
        ("explicit", {"densities": [1.0, 0.5]}),
        ("explicit", {"densities": [0.5, 0.0]}),
        ("explicit", {"densities": [True]}),
        ("explicit", {"densities": ["0.5"]}),
        ("explicit", {"densities": [float("nan")]}),
        ("explicit", {"counts": [0.5]}),
        ("explicit", {"counts": [5.0]}),
        ("explicit", {"counts": [5, 0]}),
        ("geometric", {"rate": 0.2}),
    ],
    ids=str,
)
def test_trap_27_options_take_a_share_for_a_share_and_an_int_for_a_count(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"schedule '{name}'"):
        REGISTRY.get(name).configured(options)


@pytest.mark.parametrize("options", [{"densities": [0.5, 0.5]}, {"densities": [0.2, 0.5]}, {"counts": [5, 5]}], ids=str)
def test_what_is_listed_must_fall(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"must fall with each pruning, but (0\.)?5 follows"):
        REGISTRY.get("explicit").configured(options)


@pytest.mark.parametrize(
    ("name", "options", "target", "message"),
    [
        ("explicit", {"counts": [50, 20]}, Target.of(rounds=3), "it prunes 2 times, the target 3 times"),
        ("explicit", {"counts": [50, 20]}, Target.of(density=0.1), "ends at 20 of 100 weights, the target at 10"),
        ("explicit", {"densities": [0.8]}, Target.of(rate=0.5, rounds=1), "rate and rounds .*at 80 .*target at 50"),
        ("explicit", {"counts": [101, 20]}, None, "keeps 101 weights after the first pruning, but there are only 100"),
        ("constant_count", {"count": 30}, Target.of(rounds=2, density=0.1), "it prunes 3 times, the target 2 times"),
        ("constant_count", {"count": 30}, Target.of(rounds=4), r"only 100; at most 3 rounds leave any"),
        ("constant_count", {"count": 25}, Target.of(rounds=4), r"only 100; at most 3 rounds leave any"),
    ],
)
def test_a_target_that_contradicts_the_options_is_refused(
    name: str, options: dict[str, Any], target: Target | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(REGISTRY.get(name).configured(options).call, 100, target)


def test_a_count_too_small_for_the_way_is_refused() -> None:
    call = REGISTRY.get("constant_count").configured({"count": 1}).call
    with pytest.raises(ConfigError, match="takes 5000000000 rounds from 10000000000 to 5000000000 weights"):
        plan(call, 10**10, Target.of(density=0.5))


def test_rounds_alone_leave_the_end_to_the_schedule() -> None:
    constant = REGISTRY.get("constant_count").configured({"count": 30}).call
    listed = REGISTRY.get("explicit").configured({"densities": [0.5, 0.1]}).call
    assert plan(constant, 100, Target.of(rounds=2)) == (100, 70, 40)
    assert plan(listed, 100, Target.of(rounds=2)) == plan(listed, 100, None) == (100, 50, 10)


def test_the_last_constant_step_is_as_short_as_it_must_be() -> None:
    call = REGISTRY.get("constant_count").configured({"count": 30}).call
    assert plan(call, 100, Target.of(density=0.05)) == (100, 70, 40, 10, 5)
    assert plan(call, 100, Target.of(density=0.05), start=50) == (50, 20, 5)


def test_options_are_recorded_as_they_were_given() -> None:
    choice = REGISTRY.get("explicit").configured({"densities": [0.5, 0.1]})
    assert choice.provenance.options == {"densities": [0.5, 0.1]}
