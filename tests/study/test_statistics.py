"""Comparisons: paired bootstrap over seeds and examples, and Holm's correction."""

from dataclasses import replace
from itertools import permutations
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ticketkit.errors import RunError
from ticketkit.study import statistics
from ticketkit.study.statistics import Comparison, Sample, bootstrap, compare, fit, holm, interval

FEW = 400  # resamples, where the law holds for any number of them
P_VALUES = st.dictionaries(st.integers(0, 20), st.floats(0, 1), min_size=1, max_size=8)


def sample(errors: Any, units: Any = None, seeds: tuple[int, ...] | None = None) -> Sample:
    errors = np.asarray(errors, dtype=np.int64)
    units = np.ones(errors.shape[1], np.int64) if units is None else np.asarray(units, dtype=np.int64)
    ids = tuple(f"example-{index}" for index in range(errors.shape[1]))
    return Sample(tuple(range(len(errors))) if seeds is None else seeds, ids, errors, units)


@st.composite
def samples(draw: st.DrawFn, count: int = 1) -> list[Sample]:
    """Return samples of the same seeds and examples."""
    seeds, examples = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    units = random.integers(1, 9, examples)
    return [sample(random.integers(0, 7, (seeds, examples)), units) for _ in range(count)]


def noisy(random: np.random.Generator, *, seeds: int, examples: int, between: float, shift: float = 0.0) -> Sample:
    """Return errors against 100 units each: differences between examples, seeds and both."""
    of_example = random.normal(0, 8, examples)
    of_seed = random.normal(shift, between, (seeds, 1))
    return sample(np.rint(40 + of_seed + of_example + random.normal(0, 8, (seeds, examples))), np.full(examples, 100))


@given(samples(), st.sampled_from([0.0, 0.01]))
def test_a_network_is_as_good_as_itself_and_not_better(found: list[Sample], margin: float) -> None:
    result = compare(found[0], found[0], margin=margin, resamples=FEW)
    assert (result.difference, result.low, result.high) == (0, 0, 0)
    assert result.p_better == result.p_worse == 1
    assert result.p_match == (1 if margin == 0 else 1 / (FEW + 1))


@given(samples(2), st.integers(-3, 3))
def test_shifting_all_errors_shifts_difference_and_interval(found: list[Sample], shift: int) -> None:
    first, rival = found
    plain = compare(first, rival, margin=0, resamples=FEW)
    moved = compare(replace(first, errors=first.errors + shift * first.units), rival, margin=0, resamples=FEW)
    assert moved.difference == pytest.approx(plain.difference + shift)
    assert (moved.low, moved.high) == pytest.approx((plain.low + shift, plain.high + shift))


@given(samples(2))
def test_the_difference_is_that_of_the_mean_rates_and_turns_round(found: list[Sample]) -> None:
    there, back = (compare(a, b, margin=0, resamples=FEW) for a, b in (found, reversed(found)))
    rates = [one.errors.sum(1) / one.units.sum() for one in found]
    assert there.difference == pytest.approx(float(np.mean(rates[0] - rates[1])))
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert back.p_better == there.p_worse


@given(samples(2), st.floats(0, 3), st.floats(0, 3))
def test_p_values_lie_above_zero_and_follow_the_margin(found: list[Sample], one: float, other: float) -> None:
    small, large = sorted((one, other))
    strict, lax = (compare(*found, margin=margin, resamples=FEW) for margin in (small, large))
    for result in (strict, lax):
        assert 1 / (FEW + 1) <= result.p_match <= result.p_better <= 1
        assert 1 / (FEW + 1) <= result.p_worse <= 1
        assert result.p_match + result.p_worse >= 1
        assert result.low <= result.high
    assert lax.p_match <= strict.p_match
    assert lax.p_worse >= strict.p_worse
    assert lax.p_better == strict.p_better


@given(samples(2), st.randoms())
def test_seeds_are_paired_by_their_number_wherever_they_stand(found: list[Sample], random: Any) -> None:
    first, rival = found
    order = list(rival.seeds)
    random.shuffle(order)
    assert compare(first, rival.of_seeds(tuple(order)), margin=0, resamples=FEW) == compare(
        first, rival, margin=0, resamples=FEW
    )


def test_only_seeds_that_both_have_are_compared() -> None:
    first = sample([[9, 9], [1, 2]], seeds=(4, 7))
    rival = sample([[1, 1], [8, 8]], seeds=(7, 5))
    result = compare(first, rival, margin=0, resamples=FEW)
    assert (result.seeds, result.rate, result.rival) == (1, 1.5, 1.0)


def test_the_order_of_examples_matters_no_more_than_the_resamples_drawn() -> None:
    random = np.random.default_rng(0)
    first, rival = (noisy(random, seeds=3, examples=80, between=2) for _ in range(2))
    order = random.permutation(80)
    ids = tuple(first.ids[place] for place in order)
    turned = [Sample(one.seeds, ids, one.errors[:, order], one.units[order]) for one in (first, rival)]
    plain, other = compare(first, rival, margin=0.01), compare(*turned, margin=0.01)
    assert other.difference == pytest.approx(plain.difference)
    width = plain.high - plain.low
    assert (other.low, other.high) == pytest.approx((plain.low, plain.high), abs=0.05 * width)
    assert other.p_match == pytest.approx(plain.p_match, abs=0.03)


def test_pairing_examples_narrows_the_interval() -> None:
    random = np.random.default_rng(1)
    hard = random.integers(0, 50, (1, 200))
    first, rival = (sample(hard + random.integers(0, 3, (8, 200)), np.full(200, 50)) for _ in range(2))
    paired = compare(first, rival, margin=0)
    alone = interval(first)
    assert paired.high - paired.low < (alone[1] - alone[0]) / 5


def test_the_interval_widens_with_the_spread_between_seeds() -> None:
    rival = sample(np.full((4, 60), 5), np.full(60, 10))
    widths = []
    for spread in (0, 1, 2, 4):
        errors = 5 + np.array([[-spread], [spread], [-spread], [spread]]) + np.tile([1, -1], 30)
        result = compare(sample(errors, np.full(60, 10)), rival, margin=0)
        widths.append(result.high - result.low)
    assert widths == sorted(widths)
    assert widths[-1] > 3 * widths[0] > 0


def test_more_examples_narrow_the_interval_as_their_root() -> None:
    random = np.random.default_rng(2)
    widths = [np.diff(interval(sample(random.integers(0, 2, (1, n))))).item() for n in (100, 1600)]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.1)


@given(samples())
def test_resamples_centre_on_the_rate(found: list[Sample]) -> None:
    own = replace(found[0], units=np.full_like(found[0].units, 3))  # of equal size: the ratio has no bias
    drawn = bootstrap(own.errors, own.units, resamples=4000, seed=0)
    assert drawn.shape == (4000,)
    assert drawn.mean() == pytest.approx(own.rate, abs=5 * drawn.std() / sqrt(4000) + 1e-12)


@pytest.mark.parametrize("examples", [3, 17])
def test_resamples_are_the_same_however_many_are_drawn_together(examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own = noisy(np.random.default_rng(0), seeds=3, examples=examples, between=2)
    together = bootstrap(own.errors, own.units, resamples=101, seed=5)
    monkeypatch.setattr(statistics, "DRAWS_AT_ONCE", 10)
    assert np.array_equal(bootstrap(own.errors, own.units, resamples=101, seed=5), together)


def test_the_bootstrap_of_two_examples_is_the_binomial_distribution() -> None:
    drawn = bootstrap(np.array([[0, 1]]), np.array([1, 1]), resamples=20_000, seed=3)
    shares = [float((drawn == rate).mean()) for rate in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.015)


@pytest.mark.parametrize(("between", "seeds", "examples"), [(0.5, 3, 60), (2, 12, 60)])
def test_the_interval_covers_the_truth_as_often_as_it_says(between: float, seeds: int, examples: int) -> None:
    random, hits, wrong, trials = np.random.default_rng(4), 0, 0, 250
    for trial in range(trials):
        first, rival = (noisy(random, seeds=seeds, examples=examples, between=between) for _ in range(2))
        result = compare(first, rival, margin=0, resamples=300, seed=trial)
        hits += result.low <= 0 <= result.high
        wrong += result.p_better < 0.05
    tolerance = 3 * sqrt(0.05 * 0.95 / trials)
    assert hits / trials >= 0.95 - tolerance
    assert wrong / trials <= 0.05 + tolerance


def test_a_real_difference_is_found() -> None:
    random = np.random.default_rng(5)
    first = noisy(random, seeds=5, examples=200, between=1)
    worse = replace(first, errors=first.errors + 5 + np.rint(random.normal(0, 4, first.errors.shape)).astype(np.int64))
    result = compare(first, worse, margin=0.01)
    assert result.high < 0
    assert result.p_better == result.p_match == 1 / 10_001
    back = compare(worse, first, margin=0.01)
    assert (back.p_worse, back.p_match) == (1 / 10_001, 1)


def test_the_same_data_give_the_same_comparison_to_the_bit() -> None:
    first, rival = (noisy(np.random.default_rng(seed), seeds=3, examples=30, between=2) for seed in (0, 1))
    assert compare(first, rival, margin=0.01) == compare(first, rival, margin=0.01)
    assert isinstance(compare(first, rival, margin=0.01), Comparison)


def test_examples_without_units_count_their_errors_and_resamples_of_these_alone_are_left_out() -> None:
    first, rival = sample([[1, 2]], [0, 4]), sample([[0, 1]], [0, 4])
    result = compare(first, rival, margin=0.1, resamples=FEW)
    assert result.difference == pytest.approx(0.5)
    assert np.isfinite([result.low, result.high]).all()
    assert result.p_match == 1


def test_examples_without_any_unit_are_refused() -> None:
    with pytest.raises(RunError, match="2 examples without a single unit"):
        interval(sample([[0, 0]], [0, 0]))


def test_networks_without_a_common_seed_are_refused() -> None:
    with pytest.raises(RunError, match=r"without a common seed cannot be compared: \(0,\) and \(1, 2\)"):
        compare(sample([[1]], seeds=(0,)), sample([[1], [2]], seeds=(1, 2)), margin=0)


@pytest.mark.parametrize("change", ["order", "names", "units", "number"])
def test_networks_that_were_tested_on_different_examples_are_refused(change: str) -> None:
    first = sample([[1, 2]], [3, 4])
    others = {
        "order": replace(first, ids=first.ids[::-1]),
        "names": replace(first, ids=("a", "b")),
        "units": replace(first, units=np.array([4, 3])),
        "number": sample([[1, 2, 3]], [3, 4, 5]),
    }
    with pytest.raises(RunError, match="different examples"):
        compare(first, others[change], margin=0)


def test_rates_are_errors_over_units_and_the_spread_is_that_of_seeds() -> None:
    own = sample([[1, 2], [3, 6]], [4, 6])
    assert own.rates == (0.3, 0.9)
    assert own.rate == pytest.approx(0.6)
    assert own.spread == pytest.approx(0.6 / sqrt(2))
    assert np.isnan(own.of_seeds((1,)).spread)
    assert own.of_seeds((1, 0)).rates == (0.9, 0.3)


@given(P_VALUES)
@example({0: 0.01, 1: 0.01, 2: 0.01})
def test_holm_lies_between_the_raw_value_and_bonferroni(raw: dict[int, float]) -> None:
    corrected = holm(raw)
    assert corrected.keys() == raw.keys()
    for key, p in raw.items():
        assert p <= corrected[key] <= min(1.0, len(raw) * p) or corrected[key] == pytest.approx(len(raw) * p)


@given(P_VALUES)
def test_holm_keeps_the_order_of_p_values_and_of_nothing_else(raw: dict[int, float]) -> None:
    corrected = holm(raw)
    ranked = sorted(raw, key=lambda key: raw[key])
    assert [corrected[key] for key in ranked] == sorted(corrected.values())
    assert holm(dict(reversed(raw.items()))) == corrected


@given(P_VALUES, st.data())
def test_holm_rises_with_every_p_value(raw: dict[int, float], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(raw)))
    larger = holm({**raw, key: data.draw(st.floats(raw[key], 1))})
    assert all(larger[one] >= p for one, p in holm(raw).items())


@pytest.mark.parametrize("order", list(permutations(["a", "b", "c"])))
def test_holm_by_hand(order: tuple[str, ...]) -> None:
    raw = {"a": 0.01, "b": 0.04, "c": 0.03}
    assert holm({key: raw[key] for key in order}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_holm_of_one_is_itself_and_of_none_is_nothing() -> None:
    assert holm({"a": 0.2}) == {"a": 0.2}
    assert holm({}) == {}


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_holm_accepts_a_false_claim_in_few_families(seed: int) -> None:
    """Under uniform p-values, as of true nulls, the smallest corrected one is below 5 % in about 5 % of families."""
    uniform = np.random.default_rng(seed).random((600, 6))
    wrong = sum(min(holm(dict(enumerate(family))).values()) < 0.05 for family in uniform.tolist())
    assert wrong / 600 < 0.05 + 5 * sqrt(0.05 * 0.95 / 600)


def test_the_t_test_is_scipys_paired_one_where_examples_have_no_spread() -> None:
    from scipy.stats import ttest_1samp

    rates = np.array([3, 5, 4, 8])
    found = fit(np.repeat(rates[:, None], 50, axis=1), np.full(50, 10))
    reference = ttest_1samp(rates / 10, 0.6, alternative="less")
    assert found.freedom == pytest.approx(3)
    assert found.p_not_below(0.6) == pytest.approx(reference.pvalue)
    assert found.p_not_above(0.6) == pytest.approx(1 - reference.pvalue)
    low, high = ttest_1samp(rates / 10, 0.6).confidence_interval(0.95)
    assert found.ends(0.95) == pytest.approx((low, high))


def test_one_seed_is_about_the_examples_alone() -> None:
    errors = np.random.default_rng(0).integers(0, 3, (1, 80))
    found = fit(errors, np.ones(80, dtype=np.int64))
    assert found.error == pytest.approx(errors.std(ddof=1) / np.sqrt(80))
    assert found.freedom == pytest.approx(79)


def test_no_spread_at_all_is_certain() -> None:
    found = fit(np.full((2, 5), 1), np.full(5, 4))
    assert (found.mean, found.error) == (0.25, 0.0)
    assert (found.p_not_below(0.3), found.p_not_below(0.25), found.p_not_above(0.2)) == (0.0, 1.0, 0.0)
    assert found.ends(0.95) == (0.25, 0.25)


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_three_seeds_that_differ_by_chance_are_seldom_called_better(spread: float) -> None:
    random, false, trials = np.random.default_rng(2), 0, 200
    for _ in range(trials):
        chances = np.clip(0.3 + spread * random.standard_normal((2, 3, 1)), 0.01, 0.99)
        errors = (random.random((2, 3, 150)) < chances).astype(np.int64)
        first, rival = (sample(one, np.ones(150, dtype=np.int64)) for one in errors)
        false += compare(first, rival, margin=0.0, resamples=FEW).p_better < 0.05
    assert false <= 0.05 * trials + 3 * np.sqrt(0.05 * 0.95 * trials)
