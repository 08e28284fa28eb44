import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from ticketkit import DataError
from ticketkit_asr.corpora.librispeech import LibriSpeechOptions, open_librispeech

RATE = 16_000


def chapter(root, subset, speaker, number, transcripts, *, seconds=2.0, audio=None):
    """Write a chapter: FLAC files of the transcripts (or of `audio`) and the list of transcripts."""
    folder = root / subset / str(speaker) / str(number)
    folder.mkdir(parents=True)
    names = [f"{speaker}-{number}-{index:04d}" for index in range(len(transcripts))]
    for name in names if audio is None else audio:
        soundfile.write(folder / f"{name}.flac", np.full(round(seconds * RATE), 0.1), RATE)
    lines = [f"{name} {text}" for name, text in zip(names, transcripts, strict=True)]
    (folder / f"{speaker}-{number}.trans.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def root(tmp_path):
    """A LibriSpeech of four subsets."""
    root = tmp_path / "data" / "LibriSpeech"
    chapter(root, "train-clean-100", 19, 198, ["ONE TWO", "THREE"])
    chapter(root, "train-clean-100", 2, 5, ["FOUR"], seconds=16)
    chapter(root, "train-other-500", 7, 1, ["IT'S FIVE"], seconds=0.5)
    chapter(root, "dev-clean", 3, 1, ["SIX"], seconds=16)
    chapter(root, "test-clean", 4, 1, ["SEVEN"])
    return tmp_path / "data"


def options(root, **changes):
    splits = {"train": ("train-clean-100", "train-other-500"), "dev": ("dev-clean",), "test": ("test-clean",)}
    return LibriSpeechOptions(root=root, **{**splits, **changes})


def test_subsets_make_splits_and_the_papers_limits_hold_in_training_alone(root):
    corpus = open_librispeech(options=options(root))
    ids = {split: [u.id for u in utterances] for split, utterances in corpus.splits.items()}
    assert ids == {"train": ["19-198-0000", "19-198-0001"], "dev": ["3-1-0000"], "test": ["4-1-0000"]}
    assert corpus.dropped["train"] == {"under 1 s": ["7-1-0000"], "over 15 s": ["2-5-0000"]}
    first = corpus.split("train")[0]
    assert (first.text, first.speaker, first.lang, first.audio.samples) == ("ONE TWO", "19", "en", 2 * RATE)
    assert corpus.describe()["subsets"]["dev"] == ["dev-clean"]


@pytest.mark.parametrize("place", [".", "LibriSpeech"])
def test_the_root_is_the_corpus_or_the_folder_above(root, place):
    assert len(open_librispeech(options=options(root / place)).split("train")) == 2


def test_the_defaults_are_the_official_splits():
    official = LibriSpeechOptions()
    assert official.train == ("train-clean-100", "train-clean-360", "train-other-500")
    assert official.dev == ("dev-clean", "dev-other")
    assert official.test == ("test-clean", "test-other")
    assert (official.min_seconds, official.max_seconds, official.sample_rate) == (1, 15, 16_000)


def test_sound_without_transcript_and_transcripts_without_sound_are_told_apart(root):
    folder = chapter(
        root / "LibriSpeech",
        "train-clean-360",
        8,
        1,
        ["A", "B", " "],
        audio=["8-1-0000", "8-1-0002", "8-1-0007"],
    )
    wanted = options(root, train=("train-clean-360",))
    with pytest.raises(DataError, match=r"1 sound files of corpus 'librispeech'.*8-1-0001\.flac.*no such file"):
        open_librispeech(options=wanted)
    corpus = open_librispeech(options=wanted.model_copy(update={"on_bad_audio": "skip"}))
    assert corpus.skipped == (str(folder / "8-1-0001.flac"),)
    assert corpus.dropped["train"] == {
        "no transcript": ["8-1-0007"],
        "empty text": ["8-1-0002"],
        "missing file": ["8-1-0001"],
    }


def test_missing_and_empty_subsets_are_named_with_how_to_get_them(root, monkeypatch):
    with pytest.raises(DataError, match=r"LibriSpeech lacks train-clean-360, dev-other, test-other.*openslr"):
        open_librispeech(options=LibriSpeechOptions(root=root))
    (root / "LibriSpeech" / "dev-other").mkdir()
    with pytest.raises(DataError, match=r"no folder speaker/chapter in .*dev-other"):
        open_librispeech(options=options(root, dev=("dev-other",)))
    monkeypatch.setenv("TICKETKIT_DATA", str(root))
    assert len(open_librispeech(options=options(None)).split("test")) == 1


def test_a_transcript_that_is_not_utf_8_is_named_with_its_line(root):
    (root / "LibriSpeech" / "test-clean" / "4" / "1" / "4-1.trans.txt").write_bytes(b"4-1-0000 A\n4-1-0001 \xff\n")
    with pytest.raises(DataError, match=r"4-1\.trans\.txt, line 2 is not UTF-8"):
        open_librispeech(options=options(root))


@pytest.mark.parametrize("wrong", [{"train": ()}, {"dev": ("a", "a")}, {"train": ("a",), "test": ("a",)}])
def test_subsets_are_named_once_and_something_trains(wrong):
    with pytest.raises(ValidationError):
        LibriSpeechOptions(**wrong)


def test_the_real_subset_has_its_transcripts_speakers_and_durations(real_data):
    if not (real_data / "librispeech").is_dir():
        pytest.skip(f"no {real_data}/librispeech")
    corpus = open_librispeech(
        options=options(real_data, train=("train-clean-5",), dev=("test-clean",), test=("test-other",))
    )
    facts = corpus.describe()["splits"]
    assert [facts[split]["utterances"] for split in ("train", "dev", "test")] == [91, 4, 50]
    assert [facts[split]["speakers"] for split in ("train", "dev", "test")] == [26, 1, 10]
    assert [facts[split]["words"] for split in ("train", "dev", "test")] == [1117, 58, 498]
    assert all(not of_split["out_of_alphabet"] for of_split in facts.values())
    assert [sum(u.audio.samples for u in corpus.split(split)) for split in ("train", "dev", "test")] == [
        6_592_318,
        339_360,
        3_415_441,
    ]
    first = corpus.split("dev")[0]
    assert first.text.startswith("HE HOPED THERE WOULD BE STEW FOR DINNER")
    assert (first.audio.read()[:5] * 32768).tolist() == [11, 10, 12, 16, 18]
