import json

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from ticketkit import ConfigError, DataError
from ticketkit_asr.corpora.manifest import Line, write_manifest
from ticketkit_asr.corpora.manifest_corpus import ManifestOptions, open_manifest

RATE = 16_000


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "wav").mkdir()
    soundfile.write(tmp_path / "wav" / "a.wav", np.arange(2 * RATE) / (4 * RATE), RATE)
    return tmp_path


def test_each_split_is_a_manifest_with_paths_relative_to_it_or_absolute(folder, monkeypatch):
    (folder / "lists").mkdir()
    write_manifest(folder / "lists" / "train.jsonl", [Line("a", "../wav/a.wav", " As  written, 5 ", start=1)])
    write_manifest(folder / "dev.jsonl", [Line("b", str(folder / "wav" / "a.wav"), "x", duration=0.5)])
    monkeypatch.chdir(folder)
    corpus = open_manifest(options=ManifestOptions(train="lists/train.jsonl", dev="dev.jsonl"))
    (train,), (dev,) = corpus.split("train"), corpus.split("dev")
    assert train.text == "As written, 5"
    monkeypatch.chdir("/")
    assert np.abs(train.audio.read() - np.arange(RATE, 2 * RATE) / (4 * RATE)).max() < 1e-4
    assert len(dev.audio.read()) == RATE / 2
    with pytest.raises(ConfigError, match="no split 'test'; it has train, dev"):
        corpus.split("test")


def test_nemo_manifests_train_as_they_are(folder):
    line = {"audio_filepath": "wav/a.wav", "offset": 0.5, "duration": 1.0, "text": "hello", "speaker": "ann"}
    (folder / "nemo.json").write_text(json.dumps(line))
    (utterance,) = open_manifest(options=ManifestOptions(train=folder / "nemo.json")).split("train")
    assert (utterance.id, utterance.text, utterance.speaker) == ("wav/a.wav@0.5", "hello", "ann")
    assert len(utterance.audio.read()) == RATE


def test_bad_lines_and_missing_files_stop_it(folder):
    (folder / "bad.jsonl").write_text('{"id": "a"}\n{}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl has 2 bad lines"):
        open_manifest(options=ManifestOptions(train=folder / "bad.jsonl"))
    write_manifest(folder / "gone.jsonl", [Line("a", "gone.wav", "x", duration=1), Line("b", "no.wav", "x")])
    with pytest.raises(DataError, match=r"2 sound files of corpus 'manifest'.*gone\.wav.*no\.wav"):
        open_manifest(options=ManifestOptions(train=folder / "gone.jsonl"))


def test_a_manifest_to_train_on_is_needed():
    with pytest.raises(ValidationError, match="train"):
        ManifestOptions()
