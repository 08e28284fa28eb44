"""What every speech corpus is: utterances in train, dev and test splits, and the facts of them worth reporting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Protocol

from ticketkit import ConfigError
from ticketkit_asr.audio import Waveform
from ticketkit_asr.text import ENGLISH

SPLITS = ("train", "dev", "test")


class Audio(Protocol):
    """Sound that can be read, as often as needed: held in memory, or a stretch of a file."""

    @property
    def samples(self) -> int:
        """The number of samples that `read` returns."""
        ...

    def read(self) -> Waveform:
        """Return the samples, or raise `DataError` naming the file that cannot be read."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Audio that is already there."""

    waveform: Waveform

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.waveform)

    def read(self) -> Waveform:
        """Return the samples."""
        return self.waveform


@dataclass(frozen=True, eq=False)
class Utterance:
    """Somebody says something; `id` is unique within the corpus."""

    id: str
    audio: Audio
    text: str
    speaker: str


@dataclass(frozen=True, eq=False)
class SpeechCorpus:
    """Utterances recorded at `sample_rate` Hz; `skipped` names the files left out as unreadable."""

    name: str
    sample_rate: int
    splits: Mapping[str, Sequence[Utterance]]
    skipped: tuple[str, ...] = ()

    def split(self, name: str) -> Sequence[Utterance]:
        """Return the utterances of `train`, `dev` or `test`; raises `ConfigError` for any other name."""
        if name not in self.splits:
            raise ConfigError(f"corpus {self.name!r} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]

    def describe(self) -> dict[str, Any]:
        """Return JSON-able facts: sample rate, digest of the content, skipped files and `split_facts` of each split."""
        return {
            "name": self.name,
            "sample_rate": self.sample_rate,
            "digest": self.digest,
            "skipped": {"count": len(self.skipped), "files": list(self.skipped)},
            "splits": {name: split_facts(split, self.sample_rate) for name, split in self.splits.items()},
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 over split, id, speaker, text and samples of every utterance, in order."""
        content = sha256()
        for name, utterances in self.splits.items():
            for utterance in utterances:
                waveform = utterance.audio.read()
                head = [name, utterance.id, utterance.speaker, utterance.text, str(len(waveform))]
                content.update("\0".join(head).encode() + b"\0")
                content.update(waveform.astype("<f4").tobytes())
        return content.hexdigest()


def split_facts(utterances: Sequence[Utterance], sample_rate: int) -> dict[str, Any]:
    """Return how much a split holds, and how often characters occur that the paper's alphabet cannot write."""
    seconds = sum(utterance.audio.samples for utterance in utterances) / sample_rate
    return {
        "utterances": len(utterances),
        "words": sum(len(utterance.text.split()) for utterance in utterances),
        "hours": round(seconds / 3600, 4),
        "speakers": len({utterance.speaker for utterance in utterances}),
        "out_of_alphabet": ENGLISH.unknown([utterance.text for utterance in utterances]),
    }
