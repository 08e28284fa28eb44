"""P13: how many seconds of speech become features, from the cache or anew, in a second of one core; and corrupted ones.

Speech and noise are white noise: what an FFT takes does not depend on what it is of. Reading files of speech is not
counted; noises and rooms are read and resampled in the first round and held from then on, as in training.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from figures import NO_WORSE, Figure, Goal, compared, interleaved, skipped, timed

from ticketkit import DataError
from ticketkit_asr.backbones.options import FeatureOptions
from ticketkit_asr.corpora.corpus import InMemory, SpeechCorpus, Utterance
from ticketkit_asr.extras import require
from ticketkit_asr.features.cache import cached_features
from ticketkit_asr.features.extraction import FeatureExtractor
from ticketkit_asr.sound.corruption import corrupted, open_corruption
from ticketkit_asr.sound.options import CorruptionOptions
from ticketkit_asr.torchaudio_shim import torchaudio

RATE = 16_000
SECONDS = (2, 5, 8, 11, 14)  # of the utterances, as in LibriSpeech
ROUNDS = 15
FEATURE_GOAL = Goal(">=", 200, "times faster than real time")
CORRUPTION_GOAL = Goal(">=", 100, "times faster than real time")
FEATURES: Mapping[str, FeatureOptions] = {
    "CNN-LSTM, 161 log-spectral bins": FeatureOptions(),
    "Conformer, 80 log-mel bands": FeatureOptions(kind="log_mel", mels=80, window_ms=25, n_fft=512),
}


@dataclass(frozen=True)
class Speech:
    """Utterances of several speakers, and how long they last together."""

    corpus: SpeechCorpus
    waveforms: Mapping[str, torch.Tensor]
    seconds: float


def feature_speed(quick: bool) -> Iterator[Figure]:
    """P13: features, computed and from the cache, and what corrupting speech costs."""
    try:
        torchaudio()
        soundfile = require("soundfile", extra="asr")
    except DataError as error:
        skipped("P13", error)
        return
    speech = spoken((1, 2) if quick else SECONDS, speakers=6)
    rounds = 2 if quick else ROUNDS
    with TemporaryDirectory() as folder:
        yield from _feature_figures(speech, Path(folder), rounds)
        yield from _corruption_figures(speech, Path(folder), soundfile.write, rounds)


def _feature_figures(speech: Speech, folder: Path, rounds: int) -> Iterator[Figure]:
    utterances = speech.corpus.split("train")
    for name, options in FEATURES.items():
        extractor = FeatureExtractor(options, RATE)

        def computed(extractor: FeatureExtractor = extractor) -> list[torch.Tensor]:
            return [extractor(waveform) for waveform in speech.waveforms.values()]

        def read(extractor: FeatureExtractor = extractor) -> list[torch.Tensor]:
            cached = cached_features("digest", "train", utterances, extractor, folder, sample_rate=RATE)
            return [features.clone() for features in cached]

        read()  # computes them
        took = interleaved({"computed": timed(computed), "read": timed(read)}, rounds)
        shape = described(speech)
        yield _against_real_time(f"features, {name}", took["computed"], speech, FEATURE_GOAL)
        yield compared(
            f"P13 features from the cache, verified and copied, {name}",
            took["read"],
            {"computing them": took["computed"]},
            shape=shape,
            goal=NO_WORSE,
        )


def _corruption_figures(
    speech: Speech, folder: Path, write: Callable[[Path, np.ndarray, int], None], rounds: int
) -> Iterator[Figure]:
    random = np.random.default_rng(0)
    for number in range(4):
        for kind, seconds in (("noise", 5.0), ("room", 1.0)):
            (folder / kind).mkdir(exist_ok=True)
            wave = random.standard_normal(round(seconds * 44_100)) * np.exp(-np.arange(round(seconds * 44_100)) / 9000)
            write(folder / kind / f"{number}.wav", 0.1 * wave, 44_100)
    parts = {
        "noise": {"root": folder / "noise", "type_rule": "file", "snr_db": [0, 10, 20]},
        "babble": {"talkers": 4, "snr_db": [0, 10, 20]},
        "room": {"root": folder / "room"},
    }
    for name, chosen in {**{part: [part] for part in parts}, "all three": list(parts)}.items():
        options = CorruptionOptions.model_validate({part: parts[part] for part in chosen})
        corruption = open_corruption(options, speech.corpus, split="train", sample_rate=RATE)
        epoch = 0

        def mixed(corruption=corruption) -> None:
            nonlocal epoch
            epoch += 1
            for identity, waveform in speech.waveforms.items():
                corrupted(waveform, corruption, utterance_id=identity, seed=0, epoch=epoch)

        mixed()
        took = interleaved({"ours": timed(mixed)}, rounds)
        yield _against_real_time(f"corruption, {name}", took["ours"], speech, CORRUPTION_GOAL)


def _against_real_time(name: str, took: list[float], speech: Speech, goal: Goal) -> Figure:
    real_time = {"real time": [speech.seconds] * len(took)}
    return compared(f"P13 {name}", took, real_time, shape=described(speech), goal=goal)


def spoken(seconds: tuple[int, ...], *, speakers: int) -> Speech:
    """Return an utterance of each length by each speaker."""
    random = np.random.default_rng(0)
    utterances = [
        Utterance(
            id=f"{speaker}-{length}",
            audio=InMemory(0.1 * random.standard_normal(length * RATE, dtype=np.float32)),
            text="A",
            speaker=str(speaker),
        )
        for length in seconds
        for speaker in range(speakers)
    ]
    return Speech(
        corpus=SpeechCorpus("white noise", RATE, {"train": utterances}),
        waveforms={utterance.id: torch.from_numpy(utterance.audio.read()) for utterance in utterances},
        seconds=float(sum(seconds) * speakers),
    )


def described(speech: Speech) -> str:
    """Return how much speech there is."""
    return f"{len(speech.waveforms)} utterances, {speech.seconds:g} s at {RATE:,} Hz"
