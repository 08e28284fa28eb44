import json
from hashlib import sha256

import numpy as np
import pytest

from ticketkit import ConfigError
from ticketkit_asr.corpora.corpus import InMemory, SpeechCorpus, Utterance


def corpus(*, text="ONE CAFÉ", amplitude=0.5, skipped=()):
    audio = InMemory(np.full(8_000, amplitude, dtype=np.float32))
    utterances = [Utterance(id="u", audio=audio, text=text, speaker="s")]
    return SpeechCorpus(name="c", sample_rate=8_000, splits={"train": utterances, "dev": []}, skipped=skipped)


def test_a_corpus_describes_itself_in_json_with_what_it_cannot_write_and_what_it_skipped():
    facts = json.loads(json.dumps(corpus(skipped=("bad.wav",)).describe()))
    assert facts["splits"]["train"] == {
        "utterances": 1,
        "words": 2,
        "hours": round(1 / 3600, 4),
        "speakers": 1,
        "out_of_alphabet": {"É": 1},
    }
    assert facts["skipped"] == {"count": 1, "files": ["bad.wav"]}


def test_the_digest_changes_with_texts_and_samples_alone():
    assert corpus().digest == corpus().digest
    assert len({corpus().digest, corpus(text="TWO").digest, corpus(amplitude=0.25).digest}) == 3


def test_an_unknown_split_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="no split 'tset'; it has train, dev"):
        corpus().split("tset")


def test_the_digest_of_sound_in_memory_counts_every_sample():
    head = b"train\0u\0s\0ONE CAF\xc3\x89\x008000\0"
    assert corpus().digest == sha256(head + 8_000 * b"\0\0\0?").hexdigest()


def test_what_was_dropped_is_described_by_counts_and_facts_go_along():
    described = SpeechCorpus("c", 8_000, {"train": []}, dropped={"train": {"too long": ["a", "b"]}}, facts={"of": "x"})
    facts = json.loads(json.dumps(described.describe()))
    assert facts["dropped"] == {"train": {"too long": 2}}
    assert facts["of"] == "x"
