"""What every speech corpus is: utterances in train, dev and test splits, and the facts of them worth reporting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Protocol

from ticketkit import ConfigError
from ticketkit_asr.sound.audio import Waveform
from ticketkit_asr.text.alphabet import ENGLISH

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

    def fingerprint(self) -> bytes:
        """Return what tells this sound from others: the samples where they are at hand, else where they come from."""
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

    def fingerprint(self) -> bytes:
        """Return the number of samples, and the samples."""
        return f"{len(self.waveform)}\0".encode() + self.waveform.astype("<f4").tobytes()


@dataclass(frozen=True, eq=False, slots=True)
class Utterance:
    """Somebody says something; `id` is unique within the corpus."""

    id: str
    audio: Audio
    text: str
    speaker: str
    lang: str | None = None


@dataclass(frozen=True, eq=False)
class SpeechCorpus:
    """Utterances at `sample_rate` Hz, and what was left out of them."""

    name: str
    sample_rate: int
    splits: Mapping[str, Sequence[Utterance]]
    skipped: tuple[str, ...] = ()
    """Files left out because they cannot be used."""
    dropped: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """Of each split: reason -> ids of the utterances left out."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else a report should say of it, JSON-able."""

    def split(self, name: str) -> Sequence[Utterance]:
        """Return the utterances of `train`, `dev` or `test`; raises `ConfigError` for any other name."""
        if name not in self.splits:
            raise ConfigError(f"corpus {self.name!r} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]

    def describe(self) -> dict[str, Any]:
        """Return JSON-able facts: sample rate, digest, files and utterances left out, `split_facts` of each split."""
        return {
            **self.facts,
            "name": self.name,
            "sample_rate": self.sample_rate,
            "digest": self.digest,
            "skipped": {"count": len(self.skipped), "files": list(self.skipped)},
            "dropped": {
                split: {reason: len(ids) for reason, ids in reasons.items()} for split, reasons in self.dropped.items()
            },
            "splits": {name: split_facts(split, self.sample_rate) for name, split in self.splits.items()},
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 over split, id, speaker, text and fingerprint of every utterance, in order.

        Sound in memory counts with its samples. Sound in files is not read: it counts with where it is in its file,
        and with the digest of the file that `prepare_corpus` recorded, or else the file's size and time stamp.
        """
        content = sha256()
        for name, utterances in self.splits.items():
            for utterance in utterances:
                head = f"{name}\0{utterance.id}\0{utterance.speaker}\0{utterance.text}\0"
                content.update(head.encode())
                content.update(utterance.audio.fingerprint())
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
