import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from ticketkit import DataError
from ticketkit_asr.corpora.tedlium import TedLiumOptions, open_tedlium, spoken

RATE = 16_000


def talk(folder, name, segments, *, wave=None, sound=True):
    """Write a talk: an STM file of (speaker, start, end, text), and a SPHERE file of 10 s (or `wave`)."""
    for kind in ("stm", "sph"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    if sound:
        ramp = np.arange(10 * RATE) / (20 * RATE)  # a sample tells where it is
        soundfile.write(folder / "sph" / f"{name}.sph", ramp if wave is None else wave, RATE, format="NIST")
    if segments is not None:
        lines = [f"{name} 1 {who} {start} {end} <o,f0,male> {text}\n" for who, start, end, text in segments]
        (folder / "stm" / f"{name}.stm").write_text("".join(lines))


@pytest.fixture
def root(tmp_path):
    """A TED-LIUM of release 1 (or 2)."""
    base = tmp_path / "TEDLIUM_release1"
    talk(
        base / "train",
        "Ann_2010",
        [
            ("Ann_2010", 0.5, 2.75, "it 's a(2) {BREATH} talk (Ann_2010-0.5-2.75-F0_F-S1)"),
            ("inter_segment_gap", 2.75, 4, "ignore_time_segment_in_scoring"),
            ("Ann_2010", 4, 6, "<unk> said [NOISE] so <sil>"),
            ("S12", 6, 8, "a question"),
            ("Ann_2010", 8, 8.5, "ok"),
            ("Ann_2010", 9, 9, "never"),
            ("Ann_2010", 8.5, 10, "<sil>"),
        ],
    )
    talk(base / "dev", "Bob_2011", [("Bob_2011", 0, 1.5, "hello")])
    talk(base / "test", "Cat_2012", [("Cat_2012", 0, 0.5, "<unk> bye")])
    return tmp_path


def test_segments_are_utterances_with_their_stretch_of_the_talk(root):
    corpus = open_tedlium(options=TedLiumOptions(root=root))
    first, unknown, question = corpus.split("train")
    assert (first.id, first.text, first.speaker) == ("Ann_2010-0000050-0000275", "IT'S A TALK", "Ann_2010")
    wave = first.audio.read()
    assert len(wave) == 2.25 * RATE
    assert np.abs(wave - np.arange(0.5 * RATE, 2.75 * RATE) / (20 * RATE)).max() < 1e-4
    assert unknown.text == "SAID SO"
    assert question.speaker == "Ann_2010/S12"
    assert [u.text for u in corpus.split("dev")] == ["HELLO"]
    assert [u.text for u in corpus.split("test")] == ["BYE"]


def test_what_is_left_out_is_counted_with_its_reason(root):
    corpus = open_tedlium(options=TedLiumOptions(root=root))
    assert corpus.dropped["train"] == {
        "ignored in scoring": ["Ann_2010-0000275-0000400"],
        "ends before it starts": ["Ann_2010-0000900-0000900"],
        "empty text": ["Ann_2010-0000850-0001000"],
        "under 1 s": ["Ann_2010-0000800-0000850"],
    }
    assert corpus.describe()["segments_with_unknown_words"] == {"train": 1, "dev": 0, "test": 1}


def test_segments_with_unknown_words_may_be_dropped_from_training_alone(root):
    corpus = open_tedlium(options=TedLiumOptions(root=root, unknown_words="drop_segment"))
    assert [u.text for u in corpus.split("train")] == ["IT'S A TALK", "A QUESTION"]
    assert corpus.dropped["train"]["unknown words"] == ["Ann_2010-0000400-0000600"]
    assert [u.text for u in corpus.split("test")] == ["BYE"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("that 's what we 're don 't i 'm they 'll she 'd we 've", "that's what we're don't i'm they'll she'd we've"),
        ("rock 'n roll in the '60s 'cause", "rock 'n roll in the '60s 'cause"),
        ("<unk> 's friend {UH} [laughter and applause] a(3) <NA> end", "friend a end"),
        ("(Talk-1.0-2.0-F0_M-S1)", ""),
    ],
)
def test_marks_are_left_out_and_contractions_joined(text, words):
    assert spoken(text) == words


def test_release_2_has_the_layout_of_release_1(root):
    (root / "TEDLIUM_release1").rename(root / "TEDLIUM_release2")
    corpus = open_tedlium(options=TedLiumOptions(root=root, release=2))
    assert len(corpus.split("train")) == 3
    with pytest.raises(DataError, match=r"lacks train, dev, test.*/TEDLIUM_release1,.*unpack TEDLIUM_release1"):
        open_tedlium(options=TedLiumOptions(root=root, release=1))
    assert len(open_tedlium(options=TedLiumOptions(root=root / "TEDLIUM_release2", release=2)).split("train")) == 3
    with pytest.raises(DataError, match="is to read TEDLIUM_release1, and found TEDLIUM_release2"):
        open_tedlium(options=TedLiumOptions(root=root / "TEDLIUM_release2", release=1))


def test_release_3_has_a_legacy_partition_and_one_for_speaker_adaptation(tmp_path):
    base = tmp_path / "TEDLIUM_release-3"
    for split, name in {"train": "Ann_2010", "dev": "Bob_2011", "test": "Cat_2012"}.items():
        talk(base / "legacy" / split, name, [(name, 0, 2, f"legacy {split}")])
    for name in ("Ann_2010", "Dan_2013"):
        talk(base / "data", name, [(name, 0, 2, f"data {name[:3]}")])
    lists = base / "speaker-adaptation"
    lists.mkdir()
    for split, names in {"train": "Dan_2013\n", "dev": "Bob_2011.sph\n", "test": "Ann_2010\n"}.items():
        (lists / f"{split}.lst").write_text(names)

    def texts(partition):
        options = TedLiumOptions(root=tmp_path, release=3, partition=partition)
        return [[u.text for u in split] for split in open_tedlium(options=options).splits.values()]

    assert texts("legacy") == [["LEGACY TRAIN"], ["LEGACY DEV"], ["LEGACY TEST"]]
    assert texts("speaker-adaptation") == [["DATA DAN"], ["LEGACY DEV"], ["DATA ANN"]]
    (lists / "dev.lst").write_text("Eve_2014\nBob_2011\nFay_2015\n")
    with pytest.raises(DataError, match=r"dev\.lst names talks without an \.stm file.*Eve_2014, Fay_2015"):
        texts("speaker-adaptation")


def test_missing_talks_and_transcripts_are_told_apart(root):
    train = root / "TEDLIUM_release1" / "train"
    talk(train, "Gus_2016", None)
    assert open_tedlium(options=TedLiumOptions(root=root)).dropped["train"]["no transcript"] == ["Gus_2016"]
    talk(train, "Hal_2017", [("Hal_2017", 0, 2, "no sound")], sound=False)
    with pytest.raises(DataError, match=r"Hal_2017\.sph cannot be read as audio: there is no such file"):
        open_tedlium(options=TedLiumOptions(root=root))
    corpus = open_tedlium(options=TedLiumOptions(root=root, on_bad_audio="skip"))
    assert corpus.dropped["train"]["missing file"] == ["Hal_2017-0000000-0000200"]
    (root / "TEDLIUM_release1" / "dev" / "stm" / "Bob_2011.stm").unlink()
    with pytest.raises(DataError, match=r"no \.stm file in .*dev"):
        open_tedlium(options=TedLiumOptions(root=root))


def test_the_partition_for_speaker_adaptation_is_of_release_3_alone():
    with pytest.raises(ValidationError, match="part of release 3 alone"):
        TedLiumOptions(release=2, partition="speaker-adaptation")


def test_real_speech_cut_into_segments_is_what_was_joined(real_data, tmp_path):
    chapters = sorted((real_data / "librispeech" / "LibriSpeech" / "test-other").glob("*/*"))[:3]
    if not chapters:
        pytest.skip(f"no {real_data}/librispeech")
    for split, chapter in zip(("train", "dev", "test"), chapters, strict=True):
        said = dict(line.split(" ", 1) for line in next(chapter.glob("*.txt")).read_text().splitlines())
        waves = {name: soundfile.read(chapter / f"{name}.flac", dtype="int16")[0] for name in said}
        ends = np.cumsum([len(wave) for wave in waves.values()]) / RATE
        starts = [0.0, *ends[:-1]]
        segments = [
            (chapter.parent.name, f"{start:.4f}", f"{end:.4f}", said[name].lower())
            for name, start, end in zip(said, starts, ends, strict=True)
        ]
        talk(tmp_path / split, chapter.name, segments, wave=np.concatenate(list(waves.values())))
        corpus_texts = list(said.values())
        last = waves
    corpus = open_tedlium(options=TedLiumOptions(root=tmp_path))
    assert [u.text for u in corpus.split("test")] == corpus_texts
    for utterance, wave in zip(corpus.split("test"), last.values(), strict=True):
        read = np.rint(utterance.audio.read() * 32768)
        assert abs(len(read) - len(wave)) <= 2
        assert min(np.abs(read[2 + s : 2000 + s] - wave[2:2000]).max() for s in (-1, 0, 1)) == 0
