"""Evaluation of a split."""

import numpy as np
import pytest

from ticketkit import DataError
from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm
from ticketkit_asr.corpora.corpus import InMemory, SpeechCorpus, Utterance
from ticketkit_asr.decoding.evaluation import evaluate_split


def test_an_utterance_too_short_to_be_heard_is_named(tiny):
    utterances = [
        Utterance("long", InMemory(np.ones(8_000, np.float32)), "A", "ann"),
        Utterance("click", InMemory(np.ones(1, np.float32)), "A", "ann"),
    ]
    corpus = SpeechCorpus(name="c", sample_rate=8_000, splits={"test": utterances})
    with pytest.raises(DataError, match="utterance 'click' cannot be evaluated: 1 samples are too few"):
        evaluate_split(build_cnn_lstm(options=tiny), corpus, "test")
