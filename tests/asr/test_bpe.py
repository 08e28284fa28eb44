import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketkit import DataError
from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm
from ticketkit_asr.backbones.options import LabelOptions
from ticketkit_asr.text.alphabet import ENGLISH, Characters, normalise
from ticketkit_asr.text.bpe import learn_pieces, load_pieces, save_pieces

WORDS = ["ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "DON'T"]
TEXTS = [" ".join(random.Random(i).choices(WORDS, k=4)) for i in range(200)]
PIECES = learn_pieces(TEXTS, size=60)
letters = st.text(alphabet="ZEROTWHFIUSXVNG' ", max_size=30)


@given(letters)
def test_every_text_of_known_characters_comes_back(text):
    labels = PIECES.encode(text)
    assert PIECES.decode(labels) == normalise(text)
    assert all(1 < label < PIECES.size for label in labels)
    assert PIECES.unknown([text]) == {}


def test_frequent_words_become_single_pieces():
    assert PIECES.size == 61
    assert len(PIECES.encode("nine one")) < len("NINE ONE") / 2


def test_what_no_piece_writes_is_counted_and_left_out():
    assert PIECES.unknown(["nine? é", "?"]) == {"?": 2, "É": 1}
    assert PIECES.decode(PIECES.encode("nine? one")) == "NINE ONE"


def test_the_order_of_the_texts_does_not_matter():
    assert learn_pieces(reversed(TEXTS), size=60) == PIECES


def test_a_saved_model_is_loaded_whole_and_another_file_is_refused(tmp_path):
    path = tmp_path / "pieces.model"
    save_pieces(PIECES, path)
    assert load_pieces(path) == PIECES
    path.write_bytes(PIECES.model[: len(PIECES.model) // 2])
    for wrong in (path, tmp_path / "nothing"):
        with pytest.raises(DataError, match=r"is no sentencepiece model .*ticketkit asr bpe CORPUS --to"):
            load_pieces(wrong)


def test_too_few_texts_for_so_many_pieces_are_named():
    with pytest.raises(DataError, match="4000 pieces cannot be learnt from 2 texts of 8 words"):
        learn_pieces(TEXTS[:2], size=4000)


def test_a_recogniser_writes_the_labels_its_options_say(tiny, tmp_path):
    save_pieces(PIECES, tmp_path / "pieces.model")
    for labels, expected in [
        ({}, ENGLISH),
        ({"characters": "AB"}, Characters("AB")),
        ({"bpe": tmp_path / "pieces.model"}, PIECES),
    ]:
        bundle = build_cnn_lstm(options=tiny.model_copy(update={"labels": LabelOptions(**labels)}))
        assert bundle.alphabet == expected
        assert bundle.module.output.out_features == expected.size
    with pytest.raises(ValueError, match="two ways"):
        LabelOptions(characters="A", bpe=tmp_path)
    with pytest.raises(ValueError, match="repeats"):
        LabelOptions(characters="AA")
