import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from ticketkit import DataError
from ticketkit_asr.corpora.common_voice import CommonVoiceOptions, open_common_voice, read_durations

RATE = 48_000
COLUMNS = ["client_id", "path", "sentence", "up_votes", "locale"]


def table(path, rows, columns=COLUMNS):
    path.write_text("\n".join("\t".join(map(str, row)) for row in [columns, *rows]) + "\n", encoding="utf-8")


def clip(folder, name, *, seconds=2.0, rate=RATE):
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate))
    soundfile.write(folder / "clips" / name, wave, rate, format="MP3")


@pytest.fixture
def root(tmp_path):
    """A Common Voice in English: six clips of four clients."""
    folder = tmp_path / "en"
    rows = []
    for number, (client, sentence) in enumerate(
        [
            ("c1", '"Don’t," she said.'),
            ("c1", "He is 5' 11\" tall & happy"),
            ("c2", 'A stray " quote'),
            ("c3", "Naïve café!"),
            ("c4", "Four"),
            ("", "nobody"),
        ]
    ):
        clip(folder, f"common_voice_en_{number}.mp3", rate=(32_000, 48_000)[number % 2])
        rows.append((client, f"common_voice_en_{number}.mp3", sentence, 2, "en"))
    table(folder / "train.tsv", rows[:3])
    table(folder / "dev.tsv", rows[3:4])
    table(folder / "test.tsv", rows[4:5])
    table(folder / "validated.tsv", rows)
    return tmp_path


def test_official_tables_make_splits_and_quotes_lose_no_row(root):
    corpus = open_common_voice(options=CommonVoiceOptions(root=root))
    assert [[u.text for u in split] for split in corpus.splits.values()] == [
        ["DON'T SHE SAID", "HE IS 5 11 TALL & HAPPY", "A STRAY QUOTE"],
        ["NAÏVE CAFÉ"],
        ["FOUR"],
    ]
    first = corpus.split("train")[0]
    assert (first.id, first.speaker, first.lang) == ("common_voice_en_0", "c1", "en")
    assert corpus.describe()["splits"]["train"]["out_of_alphabet"] == {"&": 1, "1": 2, "5": 1}
    assert corpus.describe()["text"]["removed"] == {'"': 4, "'": 1, ",": 1, ".": 1, "!": 1}


def test_a_byte_order_mark_is_no_part_of_a_column_name(root):
    for name in ("train", "dev", "test"):
        path = root / "en" / f"{name}.tsv"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    corpus = open_common_voice(options=CommonVoiceOptions(root=root))
    assert [u.text for u in corpus.split("test")] == ["FOUR"]


def test_clips_of_any_rate_are_read_at_the_corpus_rate(root):
    for utterance in open_common_voice(options=CommonVoiceOptions(root=root)).split("train"):
        wave = utterance.audio.read()
        assert len(wave) == utterance.audio.samples == 2 * 16_000
        assert 0.01 < wave.std() < 0.1


def test_stated_durations_are_believed_until_the_clip_is_read(root):
    table(root / "en" / "clip_durations.tsv", [("common_voice_en_0.mp3", 2000)], ["clip", "duration[ms]"])
    (root / "en" / "clips" / "common_voice_en_0.mp3").write_bytes(b"no sound")
    first = open_common_voice(options=CommonVoiceOptions(root=root)).split("train")[0]
    assert first.audio.samples == 2 * 16_000
    with pytest.raises(DataError, match="common_voice_en_0"):
        first.audio.read()


def test_odd_durations_are_named(tmp_path):
    table(tmp_path / "d.tsv", [("a.mp3", 100), ("b.mp3", "-1"), ("c.mp3", "1.5")], ["clip", "duration[ms]"])
    with pytest.raises(DataError, match=r"b\.mp3 \('-1'\), c\.mp3 \('1\.5'\)"):
        read_durations(tmp_path / "d.tsv")
    assert read_durations(tmp_path / "missing.tsv") == {}


def test_validated_clips_are_split_by_client(root):
    options = CommonVoiceOptions(root=root, source="validated", dev_share=0.2, test_share=0.2)
    corpus = open_common_voice(options=options)
    clients = [{u.speaker for u in split} for split in corpus.splits.values()]
    assert all(clients)
    assert set.union(*clients) == {"c1", "c2", "c3", "c4", "unknown"}
    assert sum(map(len, clients)) == 5
    again = open_common_voice(options=options)
    assert again.digest == corpus.digest
    other = open_common_voice(options=options.model_copy(update={"seed": 3}))
    assert [{u.speaker for u in split} for split in other.splits.values()] != clients


@pytest.mark.parametrize("place", [".", "en"])
def test_the_root_is_the_locale_or_the_folder_above(root, place):
    assert len(open_common_voice(options=CommonVoiceOptions(root=root / place)).split("train")) == 3


def test_missing_tables_columns_and_clips_are_named(root):
    folder = root / "en"
    table(folder / "test.tsv", [("c4", "gone.mp3", "Four", 2, "en")])
    with pytest.raises(DataError, match=r"gone\.mp3 cannot be read as audio: there is no such file"):
        open_common_voice(options=CommonVoiceOptions(root=root))
    table(folder / "test.tsv", [("a.mp3", "x")], ["path", "sentence"])
    with pytest.raises(DataError, match=r"test\.tsv has no column client_id; it has path, sentence"):
        open_common_voice(options=CommonVoiceOptions(root=root))
    (folder / "test.tsv").write_text("client_id\tpath\tsentence\nc\ta.mp3\nc\ta.mp3\thi\nc\n")
    with pytest.raises(DataError, match=r"test\.tsv has rows with fewer columns .*: 2, 4$"):
        open_common_voice(options=CommonVoiceOptions(root=root))
    (folder / "test.tsv").unlink()
    with pytest.raises(DataError, match=r"test\.tsv cannot be read"):
        open_common_voice(options=CommonVoiceOptions(root=root))
    with pytest.raises(DataError, match=r"lacks clips.*archive of 'de'"):
        open_common_voice(options=CommonVoiceOptions(root=root, locale="de"))


def test_tables_of_another_locale_are_refused(root):
    with pytest.raises(DataError, match=r"train\.tsv holds clips of locale en; the option locale is 'de'"):
        open_common_voice(options=CommonVoiceOptions(root=root / "en", locale="de"))


@pytest.mark.parametrize("wrong", [{"locale": "../en"}, {"dev_share": 1.0}, {"source": "other"}])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        CommonVoiceOptions(**wrong)


def test_real_clips_have_their_sentences_and_lengths(real_data):
    if not (real_data / "commonvoice").is_dir():
        pytest.skip(f"no {real_data}/commonvoice")

    def validated(locale):
        options = CommonVoiceOptions(root=real_data, locale=locale, source="validated", dev_share=0, test_share=0)
        return [
            (u.id[-8:], u.text, u.audio.samples / 16_000) for u in open_common_voice(options=options).split("train")
        ]

    assert validated("en") == [("22058264", "NO", 4.104), ("22058266", "FIRE FOX", 2.352), ("22058267", "SIX", 1.848)]
    assert validated("ja") == [("24511055", "真っ昼間なのにキャンプの外れの電柱に電球がともっていた", 6.516)]


def test_real_speech_survives_being_a_clip(real_data, tmp_path):
    chapter = real_data / "librispeech" / "LibriSpeech" / "test-other" / "3005" / "163389"
    if not chapter.is_dir():
        pytest.skip(f"no {chapter}")
    said = dict(line.split(" ", 1) for line in next(chapter.glob("*.txt")).read_text().splitlines())
    rows = []
    (tmp_path / "clips").mkdir()
    for name, text in said.items():
        wave, rate = soundfile.read(chapter / f"{name}.flac")
        soundfile.write(tmp_path / "clips" / f"{name}.mp3", wave, rate, format="MP3")
        rows.append(("3005", f"{name}.mp3", text.lower() + ".", 2, "en"))
    for split in ("train", "dev", "test"):
        table(tmp_path / f"{split}.tsv", rows)
    for utterance in open_common_voice(options=CommonVoiceOptions(root=tmp_path)).split("dev"):
        wave, _ = soundfile.read(chapter / f"{utterance.id}.flac")
        assert utterance.text == said[utterance.id]
        assert utterance.audio.samples == len(wave)
        assert np.corrcoef(utterance.audio.read(), wave)[0, 1] > 0.98
