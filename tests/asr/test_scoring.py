import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketkit import DataError
from ticketkit_asr.decoding.scoring import bootstrap_interval, error_rates, score, summarise

words = st.lists(st.sampled_from(["a", "bb", "c"]), min_size=1, max_size=6).map(" ".join)
pairs = st.lists(st.tuples(words, st.one_of(words, st.just(""))), min_size=1, max_size=5)


def distance(one, other):
    row = list(range(len(other) + 1))
    for i, expected in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, found in enumerate(other, start=1):
            diagonal, row[j] = row[j], min(diagonal + (expected != found), row[j] + 1, row[j - 1] + 1)
    return row[-1]


@given(pairs)
def test_edits_are_the_fewest_and_sum_to_the_rates(pairs):
    references, hypotheses = zip(*pairs, strict=True)
    scored = score([str(i) for i in range(len(pairs))], references, hypotheses)
    for one, (reference, hypothesis) in zip(scored, pairs, strict=True):
        assert one.word_edits == distance(reference.split(), hypothesis.split())
        assert one.character_edits == distance(reference.upper(), hypothesis.upper())
        assert one.words + one.insertions - one.deletions == len(hypothesis.split())
    found = summarise(scored)
    assert {"wer": found.wer, "cer": found.cer} == error_rates(scored)
    assert found.wer_low <= found.wer + 1e-12
    assert found.wer_high >= found.wer - 1e-12


def rates(references, hypotheses):
    return error_rates(score([str(i) for i in range(len(references))], references, hypotheses))


def test_wer_is_the_sum_of_edits_over_the_sum_of_words_not_a_mean_of_rates():
    assert rates(["ONE", "ONE TWO THREE FOUR"], ["TWO", "ONE TWO THREE FOUR"])["wer"] == 1 / 5


def test_cer_counts_characters_with_spaces():
    assert rates(["AB C"], ["AB"])["cer"] == 2 / 4


def test_an_empty_hypothesis_deletes_every_word_and_insertions_can_lift_wer_above_one():
    assert rates(["ONE TWO"], [""])["wer"] == 1.0
    assert rates(["ONE"], ["ONE ONE ONE"])["wer"] == 2.0


def test_case_and_spacing_are_no_errors_but_characters_out_of_the_alphabet_are():
    assert rates(["one  two"], ["ONE TWO"])["wer"] == 0.0
    assert rates(["CAFÉ"], ["CAF"])["cer"] == 1 / 4


def test_kinds_of_edits_are_told_apart():
    (one,) = score(["u"], ["the cat sat"], ["the bat sat down"])
    assert (one.substitutions, one.deletions, one.insertions, one.words) == (1, 0, 1, 3)
    (one,) = score(["u"], ["the cat sat"], ["cat sat"])
    assert (one.substitutions, one.deletions, one.insertions) == (0, 1, 0)


def test_the_interval_is_that_of_the_normal_approximation_for_many_utterances():
    random = np.random.default_rng(5)
    words = np.full(2000, 5)
    edits = random.binomial(5, 0.2, 2000)
    low, high = bootstrap_interval(edits, words)
    deviation = edits.std() / 5 / np.sqrt(2000)
    assert low == pytest.approx(edits.mean() / 5 - 1.96 * deviation, abs=deviation / 8)
    assert high == pytest.approx(edits.mean() / 5 + 1.96 * deviation, abs=deviation / 8)
    assert bootstrap_interval(edits, words) == (low, high)


def test_a_reference_without_words_is_named():
    with pytest.raises(DataError, match="without any: second"):
        score(["first", "second"], ["a", " "], ["a", "b"])
    with pytest.raises(DataError, match="the whole split"):
        score([], [], [])
    with pytest.raises(DataError, match="no utterance"):
        summarise([])
