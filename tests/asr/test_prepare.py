import numpy as np
import pytest
import torch

from ticketkit import DataError
from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm
from ticketkit_asr.corpora.corpus import InMemory, Utterance
from ticketkit_asr.prepare import collate, needed_frames, prepare


@pytest.fixture
def bundle(tiny):
    return build_cnn_lstm(options=tiny)


def utterance(text, seconds=1.0, rate=8_000, name="u"):
    wave = np.random.default_rng(0).standard_normal(round(seconds * rate)).astype(np.float32)
    return Utterance(id=name, audio=InMemory(wave), text=text, speaker="s")


def test_an_example_holds_the_bundles_features_and_labels(bundle):
    said = utterance("a b")
    (example,) = prepare([said], bundle, sample_rate=8_000)
    assert torch.equal(example.features, bundle.features(torch.from_numpy(said.audio.read())))
    assert example.target.tolist() == [2, 28, 3]
    assert example.text == "a b"


def test_a_corpus_at_another_rate_is_resampled_to_the_bundles(bundle):
    (example,) = prepare([utterance("A", rate=22_050)], bundle, sample_rate=22_050)
    assert len(example.features) == bundle.extractor.frames(8_000)


def test_what_the_alphabet_lacks_is_reported_and_stays_in_the_text(bundle, caplog):
    (example,) = prepare([utterance("É7A")], bundle, sample_rate=8_000)
    assert "{'7': 1, 'É': 1}" in caplog.text
    assert example.target.tolist() == [2]
    assert example.text == "É7A"


def test_texts_too_long_for_their_audio_are_refused_by_name(bundle):
    said = [utterance("A", name="fits"), utterance("A" * 30, seconds=0.2, name="too-short")]
    with pytest.raises(DataError, match=r"1 of 2 utterances.*too-short \(11 frames for 59\)"):
        prepare(said, bundle, sample_rate=8_000)


def test_equal_neighbours_need_a_blank_between_them():
    assert needed_frames(torch.tensor([1, 1, 2, 1])) == 5
    assert needed_frames(torch.tensor([], dtype=torch.int64)) == 0


def test_collating_pads_with_zeros_and_keeps_the_lengths():
    features, lengths = collate([torch.ones(2, 3), torch.ones(4, 3)])
    assert features.shape == (2, 4, 3)
    assert lengths.tolist() == [2, 4]
    assert features.sum(dim=(1, 2)).tolist() == [6, 12]
