import shutil

import numpy as np
import pytest
from pydantic import ValidationError

from ticketkit import ConfigError, DataError
from ticketkit_asr.corpora.digits import WORDS
from ticketkit_asr.corpora.fsdd import SPLITS, FsddOptions, choose_recordings, find_recordings, open_fsdd

SMALL = {"train_utterances": 12, "dev_utterances": 6, "test_utterances": 6}


def test_every_utterance_is_its_words_takes_joined_by_silence(fsdd_root):
    corpus = open_fsdd(options=FsddOptions(root=fsdd_root, gap_seconds=(0.05, 0.1), **SMALL))
    for split in SPLITS:
        for utterance in corpus.split(split):
            words = utterance.text.split()
            assert 2 <= len(words) <= 5
            assert set(words) <= set(WORDS)
            speech, gaps = 800 * len(words), len(words) + 1
            assert speech + 400 * gaps <= utterance.audio.samples <= speech + 800 * gaps
            wave = utterance.audio.read()
            assert wave.dtype == np.float32
            assert not wave[:400].any()
            assert not wave[-400:].any()


def test_composition_depends_on_its_own_seed_alone(fsdd_root):
    def digest(seed):
        return open_fsdd(options=FsddOptions(root=fsdd_root, seed=seed, **SMALL)).digest

    assert digest(0) == digest(0)
    assert digest(0) != digest(1)


def test_more_utterances_go_on_where_fewer_stop(fsdd_root):
    few = open_fsdd(options=FsddOptions(root=fsdd_root, **SMALL)).split("train")
    many = open_fsdd(options=FsddOptions(root=fsdd_root, **{**SMALL, "train_utterances": 20})).split("train")
    assert [u.text for u in many][: len(few)] == [u.text for u in few]


def test_splits_share_no_take(fsdd_root):
    recordings = find_recordings(fsdd_root / "fsdd" / "recordings")
    paths = [{r.path for r in choose_recordings(recordings, split, FsddOptions())} for split in SPLITS]
    assert [len(of_split) for of_split in paths] == [40, 40, 40]
    assert len(set.union(*paths)) == 120


def test_held_out_speakers_are_in_their_split_alone(fsdd_root):
    options = FsddOptions(root=fsdd_root, test_speakers=("bob",), **SMALL)
    corpus = open_fsdd(options=options)
    speakers = {split: {u.speaker for u in corpus.split(split)} for split in SPLITS}
    assert speakers == {"train": {"ann"}, "dev": {"ann"}, "test": {"bob"}}


def test_only_chosen_speakers_are_used(fsdd_root):
    corpus = open_fsdd(options=FsddOptions(root=fsdd_root, speakers=("bob",), **SMALL))
    assert {u.speaker for split in SPLITS for u in corpus.split(split)} == {"bob"}


def test_a_speaker_uses_all_takes_before_any_comes_again(fsdd_root):
    options = FsddOptions(root=fsdd_root, digits=(5, 5), test_speakers=("bob",), **{**SMALL, "test_utterances": 4})
    words = [word for utterance in open_fsdd(options=options).split("test") for word in utterance.text.split()]
    assert sorted(words) == sorted(2 * WORDS)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"test_speakers": ("carl",)}, "no speaker carl; it has ann, bob"),
        ({"speakers": ("ann", "dora")}, "no speaker dora; it has ann, bob"),
        ({"test_speakers": ("ann",), "dev_speakers": ("bob",)}, "nothing for train.*all are held out"),
    ],
)
def test_impossible_speakers_are_refused(fsdd_root, wrong, said):
    with pytest.raises((ConfigError, DataError), match=said):
        open_fsdd(options=FsddOptions(root=fsdd_root, **wrong))


@pytest.mark.parametrize(
    "wrong",
    [{"digits": (5, 2)}, {"gap_seconds": (0.3, 0.1)}, {"dev_speakers": ("a",), "test_speakers": ("a",)}, {"rot": "x"}],
)
def test_contradictory_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        FsddOptions(**wrong)


def test_a_corrupt_recording_fails_by_name_or_is_skipped_and_counted(fsdd_root):
    bad = fsdd_root / "fsdd" / "recordings" / "3_ann_10.wav"
    bad.write_bytes(bad.read_bytes()[:20])
    with pytest.raises(DataError, match=r"1 of 120 sound files.*3_ann_10\.wav"):
        open_fsdd(options=FsddOptions(root=fsdd_root, **SMALL))
    corpus = open_fsdd(options=FsddOptions(root=fsdd_root, on_bad_audio="skip", **SMALL))
    assert corpus.describe()["skipped"] == {"count": 1, "files": [str(bad)]}


def test_a_split_without_any_usable_recording_fails(fsdd_root):
    for path in (fsdd_root / "fsdd" / "recordings").glob("*_[56].wav"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 40 recordings for dev can be used"):
        open_fsdd(options=FsddOptions(root=fsdd_root, on_bad_audio="skip", **SMALL))


def test_a_missing_folder_is_named_with_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"fsdd/recordings, which is missing; git clone .*TICKETKIT_DATA"):
        open_fsdd(options=FsddOptions(root=tmp_path))
    monkeypatch.setenv("TICKETKIT_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="elsewhere"):
        open_fsdd(options=FsddOptions())


def test_the_environment_says_where_the_data_is(fsdd_root, monkeypatch):
    monkeypatch.setenv("TICKETKIT_DATA", str(fsdd_root))
    assert len(open_fsdd(options=FsddOptions(**SMALL)).split("train")) == 12


def test_an_empty_folder_and_odd_names_are_told_apart(fsdd_root):
    folder = fsdd_root / "fsdd" / "recordings"
    shutil.copy(folder / "3_ann_10.wav", folder / "three.wav")
    with pytest.raises(DataError, match=r"found three\.wav"):
        open_fsdd(options=FsddOptions(root=fsdd_root))
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"found no \.wav file"):
        open_fsdd(options=FsddOptions(root=fsdd_root))


def test_real_recordings_give_six_speakers_and_the_official_test_takes(real_data):
    corpus = open_fsdd(options=FsddOptions(root=real_data))
    facts = corpus.describe()
    assert [facts["splits"][split]["speakers"] for split in SPLITS] == [6, 6, 6]
    assert [facts["splits"][split]["utterances"] for split in SPLITS] == [600, 200, 300]
    recordings = find_recordings(real_data / "fsdd" / "recordings")
    assert len(recordings) == 3000
    assert {r.take for r in choose_recordings(recordings, "test", FsddOptions())} == set(range(5))


@pytest.mark.parametrize("longest", [float("inf"), float("nan"), 61.0, -1.0])
def test_silences_that_no_memory_holds_are_refused(longest):
    with pytest.raises(ValidationError, match="gap_seconds"):
        FsddOptions(gap_seconds=(0.0, longest))
