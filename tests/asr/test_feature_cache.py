import logging
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ticketkit import ConfigError, DataError
from ticketkit_asr.backbones.options import FeatureOptions
from ticketkit_asr.corpora.corpus import InMemory, SpeechCorpus, Utterance
from ticketkit_asr.features.cache import CachedFeatures, cached_features
from ticketkit_asr.features.extraction import FeatureExtractor, measured
from ticketkit_asr.sound.audio import resample
from ticketkit_asr.sound.corruption import corrupted, open_corruption
from ticketkit_asr.sound.options import CorruptionOptions

RATE = 8_000
MEL = FeatureExtractor(FeatureOptions(kind="log_mel", mels=12), RATE)
CENTRED = FeatureExtractor(FeatureOptions(kind="log_mel", mels=12, centre="corpus"), RATE)


def utterance(number: int) -> Utterance:
    wave = np.random.default_rng(number).standard_normal(1500 + 137 * number)
    return Utterance(f"u{number}", InMemory(wave.astype(np.float32)), "A", f"s{number}")


UTTERANCES = [utterance(number) for number in range(5)]


class Unread:
    """Audio that must not be read again."""

    def __init__(self, audio: InMemory) -> None:
        self.samples = audio.samples

    def read(self) -> np.ndarray:
        raise RuntimeError("computed again")

    def fingerprint(self) -> bytes:
        raise RuntimeError("computed again")


UNREAD = [replace(utterance, audio=Unread(utterance.audio)) for utterance in UTTERANCES]


def cached(folder: Path, utterances=UTTERANCES, extractor=MEL, *, corpus="c", split="train", **how) -> CachedFeatures:
    return cached_features(corpus, split, utterances, extractor, folder, **{"sample_rate": RATE, **how})


def of(utterance: Utterance, extractor: FeatureExtractor = MEL) -> torch.Tensor:
    return extractor(torch.from_numpy(utterance.audio.read()))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_features_are_those_of_each_utterance_in_order_and_computed_once(tmp_path):
    for utterances in (UTTERANCES, UNREAD):
        features = cached(tmp_path / "new", utterances)
        assert len(features) == 5
        assert all(map(torch.equal, features, map(of, UTTERANCES)))
    assert len(files(tmp_path / "new")) == 1


def test_a_split_is_indexed_like_any_sequence(tmp_path):
    features = cached(tmp_path)
    assert torch.equal(features[-1], features[4])
    assert all(map(torch.equal, features[1:3], [features[1], features[2]]))
    with pytest.raises(IndexError):
        features[5]


def test_an_utterance_is_a_view_of_the_file(tmp_path):
    features = cached(tmp_path)
    assert features[2].untyped_storage().data_ptr() == features.file.features.untyped_storage().data_ptr()


def test_waveforms_are_resampled_first(tmp_path):
    features = cached(tmp_path, sample_rate=11_025)
    wave = resample(torch.from_numpy(UTTERANCES[3].audio.read()), source=11_025, target=RATE)
    assert torch.equal(features[3], MEL(wave))


def test_half_precision_is_widened_when_read(tmp_path):
    features = cached(tmp_path, precision="float16")
    assert features[0].dtype == torch.float32
    assert torch.equal(features[0], of(UTTERANCES[0]).half().float())


@pytest.mark.parametrize(
    "other",
    [
        {"corpus": "d"},
        {"split": "dev"},
        {"utterances": UTTERANCES[:4]},
        {"utterances": UTTERANCES[::-1]},
        {"sample_rate": 16_000},
        {"precision": "float16"},
        {"extractor": replace(MEL, sample_rate=16_000)},
        {"extractor": replace(MEL, options=FeatureOptions(kind="log_mel", mels=13))},
        {"extractor": replace(MEL, options=FeatureOptions(kind="log_mel", mels=12, hop_ms=12))},
        {"extractor": CENTRED},
    ],
)
def test_another_corpus_or_setting_has_another_file(tmp_path, other):
    cached(tmp_path)
    cached(tmp_path, **other)
    assert len(files(tmp_path)) == 2
    cached(tmp_path, UNREAD)


def test_train_is_normalised_by_its_own_statistics_and_others_by_those_of_train(tmp_path):
    train = cached(tmp_path, extractor=CENTRED)
    everything = torch.cat(list(train)).double()
    assert everything.mean(0).abs().max() < 1e-5
    assert (everything.square().mean(0).sqrt() - 1).abs().max() < 1e-5
    spectra = (CENTRED.spectra(torch.from_numpy(u.audio.read())) for u in UTTERANCES)
    assert train.extractor.statistics == measured(spectra)
    assert all(torch.equal(a, of(u, train.extractor)) for a, u in zip(train, UTTERANCES, strict=True))
    again = cached(tmp_path, UNREAD, CENTRED)
    assert again.extractor == train.extractor
    dev = cached(tmp_path, UTTERANCES[:2], train.extractor, split="dev")
    assert all(map(torch.equal, dev, train))


def test_other_splits_need_the_statistics_of_train(tmp_path):
    with pytest.raises(ConfigError, match="need the statistics of train, and dev is asked for; cache train first"):
        cached(tmp_path, extractor=CENTRED, split="dev")


def test_other_statistics_have_another_file(tmp_path):
    extractors = [cached(tmp_path, some, CENTRED).extractor for some in (UTTERANCES, UTTERANCES[:3])]
    dev = [cached(tmp_path, UTTERANCES[:1], extractor, split="dev") for extractor in extractors]
    assert dev[0].path != dev[1].path


def test_a_damaged_file_is_computed_again_with_a_warning(tmp_path, caplog):
    (path,) = [cached(tmp_path).path]
    content = path.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:100], b""):
        caplog.clear()
        path.write_bytes(damaged)
        assert all(map(torch.equal, cached(tmp_path), map(of, UTTERANCES)))
        assert [record.levelno for record in caplog.records if record.levelno > logging.INFO] == [logging.WARNING]
        assert f"{path} cannot be used" in caplog.text
        assert path.read_bytes() == content


def test_a_failure_leaves_no_file_and_names_the_utterance(tmp_path):
    short = Utterance("tiny", InMemory(np.zeros(9, np.float32)), "A", "s")
    for extractor in (MEL, CENTRED):
        with pytest.raises(DataError, match="utterance 'tiny': 9 samples are too few"):
            cached(tmp_path, [*UTTERANCES, short], extractor)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_no_utterances_have_no_features(tmp_path):
    assert list(cached(tmp_path, [])) == []


def test_only_the_place_of_the_file_travels_to_another_process(tmp_path):
    features = cached(tmp_path, extractor=CENTRED)
    sent = pickle.dumps(features)
    assert len(sent) < 4000
    assert all(map(torch.equal, pickle.loads(sent), features))


PROGRAM = """
import multiprocessing, sys, time
from pathlib import Path
import numpy as np
from ticketkit_asr.backbones.options import FeatureOptions
from ticketkit_asr.corpora.corpus import Utterance
from ticketkit_asr.features.cache import cached_features
from ticketkit_asr.features.extraction import FeatureExtractor

folder = Path(sys.argv[1])
started = multiprocessing.get_context("fork").Process  # of a process that has no threads yet

class Slow:
    samples = 1500

    def __init__(self, seed, seconds):
        self.seed, self.seconds = seed, seconds

    def read(self):
        with open(folder / "reads", "a") as log:
            log.write("r")
        time.sleep(self.seconds)
        return np.random.default_rng(self.seed).standard_normal(1500).astype(np.float32)

def compute(name, seconds):
    utterances = [Utterance(str(i), Slow(i, seconds), "A", "s") for i in range(20)]
    extractor = FeatureExtractor(FeatureOptions(kind="log_mel", mels=12), 8000)
    features = cached_features("c", "train", utterances, extractor, folder / "cache", sample_rate=8000)
    (folder / name).write_text(str(sum(f.sum().item() for f in features)))

killed = started(target=compute, args=("killed", 60))
killed.start()
while not (folder / "reads").exists():
    time.sleep(0.01)
several = [started(target=compute, args=(name, 0.01)) for name in ("one", "other")]
for process in several:
    process.start()
time.sleep(0.5)
print((folder / "reads").read_text(), len(list((folder / "cache").glob(".*.part"))))
killed.kill()
for process in several:
    process.join()
"""


def test_of_several_processes_one_computes_and_a_killed_one_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (finished.returncode, finished.stdout) == (0, "r 1\n"), finished.stderr
    assert (tmp_path / "reads").read_text() == "r" + 20 * "r"
    assert (tmp_path / "one").read_text() == (tmp_path / "other").read_text() != ""
    assert not (tmp_path / "killed").exists()
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".safetensors", ".lock"}


def test_corrupted_features_have_a_file_of_their_own_and_are_always_the_same(tmp_path):
    (tmp_path / "noise").mkdir()
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / "noise" / name, np.random.default_rng(7).uniform(-1, 1, 999), RATE)
    corpus = SpeechCorpus("c", RATE, {"test": UTTERANCES})

    def at(*snr_db: float):
        noise = {"root": tmp_path / "noise", "type_rule": "file", "snr_db": snr_db}
        options = CorruptionOptions.model_validate({"noise": noise})
        return open_corruption(options, corpus, split="test", sample_rate=RATE)

    noisy = cached(tmp_path, split="test", corruption=at(5))
    waves = [torch.from_numpy(u.audio.read()) for u in UTTERANCES]
    for features, u, wave in zip(noisy, UTTERANCES, waves, strict=True):
        assert torch.equal(features, MEL(corrupted(wave, at(5), utterance_id=u.id, seed=0)))
    cached(tmp_path, UNREAD, split="test", corruption=at(5))
    paths = [
        cached(tmp_path, split="test", **how).path
        for how in ({}, {"corruption": at(6)}, {"corruption": at(5), "seed": 1})
    ]
    assert len({noisy.path, *paths}) == 4


def test_real_speech_is_cached_as_it_is_computed(tmp_path, real_data):
    utterances = [
        Utterance(path.stem, InMemory(soundfile.read(path, dtype="float32")[0]), "A", "s")
        for path in sorted((real_data / "librispeech").rglob("*.flac"))[:8]
    ]
    assert len(utterances) == 8
    extractor = FeatureExtractor(FeatureOptions(), 16_000)
    features = cached(tmp_path, utterances, extractor, sample_rate=16_000)
    for of_utterance, one in zip(features, utterances, strict=True):
        assert torch.equal(of_utterance, of(one, extractor))
