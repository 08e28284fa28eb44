import hashlib
import subprocess
import sys

import pytest
from pydantic import ValidationError

from ticketkit import DataError
from ticketkit_asr.corpora import espeak
from ticketkit_asr.corpora.corpus import SPLITS
from ticketkit_asr.corpora.digits import WORDS
from ticketkit_asr.corpora.spoken_digits import VARIANTS, SpokenDigitsOptions, open_spoken_digits, prompts, voices

SMALL = {"train_utterances": 8, "dev_utterances": 4, "test_utterances": 4}


def small(tmp_path, **more) -> SpokenDigitsOptions:
    return SpokenDigitsOptions(cache_dir=tmp_path, **SMALL, **more)


def test_every_voice_belongs_to_one_split():
    options = SpokenDigitsOptions()
    by_split = [voices(split, options) for split in SPLITS]
    assert sorted(voice for split in by_split for voice in split) == sorted(VARIANTS)
    assert [len(split) for split in by_split] == [len(VARIANTS) - 25, 10, 15]


def test_all_voices_of_a_split_are_heard():
    options = SpokenDigitsOptions()
    for split in SPLITS:
        assert {prompt.voice.partition("+")[2] for prompt in prompts(split, options)} == set(voices(split, options))


def test_texts_are_what_was_said(tmp_path):
    corpus = open_spoken_digits(options=small(tmp_path))
    for split in SPLITS:
        assert [u.text.lower() for u in corpus.split(split)] == [p.text for p in prompts(split, small(tmp_path))]
        assert all(set(u.text.split()) <= set(WORDS) for u in corpus.split(split))
        assert all(0.3 < u.audio.samples / corpus.sample_rate < 6 for u in corpus.split(split))


def test_two_fresh_processes_speak_the_same_bits(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from ticketkit_asr.corpora.spoken_digits import *\n"
        f"options = SpokenDigitsOptions(cache_dir=Path(sys.argv[1]), **{SMALL})\n"
        "print(open_spoken_digits(options=options).digest)"
    )
    digests = [
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, check=True)
        for name in ("a", "b")
    ]
    assert digests[0].stdout == digests[1].stdout != ""
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("*/*")]
    assert len(files) == 2
    assert len(set(files)) == 1


def test_what_was_spoken_once_is_read_from_the_cache(tmp_path, monkeypatch):
    first = open_spoken_digits(options=small(tmp_path))
    monkeypatch.setattr("ticketkit_asr.corpora.spoken_digits.synthesise", None)
    assert open_spoken_digits(options=small(tmp_path)).digest == first.digest


def test_other_options_are_kept_in_another_file(tmp_path):
    open_spoken_digits(options=small(tmp_path))
    open_spoken_digits(options=small(tmp_path, seed=1))
    assert len(list(tmp_path.iterdir())) == 2


def test_silence_is_no_speech():
    with pytest.raises(DataError, match=r"said nothing for 1 of 2 prompts.*text=''"):
        espeak.synthesise([espeak.Prompt("en-us", "one", 150, 50), espeak.Prompt("en-us", "", 150, 50)])


def test_an_unknown_voice_is_named():
    with pytest.raises(DataError, match="no voice 'xx-none'"):
        espeak.synthesise([espeak.Prompt("xx-none", "one", 150, 50)])


def test_without_the_wheel_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(DataError, match=r"pip install 'ticketkit\[synth\]'"):
        open_spoken_digits(options=small(tmp_path))


@pytest.mark.parametrize("wrong", [{"speed": (200, 100)}, {"pitch": (0, 100)}, {"dev_voices": 60}])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        SpokenDigitsOptions(**wrong)
