import pytest

from ticketkit_asr.text.alphabet import ENGLISH, normalise


def test_the_paper_alphabet_has_29_labels_with_the_blank_first():
    assert (ENGLISH.size, ENGLISH.blank) == (29, 0)
    assert ENGLISH.encode("'") == [1]
    assert ENGLISH.encode("Z") == [27]
    assert ENGLISH.decode([28]) == " "


@pytest.mark.parametrize("text", ["DON'T STOP", "A", "", "ZERO ONE TWO"])
def test_decoding_undoes_encoding(text):
    assert ENGLISH.decode(ENGLISH.encode(text)) == text


def test_normalising_is_idempotent_and_keeps_what_the_alphabet_lacks():
    assert normalise(" Na\tïve  7 ") == "NA ÏVE 7"
    assert normalise(normalise(" a  b")) == "A B"


def test_every_character_is_either_encoded_or_counted_as_unknown():
    texts = ["Café №7", "at 7"]
    encoded = sum(len(ENGLISH.encode(text)) for text in texts)
    unknown = ENGLISH.unknown(texts)
    assert unknown == {"7": 2, "É": 1, "№": 1}
    assert encoded + sum(unknown.values()) == sum(len(normalise(text)) for text in texts)
