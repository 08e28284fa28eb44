"""An n-gram model written here decides between words that sound alike."""

import math

import pytest
import torch

from ticketkit import ConfigError, DataError
from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm
from ticketkit_asr.backbones.rnnt import build_rnnt
from ticketkit_asr.backbones.rnnt_options import RnntOptions
from ticketkit_asr.decoding.language_model import LmDecoder, LmWeights, tokens, tune, words_of
from ticketkit_asr.text.alphabet import ENGLISH

pytest.importorskip("flashlight.lib.text", reason="decoding with a language model needs: pip install 'ticketkit[lm]'")

ARPA = """\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-1.0\t<unk>
0\t<s>\t-0.3
-1.0\t</s>
-1.0\tBEE\t-0.3
-1.0\tBEA\t-0.3
-1.0\tA\t-0.3

\\2-grams:
-0.1\tA BEE
-3.0\tA BEA
-0.3\t<s> A
-0.3\tBEE </s>

\\end\\
"""


@pytest.fixture
def arpa(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


class Says(torch.nn.Module):
    """Writes certain labels, one a frame; in the last frame A is a little likelier than E."""

    def __init__(self, text, *, doubt):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        scores = torch.full((2 * len(text), ENGLISH.size), -12.0)
        for place, label in enumerate(ENGLISH.encode(text)):
            scores[2 * place, label] = 0.0
            scores[2 * place + 1, 0] = 0.0
        scores[-2, ENGLISH.encode("E")[0]] = -doubt
        self.scores = scores

    def forward(self, features, lengths):
        batch = len(features)
        return self.scores.expand(batch, -1, -1), torch.full((batch,), len(self.scores))


@pytest.fixture
def doubtful(tiny):
    from dataclasses import replace

    return replace(build_cnn_lstm(options=tiny), module=Says("A BEA", doubt=1.0))


def read(decoder, bundle):
    (written,) = decoder(bundle, torch.zeros(1, 20, 12), torch.tensor([20]))
    return bundle.text(written), written


def test_the_model_decides_between_words_and_its_weight_says_how_much(arpa, doubtful):
    assert read(LmDecoder(arpa, LmWeights(lm=0.0)), doubtful)[0] == "A BEA"
    assert read(LmDecoder(arpa, LmWeights(lm=2.0)), doubtful)[0] == "A BEE"


def test_labels_stand_at_the_frames_where_they_were_heard(arpa, doubtful):
    _, written = read(LmDecoder(arpa, LmWeights(lm=0.0)), doubtful)
    assert [emission.label for emission in written] == ENGLISH.encode("A BEA")
    assert all(abs(emission.frame - 2 * place) <= 1 for place, emission in enumerate(written))


def test_the_words_of_a_model_are_its_unigrams_or_a_list(arpa, tmp_path):
    assert list(words_of(arpa)) == ["BEE", "BEA", "A"]
    listed = tmp_path / "words.txt"
    listed.write_text("one\n\ntwo\n<unk>\n")
    assert list(words_of(listed)) == ["ONE", "TWO"]
    listed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="binary model give its words"):
        list(words_of(listed))
    listed.write_text("<s>\n")
    with pytest.raises(DataError, match="holds no words"):
        list(words_of(listed))


def test_every_label_has_a_name_of_its_own():
    assert len(set(tokens(ENGLISH))) == ENGLISH.size


def test_a_file_that_is_no_model_and_words_that_cannot_be_written_are_refused(tmp_path, doubtful, arpa):
    wrong = tmp_path / "wrong.arpa"
    wrong.write_text("\\1-grams:\n-1 A\n")
    with pytest.raises(DataError, match=r"wrong\.arpa is no n-gram model that KenLM can read: first [^\n]*\Z"):
        read(LmDecoder(wrong), doubtful)
    listed = tmp_path / "words.txt"
    listed.write_text("日本\n")
    with pytest.raises(DataError, match="none of the 1 words"):
        read(LmDecoder(arpa, words=listed), doubtful)


def test_a_transducer_is_refused(arpa):
    bundle = build_rnnt(options=RnntOptions())
    with pytest.raises(ConfigError, match="joins CTC over characters alone"):
        LmDecoder(arpa)(bundle, torch.zeros(1, 20, bundle.extractor.bins), torch.tensor([20]))


def test_tuning_reads_dev_alone_and_puts_the_best_first(arpa, doubtful, two_tones, monkeypatch):
    read_splits = []
    corpus = type(two_tones)("said", 8_000, dict(two_tones.splits))
    said = [type(u)(u.id, u.audio, "A BEE", u.speaker) for u in corpus.splits["dev"]]
    corpus = type(two_tones)("said", 8_000, {**corpus.splits, "dev": said})
    split = type(corpus).split
    monkeypatch.setattr(type(corpus), "split", lambda self, name: read_splits.append(name) or split(self, name))
    found = tune(LmDecoder(arpa), doubtful, corpus, lm=(0.0, 2.0, 3.0), word=(0.0,))
    assert [(weights.lm, wer) for weights, wer in found] == [(2.0, 0.0), (3.0, 0.0), (0.0, 0.5)]
    assert set(read_splits) == {"dev"}
    assert math.isfinite(found[0][1])
