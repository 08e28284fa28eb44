import json
import threading
import tracemalloc
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pytest
import soundfile

from ticketkit import DataError, StorageError
from ticketkit_asr.corpora.corpus import InMemory, SpeechCorpus, Utterance
from ticketkit_asr.corpora.librispeech import LibriSpeechOptions, open_librispeech
from ticketkit_asr.corpora.listening import Sound, heard
from ticketkit_asr.corpora.manifest import Line, read_manifest, write_manifest
from ticketkit_asr.corpora.manifest_corpus import ManifestOptions, open_manifest
from ticketkit_asr.corpora.preparation import prepare_corpus, validate, validate_utterances

RATE = 16_000


def noise(seconds, channels=1):
    return 0.1 * np.random.default_rng(0).standard_normal((round(seconds * RATE), channels))


@pytest.fixture
def folder(tmp_path):
    """A corpus of manifests with every fault that shows only when sound is read, and some good utterances."""
    data = tmp_path / "data"
    data.mkdir()
    for name, seconds in {"a": 1, "b": 2, "c": 3}.items():
        soundfile.write(data / f"{name}.flac", noise(seconds), RATE)
    soundfile.write(data / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(data / "stereo.wav", noise(1, channels=2), RATE)
    soundfile.write(data / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    (data / "text.wav").write_bytes(b"this is no sound")
    for cut, whole in {"cut.flac": "c.flac", "cut.wav": "stereo.wav"}.items():
        (data / cut).write_bytes((data / whole).read_bytes()[:-1000])
    (data / "zero.wav").write_bytes(b"")
    lines = [
        Line("a", "a.flac", "One two", "ann", duration=1.0),
        Line("b", "b.flac", "three 4", "bob", start=0.5, duration=1.5, lang="en"),
        Line("silent", "silent.wav", "HUSH", "ann", duration=1.0),
        Line("stereo", "stereo.wav", "LEFT RIGHT", "ann", duration=1.0),
        Line("nan", "nan.wav", "NO NUMBER", "ann", duration=1.0),
        Line("text", "text.wav", "NO SOUND", "ann", duration=1.0),
        Line("cut", "cut.flac", "TOO SH", "ann", duration=3.0),
        Line("cut too", "cut.wav", "TOO SH", "ann", duration=1.0),
        Line("zero", "zero.wav", "NOTHING", "ann", duration=1.0),
        Line("over", "a.flac", "AND ON AND ON", "ann", duration=5.0),
    ]
    write_manifest(data / "train.jsonl", lines)
    write_manifest(data / "dev.jsonl", [Line("a", "c.flac", "FIVE", "bob", duration=3.0)])
    return data


FAULTS = {
    "several channels": ["stereo"],
    "NaN or infinite samples": ["nan"],
    "unreadable": ["text", "cut"],
    "cut short": ["cut too"],
    "no samples": ["zero"],
    "beyond the end of the file": ["over"],
}


def opened(folder, **options):
    return open_manifest(options=ManifestOptions(train=folder / "train.jsonl", dev=folder / "dev.jsonl", **options))


def test_validation_finds_every_fault_and_sums_up_the_rest(folder):
    report = validate(opened(folder))
    train = report.splits["train"]
    assert {fault: list(ids) for fault, ids in train.faulty.items()} == FAULTS
    assert (train.utterances, train.seconds, train.shortest, train.longest) == (3, 3.5, 1.0, 1.5)
    assert (train.words, train.characters, train.speakers) == (5, 18, 2)
    assert train.out_of_alphabet == {"4": 1}
    assert train.silent == ("silent",)
    assert [(o.kind, o.splits, o.names) for o in report.shared] == [
        ("ids", ("train", "dev"), ("a",)),
        ("speakers", ("train", "dev"), ("bob",)),
    ]
    assert len(report.unusable()) == 7
    assert all("data/" in said for said in report.unusable())
    assert report.warnings()[0] == "train/dev share 1 ids: a"


def test_utterances_that_come_one_by_one_are_validated_alike(folder):
    corpus = opened(folder)
    one_by_one = validate_utterances(iter(corpus.split("train")), sample_rate=RATE, threads=2)
    assert one_by_one == validate(corpus).splits["train"]


def test_threads_change_nothing_and_progress_counts_every_utterance(folder):
    steps = []
    one = validate(opened(folder), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 11) for done in range(1, 12)]
    assert validate(opened(folder), threads=4).to_json() == one.to_json()


def test_preparing_fails_naming_all_and_writes_no_manifest_but_the_reports(folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(
        DataError, match=r"7 utterances of corpus 'manifest' cannot be used .*skip.*report\.md"
    ) as raised:
        prepare_corpus(opened(folder), out)
    assert all(f"train {name}: " in str(raised.value) for names in FAULTS.values() for name in names)
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "report.md"]


def test_prepared_manifests_hold_what_can_be_used_and_open_as_the_same_corpus(folder, tmp_path):
    out = tmp_path / "out"
    report = prepare_corpus(opened(folder), out, on_bad_audio="skip", threads=2)
    assert json.loads((out / "report.json").read_text()) == json.loads(report.to_json())
    assert (out / "report.md").read_text() == report.to_markdown()
    lines = read_manifest(out / "train.jsonl")
    assert [line.id for line in lines] == ["a", "b", "silent"]
    assert lines[1] == Line(
        "b",
        str(folder / "b.flac"),
        "three 4",
        "bob",
        start=0.5,
        duration=1.5,
        lang="en",
        sha256=sha256((folder / "b.flac").read_bytes()).hexdigest(),
    )
    good = {u.id: u for u in opened(folder).split("train")}
    for utterance in opened(out).split("train"):
        assert np.array_equal(utterance.audio.read(), good[utterance.id].audio.read())
        assert (utterance.text, utterance.speaker) == (good[utterance.id].text, good[utterance.id].speaker)


def test_preparing_again_what_was_prepared_gives_the_same_bytes(folder, tmp_path):
    prepare_corpus(opened(folder), tmp_path / "one", on_bad_audio="skip")
    prepare_corpus(opened(tmp_path / "one"), tmp_path / "two")
    for name in ("train.jsonl", "dev.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_prepared_corpus_is_known_by_content_wherever_it_lies(folder, tmp_path):
    prepare_corpus(opened(folder), folder / "prepared", on_bad_audio="skip")
    prepare_corpus(opened(folder), folder, on_bad_audio="skip")  # paths below the folder are relative
    digest = opened(folder).digest
    assert opened(folder / "prepared").digest == digest
    moved = folder.rename(tmp_path / "moved")
    (moved / "a.flac").touch()
    corpus = opened(moved)
    assert corpus.digest == digest
    assert corpus.facts["digest_of"] == "lines and recorded digests of files"
    assert len(corpus.split("train")[0].audio.read()) == RATE


def test_what_opening_dropped_is_in_the_report(folder):
    report = validate(opened(folder, min_seconds=1.2, max_seconds=4.0))
    assert report.splits["train"].dropped["over 4 s"] == ("over",)
    assert "a" in report.splits["train"].dropped["under 1.2 s"]
    assert "| train | over 4 s | 1 | over |" in report.to_markdown()


def test_ids_and_texts_of_corpora_in_memory_are_checked_and_no_manifest_is_made_of_them(tmp_path):
    def said(name, text="A", samples=RATE):
        return Utterance(name, InMemory(np.ones(samples, np.float32)), text, "s")

    splits = {"train": [said("a"), said("a"), said("b", text=" "), said("c", samples=0)]}
    corpus = SpeechCorpus("c", RATE, splits)
    faulty = validate(corpus).splits["train"].faulty
    assert {fault: list(ids) for fault, ids in faulty.items()} == {
        "duplicate id": ["a"],
        "empty text": ["b"],
        "no samples": ["c"],
    }
    with pytest.raises(DataError, match="'c' makes its sound in memory"):
        prepare_corpus(corpus, tmp_path)


def test_speakers_that_nobody_knows_are_not_shared(folder):
    for split in ("train", "dev"):
        write_manifest(folder / f"{split}.jsonl", [Line(split, "a.flac", "X", duration=1.0)])
    assert validate(opened(folder)).shared == ()


def test_a_folder_that_cannot_be_made_is_a_storage_error(folder, tmp_path):
    (tmp_path / "out").write_text("a file in the place of the folder")
    with pytest.raises(StorageError, match="cannot write"):
        prepare_corpus(opened(folder), tmp_path / "out", on_bad_audio="skip")


@dataclass(frozen=True)
class Counted:
    """Audio that counts how many are read and not yet counted."""

    samples: int
    reads: list[int]

    def read(self):
        self.reads.append(threading.get_ident())
        return np.ones(self.samples, np.float32)

    def fingerprint(self):
        return b""


@pytest.mark.parametrize("threads", [1, 3])
def test_every_utterance_is_read_once_and_only_a_few_ahead(threads):
    reads: list[int] = []
    utterances = [Utterance(str(n), Counted(10, reads), "A", "s") for n in range(200)]
    ahead = 0
    for done, _ in enumerate(heard(utterances, lambda u: Sound(silent=not u.audio.read().any()), threads=threads)):
        ahead = max(ahead, len(reads) - done)
    assert len(reads) == 200
    assert ahead <= (1 if threads == 1 else 8 * threads)
    assert len(set(reads)) <= threads


def test_no_more_waveforms_are_held_than_threads_read():
    samples, threads = 30 * RATE, 2
    utterances = [Utterance(str(n), Counted(samples, []), "A", "s") for n in range(100)]
    tracemalloc.start()
    validate(SpeechCorpus("c", RATE, {"train": utterances}), threads=threads)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (threads + 1) * samples * np.dtype(np.float32).itemsize


def test_the_real_subset_is_faultless(real_data, tmp_path):
    if not (real_data / "librispeech").is_dir():
        pytest.skip(f"no {real_data}/librispeech")
    options = LibriSpeechOptions(root=real_data, train=("train-clean-5",), dev=("test-clean",), test=("test-other",))
    corpus = open_librispeech(options=options)
    report = prepare_corpus(corpus, tmp_path, threads=2)
    assert report.unusable() == []
    assert report.warnings() == []
    assert [round(split.seconds, 4) for split in report.splits.values()] == [412.0199, 21.21, 213.4651]
    prepared = open_manifest(options=ManifestOptions(train=tmp_path / "train.jsonl", test=tmp_path / "test.jsonl"))
    for split in ("train", "test"):
        pairs = zip(prepared.split(split), corpus.split(split), strict=True)
        assert all(one.audio.samples == other.audio.samples and one.text == other.text for one, other in pairs)
