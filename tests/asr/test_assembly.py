import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError

from ticketkit import DataError
from ticketkit_asr.corpora.assembly import Listing, assemble
from ticketkit_asr.corpora.file_options import FileCorpusOptions
from ticketkit_asr.corpora.manifest import Line
from ticketkit_asr.sound.audio import resample
from ticketkit_asr.text.rules import TextRules

RATE = 16_000


@pytest.fixture
def folder(tmp_path):
    """Files of 1 to 5 seconds: 1.wav to 5.wav, and one in stereo."""
    for seconds in range(1, 6):
        soundfile.write(tmp_path / f"{seconds}.wav", np.full(seconds * RATE, 0.1), RATE)
    soundfile.write(tmp_path / "stereo.wav", np.full((RATE, 2), 0.1), RATE)
    return tmp_path


def line(name, path="1.wav", text="one", **fields):
    return Line(id=name, path=path, text=text, **fields)


def assembled(folder, lines, **options):
    listings = {split: Listing(of_split, folder=str(folder)) for split, of_split in lines.items()}
    return assemble("c", listings, FileCorpusOptions(**options))


def ids(corpus, split="train"):
    return [utterance.id for utterance in corpus.split(split)]


def test_utterances_keep_their_order_and_read_what_the_lines_say(folder):
    lines = [line("b", "2.wav", lang="en"), line("a", "3.wav", start=0.5, duration=1.25, speaker="ann")]
    corpus = assembled(folder, {"train": lines})
    assert ids(corpus) == ["b", "a"]
    whole, part = corpus.split("train")
    assert (whole.audio.samples, part.audio.samples) == (2 * RATE, 1.25 * RATE)
    assert [len(u.audio.read()) for u in corpus.split("train")] == [2 * RATE, 1.25 * RATE]
    assert (whole.lang, whole.speaker, part.speaker) == ("en", "unknown", "ann")


def test_no_file_is_opened_for_a_line_that_states_its_duration(folder):
    (folder / "1.wav").write_bytes(b"this is no sound")
    assert assembled(folder, {"train": [line("a", duration=2.0)]}).split("train")[0].audio.samples == 2 * RATE
    with pytest.raises(DataError, match=r"1\.wav cannot be read"):
        assembled(folder, {"train": [line("a")]})


@pytest.mark.parametrize(("rate", "frames"), [(44_100, 1000), (8_000, 777), (22_050, 1), (16_000, 500)])
def test_a_file_of_unstated_length_has_the_samples_that_resampling_gives(folder, rate, frames):
    soundfile.write(folder / "odd.wav", np.full(frames, 0.5), rate)
    (utterance,) = assembled(folder, {"train": [line("a", "odd.wav")]}).split("train")
    wave, _ = soundfile.read(folder / "odd.wav", dtype="float32")
    expected = resample(torch.from_numpy(wave), source=rate, target=RATE).numpy()
    assert utterance.audio.samples == len(expected)
    assert np.array_equal(utterance.audio.read(), expected)


def test_lengths_are_the_same_however_many_threads_look(folder):
    lines = [line(str(number), f"{1 + number % 5}.wav") for number in range(600)]
    one, many = (assembled(folder, {"train": lines}, threads=threads).split("train") for threads in (1, 7))
    assert [u.audio for u in one] == [u.audio for u in many]
    assert [u.audio.samples for u in one] == [(1 + number % 5) * RATE for number in range(600)]


def test_every_drop_is_counted_with_its_reason_and_id(folder):
    lines = [
        line("first", "2.wav"),
        line("first", "3.wav"),
        line("silent", text=" … "),
        line("short", "1.wav"),
        line("long", "5.wav"),
        line("last", "4.wav"),
    ]
    corpus = assembled(
        folder, {"train": lines, "dev": lines[3:5]}, min_seconds=2, max_seconds=4, text=TextRules(), seed=1
    )
    assert ids(corpus) == ["first", "last"]
    assert corpus.dropped == {
        "train": {"duplicate id": ["first"], "empty text": ["silent"], "under 2 s": ["short"], "over 4 s": ["long"]},
        "dev": {},
    }
    assert ids(corpus, "dev") == ["short", "long"]
    assert corpus.facts["text"]["removed"] == {".": 3}


def test_limits_include_their_ends(folder):
    lines = [line(f"{seconds}", f"{seconds}.wav") for seconds in range(1, 6)]
    assert ids(assembled(folder, {"train": lines}, min_seconds=2, max_seconds=4)) == ["2", "3", "4"]


def test_fewer_utterances_are_among_more_and_do_not_depend_on_the_others(folder):
    lines = [line(f"u{number}", duration=1.0) for number in range(50)]
    few, more = (ids(assembled(folder, {"train": lines}, train_utterances=count)) for count in (5, 20))
    assert len(few) == 5
    assert len(more) == 20
    assert set(few) < set(more)
    assert more == sorted(more, key=[one.id for one in lines].index)
    assert ids(assembled(folder, {"train": lines[::-1]}, train_utterances=5)) == few[::-1]
    without = [one for one in lines if one.id in few or one.id in ("u1", "u2", "u3")]
    assert ids(assembled(folder, {"train": without}, train_utterances=5)) == few
    assert ids(assembled(folder, {"train": lines}, train_utterances=5, seed=1)) != few
    assert ids(assembled(folder, {"train": lines, "dev": lines}, dev_utterances=3), "dev") != ids(
        assembled(folder, {"train": lines})
    )


def test_bad_files_are_all_named_or_skipped_and_counted(folder):
    (folder / "broken.wav").write_bytes(b"RIFF")
    lines = [
        line("good"),
        line("missing", "gone.wav"),
        line("missing too", "gone.wav", duration=1.0),
        line("broken", "broken.wav"),
        line("stereo", "stereo.wav"),
        line("late", "1.wav", start=1.5),
    ]
    with pytest.raises(DataError, match=r"^4 sound files of corpus 'c'") as raised:
        assembled(folder, {"train": lines})
    for said in ("gone.wav", "broken.wav", "stereo.wav has 2 channels", "starts at 1.5 s", "on_bad_audio: skip"):
        assert said in str(raised.value)
    corpus = assembled(folder, {"train": lines}, on_bad_audio="skip")
    assert ids(corpus) == ["good"]
    assert corpus.skipped == tuple(str(folder / name) for name in ("gone.wav", "broken.wav", "stereo.wav", "1.wav"))
    assert corpus.dropped["train"] == {
        "missing file": ["missing", "missing too"],
        "unreadable": ["broken"],
        "several channels": ["stereo"],
        "beyond the end of the file": ["late"],
    }


@pytest.mark.parametrize(("channels", "channel"), [("first", 0), ("mix", "mix")])
def test_several_channels_are_read_as_the_option_says_unless_the_line_chooses(folder, channels, channel):
    lines = [line("a", "stereo.wav"), line("b", "stereo.wav", channel=1)]
    corpus = assembled(folder, {"train": lines}, channels=channels)
    assert [u.audio.channel for u in corpus.split("train")] == [channel, 1]
    assert [len(u.audio.read()) for u in corpus.split("train")] == [RATE, RATE]


def test_a_split_of_which_nothing_is_left_fails_with_the_reasons(folder):
    with pytest.raises(DataError, match=r"nothing left for train; left out: \{'under 9 s': 2\}"):
        assembled(folder, {"train": [line("a"), line("b")]}, min_seconds=9)
    assert assembled(folder, {"train": [line("a")], "test": []}).split("test") == []
    with pytest.raises(DataError, match="lists no utterance to train on"):
        assembled(folder, {"train": [], "test": [line("a")]})
    listings = {"train": Listing([line("a")], folder=str(folder)), "test": Listing([], {"no transcript": ["b"]})}
    with pytest.raises(DataError, match=r"nothing left for test; left out: \{'no transcript': 1\}"):
        assemble("c", listings, FileCorpusOptions())


@pytest.mark.parametrize("rate", [0, -1, 768_001])
def test_rates_that_no_recorder_has_are_refused(rate):
    with pytest.raises(ValidationError, match="sample_rate"):
        FileCorpusOptions(sample_rate=rate)


def test_the_digest_follows_lines_and_versions_of_files_but_reads_no_sound(folder):
    def digest(**fields):
        return assembled(folder, {"train": [line("a", **fields)]}).digest

    before = digest(duration=1.0)
    assert digest(duration=1.0) == before
    assert len({before, digest(duration=1.5), digest(duration=1.0, text="two"), digest(duration=1.0, start=0.1)}) == 4
    recorded = digest(duration=1.0, sha256=64 * "a")
    (folder / "1.wav").write_bytes(b"this is no sound")
    assert digest(duration=1.0) != before
    assert digest(duration=1.0, sha256=64 * "a") == recorded


@pytest.mark.parametrize(
    "wrong",
    [{"min_seconds": 5, "max_seconds": 1}, {"channels": "both"}, {"sample_rate": 0}, {"max_second": 3}, {"threads": 0}],
)
def test_contradictory_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        FileCorpusOptions(**wrong)
