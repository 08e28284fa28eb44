"""From the utterances of a corpus to what the network trains on, and which of them train together."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import torch
from torch import Tensor

from ticketkit import DataError
from ticketkit_whisper.bundle import WhisperBundle
from ticketkit_whisper.sound import resample

_log = logging.getLogger(__name__)


class Audio(Protocol):
    """Sound that can be read."""

    def read(self) -> Any:
        """Return the samples: a NumPy array of float32 in [-1, 1], shape (samples,)."""
        ...


class Utterance(Protocol):
    """Somebody says something."""

    @property
    def id(self) -> str:
        """A name that is unique within the corpus."""
        ...

    @property
    def audio(self) -> Audio:
        """What is heard."""
        ...

    @property
    def text(self) -> str:
        """What is said."""
        ...


class SpeechCorpus(Protocol):
    """What the trainer needs of a corpus; the speech corpora that come with ticketkit have it."""

    @property
    def sample_rate(self) -> int:
        """The rate of all its sound, in Hz."""
        ...

    def split(self, name: str) -> Sequence[Utterance]:
        """Return the utterances of `train`, `dev` or `test`."""
        ...


@dataclass(frozen=True, eq=False)
class Example:
    """An utterance, ready for the network."""

    features: Tensor
    """(mels, frames), float32."""
    target: Tensor
    """Labels without start and end, int64."""
    text: str


def prepare(utterances: Sequence[Utterance], bundle: WhisperBundle, *, sample_rate: int) -> list[Example]:
    """Return an example of each utterance, resampled from `sample_rate` Hz to the bundle's.

    Characters without a label are left out of the targets and logged; the texts keep them, so they count as errors.
    Raises `DataError` naming every utterance whose sound or text is too long for the network.
    """
    if not utterances:
        raise DataError("the corpus holds no utterance in one of its splits; train, dev and test each need some")
    if unknown := bundle.characters.unknown(utterance.text for utterance in utterances):
        _log.warning("characters that the recogniser cannot write: %r", unknown)
    examples, faults = [], []
    for utterance in utterances:
        try:
            examples.append(_example(utterance, bundle, sample_rate))
        except DataError as error:
            faults.append(f"{utterance.id}: {error}")
    if faults:
        raise DataError(f"{len(faults)} of {len(utterances)} utterances cannot be used; the first: {faults[0]}")
    return examples


def _example(utterance: Utterance, bundle: WhisperBundle, sample_rate: int) -> Example:
    target = torch.tensor(bundle.characters.encode(utterance.text), dtype=torch.int64)
    if len(target) >= bundle.longest:
        raise DataError(f"its text has {len(target)} characters; this Whisper writes at most {bundle.longest - 1}")
    waveform = resample(torch.as_tensor(utterance.audio.read()), source=sample_rate, target=bundle.sample_rate)
    return Example(bundle.features(waveform), target, utterance.text)


def batches(examples: int, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return every index below `examples` once, in batches; the order depends on seed and epoch alone.

    Padding is the same for all utterances, so batches need not be of similar length.
    """
    order = list(range(examples))
    Random(f"whisper/{seed}/{epoch}").shuffle(order)
    return [order[start : start + batch_size] for start in range(0, examples, batch_size)]
