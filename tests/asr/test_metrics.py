import pytest

from ticketkit import DataError
from ticketkit_asr.metrics import error_rates


def test_wer_is_the_sum_of_edits_over_the_sum_of_words_not_a_mean_of_rates():
    references = ["ONE", "ONE TWO THREE FOUR"]
    hypotheses = ["TWO", "ONE TWO THREE FOUR"]
    assert error_rates(references, hypotheses)["wer"] == pytest.approx(1 / 5)


def test_cer_counts_characters_with_spaces():
    assert error_rates(["AB C"], ["AB"])["cer"] == pytest.approx(2 / 4)


def test_an_empty_hypothesis_deletes_every_word():
    assert error_rates(["ONE TWO"], [""])["wer"] == 1.0


def test_insertions_can_lift_wer_above_one():
    assert error_rates(["ONE"], ["ONE ONE ONE"])["wer"] == 2.0


def test_case_and_spacing_are_no_errors_but_characters_out_of_the_alphabet_are():
    assert error_rates(["one  two"], ["ONE TWO"])["wer"] == 0.0
    assert error_rates(["CAFÉ"], ["CAF"])["cer"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("references", [[], ["ONE", " "]])
def test_references_without_words_are_refused(references):
    with pytest.raises(DataError, match="need references with words"):
        error_rates(references, ["ONE"] * len(references))
