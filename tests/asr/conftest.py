"""Fixtures that several files use: tiny corpora made on the spot, and the real recordings where they are."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from ticketkit_asr.backbones.options import CnnLstmOptions
from ticketkit_asr.corpora.corpus import InMemory, SpeechCorpus, Utterance

REPOSITORY = Path(__file__).parents[2]
RATE = 8_000


def tone(frequency: float, *, seconds: float = 0.3, rate: int = RATE) -> NDArray[np.float32]:
    """Return a decaying sine wave."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time) * np.exp(-3 * time)).astype(np.float32)


@pytest.fixture(scope="session")
def tones() -> Callable[..., NDArray[np.float32]]:
    return tone


@pytest.fixture
def fsdd_root(tmp_path: Path) -> Path:
    """A folder that holds fsdd/recordings of two speakers: every digit in the takes 0, 1, 5, 6, 10, 11."""
    folder = tmp_path / "data" / "fsdd" / "recordings"
    folder.mkdir(parents=True)
    for digit in range(10):
        for number, speaker in enumerate(("ann", "bob")):
            for take in (0, 1, 5, 6, 10, 11):
                wave = tone(200 + 100 * digit + 37 * number + take, seconds=0.1)
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", wave, RATE, subtype="PCM_16")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real recordings; skips where it is not."""
    root = Path(os.environ.get("TICKETKIT_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (root / "fsdd" / "recordings").is_dir():
        pytest.skip(f"no real recordings: {root}/fsdd/recordings is missing; set TICKETKIT_DATA")
    return root


@pytest.fixture(scope="session")
def two_tones() -> SpeechCorpus:
    return two_tones_corpus()


def two_tones_corpus() -> SpeechCorpus:
    """Two words, each a tone: learnt in seconds. Dev and test differ from train in length and order."""

    def utterance(split: str, index: int, words: str) -> Utterance:
        parts = [tone({"A": 500.0, "B": 1500.0}[word], seconds=0.25 + 0.01 * index) for word in words]
        return Utterance(
            id=f"{split}-{index}", audio=InMemory(np.concatenate(parts)), text=" ".join(words), speaker="s"
        )

    texts = {"train": ["AB", "BA", "A", "B", "ABA", "BAB", "AA", "BB"], "dev": ["BA", "AB", "B"], "test": ["ABB", "A"]}
    splits = {
        split: [utterance(split, index, words) for index, words in enumerate(of_split)]
        for split, of_split in texts.items()
    }
    return SpeechCorpus(name="two_tones", sample_rate=RATE, splits=splits)


@pytest.fixture(scope="session")
def tiny() -> CnnLstmOptions:
    """A CNN-LSTM of a few thousand weights with all its parts."""
    return CnnLstmOptions.model_validate(
        {
            "features": {"kind": "log_mel", "mels": 12},
            "convs": [
                {"channels": 4, "kernel": (5, 5), "stride": (2, 2)},
                {"channels": 4, "kernel": (3, 3), "stride": (2, 1)},
            ],
            "hidden": 12,
            "layers": 2,
        }
    )
