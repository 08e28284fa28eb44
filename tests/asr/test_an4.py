import numpy as np
import pytest
import soundfile

from ticketkit import DataError
from ticketkit_asr.corpora.an4 import An4Options, open_an4

RATE = 16_000


def sound(path, kind="WAV"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(RATE, 0.1), RATE, format=kind)


@pytest.fixture
def root(tmp_path):
    """An AN4 as CMU packs it: SPHERE files in folders of speakers, lists with marks of start and end."""
    folder = tmp_path / "an4"
    train = [f"an{number}-{speaker}-b" for speaker in ("fash", "mblb", "mdcs") for number in (1, 2)]
    for name in train:
        sound(folder / "wav" / "an4_clstk" / name.split("-")[1] / f"{name}.sph", "NIST")
    sound(folder / "wav" / "an4test_clstk" / "fcaw" / "cen1-fcaw-b.sph", "NIST")
    (folder / "etc").mkdir()
    (folder / "etc" / "an4_train.transcription").write_text(
        "".join(f"<s> G L E N N ++NOISE++ <sil> TWO </s> ({name})\n" for name in train)
    )
    (folder / "etc" / "an4_test.transcription").write_text("YES (cen1-fcaw-b)\n")
    return tmp_path


def test_lists_and_folders_of_speakers_make_splits_without_a_shared_speaker(root):
    corpus = open_an4(options=An4Options(root=root))
    assert [len(corpus.split(split)) for split in ("train", "dev", "test")] == [4, 2, 1]
    speakers = [{u.speaker for u in corpus.split(split)} for split in ("train", "dev", "test")]
    assert set.union(*speakers) == {"fash", "mblb", "mdcs", "fcaw"}
    assert sum(map(len, speakers)) == 4
    first = corpus.split("train")[0]
    assert first.text == "G L E N N TWO"
    assert len(first.audio.read()) == RATE


def test_dev_may_be_left_empty_and_the_seed_chooses_its_speakers(root):
    assert open_an4(options=An4Options(root=root, dev_share=0)).split("dev") == []
    chosen = {open_an4(options=An4Options(root=root, seed=seed)).split("dev")[0].speaker for seed in range(20)}
    assert chosen == {"fash", "mblb", "mdcs"}


def test_odd_lines_missing_sound_and_sound_without_transcript_are_named(root):
    folder = root / "an4"
    transcripts = folder / "etc" / "an4_test.transcription"
    sound(folder / "wav" / "an4test_clstk" / "fcaw" / "an9-fcaw-b.wav")
    assert open_an4(options=An4Options(root=root)).dropped["test"] == {"no transcript": ["an9-fcaw-b"]}
    transcripts.write_text("YES (cen1-fcaw-b)\nNO (an3-gone-b)\n")
    with pytest.raises(DataError, match=r"an3-gone-b\.wav cannot be read as audio: there is no such file"):
        open_an4(options=An4Options(root=root))
    transcripts.write_text("YES (cen1-fcaw-b)\n\nNO\n(a) b\n")
    with pytest.raises(DataError, match=r"an4_test\.transcription should hold .*odd are lines 3, 4"):
        open_an4(options=An4Options(root=root))
    transcripts.unlink()
    with pytest.raises(DataError, match="no transcripts of test"):
        open_an4(options=An4Options(root=root))


def test_a_missing_corpus_is_named_with_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"lacks wav.*an4_sphere\.tar\.gz"):
        open_an4(options=An4Options(root=tmp_path))


def test_the_real_recordings_have_their_lists(real_data):
    if not (real_data / "an4").is_dir():
        pytest.skip(f"no {real_data}/an4")
    corpus = open_an4(options=An4Options(root=real_data, dev_share=0))
    assert [len(corpus.split(split)) for split in ("train", "dev", "test")] == [41, 0, 10]
    assert corpus.dropped == {"train": {}, "dev": {}, "test": {}}
    texts = {u.id: u.text for u in corpus.split("train")}
    assert texts["cen7-fash-b"] == "TWO SIX EIGHT FOUR FOUR ONE EIGHT"
    assert {u.id: u.audio.samples for u in corpus.split("test")}["an392-mjwl-b"] == 12_800
    assert all(len(u.audio.read()) == u.audio.samples for u in corpus.split("test"))
