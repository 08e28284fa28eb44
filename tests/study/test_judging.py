"""What comparisons show, and how numbers are written."""

from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketkit.study.findings import Verdict
from ticketkit.study.judging import Judge, Judgement, probability, share, together
from ticketkit.study.statistics import Comparison, Sample, holm

ALPHA = 0.05
JUDGE = Judge("wer", percent=True, margin=0.01, confidence=0.95, resamples=1000)
COUNTED = Judge("loss", percent=False, margin=0.01, confidence=0.95, resamples=1000)
COMPARISON = Comparison(0.1, 0.2, -0.2, 0.0, 0.01, 0.02, 0.9, 3)
P = st.floats(0.0001, 1)


def judgement(match: float, better: float, worse: float) -> Judgement:
    return Judgement(COMPARISON, match, better, worse, ALPHA)


def sample(*rates: float, examples: int = 40) -> Sample:
    """Return a sample whose every example has the rate of its seed, against 1000 units."""
    errors = np.array([[round(1000 * rate)] * examples for rate in rates])
    names = tuple(map(str, range(examples)))
    return Sample(tuple(range(len(rates))), names, errors, np.full(examples, 1000))


@pytest.mark.parametrize(
    ("match", "better", "worse", "word", "as_good", "superior"),
    [
        (0.001, 0.01, 1.0, "better", "yes", "yes"),
        (0.001, 0.3, 1.0, "matches", "yes", "not decided"),
        (0.3, 0.8, 0.7, "undecided", "not decided", "not decided"),
        (1.0, 1.0, 0.001, "worse", "no", "no"),
        (ALPHA, 1.0, 1.0, "undecided", "not decided", "not decided"),
        (1.0, 1.0, ALPHA, "undecided", "not decided", "not decided"),
        (0.04, ALPHA, 1.0, "matches", "yes", "not decided"),
    ],
)
def test_only_what_is_shown_is_said(
    match: float, better: float, worse: float, word: str, as_good: Verdict, superior: Verdict
) -> None:
    found = judgement(match, better, worse)
    assert (found.word, found.as_good, found.superior) == (word, as_good, superior)


@given(P, P, P)
def test_a_verdict_follows_from_the_word(match: float, better: float, worse: float) -> None:
    found = judgement(match, better, worse)
    assert (found.word == "undecided") == (min(match, better, worse) >= ALPHA)
    assert (found.as_good == "yes") == (found.word in ("better", "matches"))
    assert (found.superior == "yes") == (found.word == "better")
    assert (found.as_good == "no") == (found.superior == "no") == (found.word == "worse")


@pytest.mark.parametrize(
    ("rates", "word"),
    [
        ((0.10, 0.11), "better"),
        ((0.2, 0.2), "matches"),
        ((0.203, 0.203), "matches"),
        ((0.205, 0.202), "undecided"),
        ((0.3, 0.29), "worse"),
    ],
)
def test_clear_data_get_their_word(rates: tuple[float, ...], word: str) -> None:
    assert JUDGE.judged({0: JUDGE.compare(sample(*rates), sample(0.2, 0.2))})[0].word == word


def test_seeds_that_disagree_decide_nothing() -> None:
    assert JUDGE.judged({0: JUDGE.compare(sample(0.1, 0.3), sample(0.2, 0.2))})[0].word == "undecided"


def test_a_margin_is_what_decides_between_matching_and_worse() -> None:
    first, rival = sample(0.22, 0.22), sample(0.2, 0.2)
    for margin, word in ((0.01, "worse"), (0.019, "worse"), (0.021, "matches"), (0.1, "matches")):
        judge = Judge("wer", True, margin, 0.95, 1000)
        assert judge.judged({0: judge.compare(first, rival)})[0].word == word


@given(st.lists(st.tuples(P, P, P), min_size=1, max_size=6))
def test_every_kind_of_p_value_is_corrected_for_the_whole_family(values: list[tuple[float, float, float]]) -> None:
    family = {key: Comparison(0, 0, 0, 0, *p, 3) for key, p in enumerate(values)}
    judged = JUDGE.judged(family)
    assert {key: one.p_match for key, one in judged.items()} == holm({k: one.p_match for k, one in family.items()})
    assert {key: one.p_better for key, one in judged.items()} == holm({k: one.p_better for k, one in family.items()})
    assert {key: one.p_worse for key, one in judged.items()} == holm({k: one.p_worse for k, one in family.items()})
    assert all(judged[key].comparison is family[key] for key in family)
    assert all(one.alpha == JUDGE.alpha for one in judged.values())


def test_a_larger_family_shows_no_more() -> None:
    one = Comparison(0, 0, 0, 0, 0.01, 0.01, 1.0, 3)
    words = [JUDGE.judged(dict.fromkeys(range(size), one))[0].word for size in (1, 4, 6, 10)]
    assert words == ["better", "better", "undecided", "undecided"]


def test_a_comparison_uses_the_rules_of_the_study() -> None:
    first, rival = sample(0.2, 0.25), sample(0.2, 0.2)
    wide, narrow = (Judge("wer", True, 0.01, confidence, 1000).interval(first) for confidence in (0.99, 0.6))
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]
    assert JUDGE.compare(first, rival).p_worse >= 1 / 1001
    assert JUDGE.alpha == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("judge", "texts"),
    [
        (JUDGE, ("wer %", "12.34", "–", "+1.20", "-1.20", 12.34)),
        (COUNTED, ("loss", "0.1234", "–", "+0.012", "-0.012", 0.1234)),
    ],
)
def test_rates_are_written_in_their_unit(judge: Judge, texts: tuple[object, ...]) -> None:
    shown = (judge.number(0.1234), judge.number(nan), judge.signed(0.012), judge.signed(-0.012))
    assert (judge.unit, *shown, judge.scaled(0.1234)) == texts


def test_a_mean_has_a_spread_only_over_several_seeds() -> None:
    assert JUDGE.mean(sample(0.1)) == "10.00"
    assert JUDGE.mean(sample(0.1, 0.12)) == "11.00 ± 1.41"
    assert JUDGE.difference(COMPARISON) == "-10.00 [-20.00, +0.00]"


@pytest.mark.parametrize(("p", "text"), [(0.0004, "<0.001"), (0.001, "0.001"), (0.0496, "0.050"), (1.0, "1.000")])
def test_p_values_are_written_with_three_digits(p: float, text: str) -> None:
    assert probability(p) == text


def test_a_share_is_written_in_percent() -> None:
    assert [share(value) for value in (1.0, 0.4096, 0.8**20)] == ["100.0 %", "41.0 %", "1.2 %"]


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        (["yes", "yes"], "yes"),
        (["no"], "no"),
        (["yes", "no"], "not decided"),
        (["no", "not decided"], "not decided"),
        ([], "not decided"),
    ],
)
def test_verdicts_count_together_only_if_all_agree(verdicts: list[Verdict], verdict: Verdict) -> None:
    assert together(verdicts) == verdict
