"""From the utterances of a corpus to what a network trains on: features and targets, computed once."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ticketkit import DataError
from ticketkit_asr.audio import resample
from ticketkit_asr.backbones.bundle import CtcBundle
from ticketkit_asr.corpora.corpus import Utterance

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Example:
    """An utterance, ready for the network."""

    features: Tensor
    """(frames, bins), float32."""
    target: Tensor
    """Label indices, int64."""
    text: str


def prepare(utterances: Sequence[Utterance], bundle: CtcBundle, *, sample_rate: int) -> list[Example]:
    """Return an example of each utterance, resampled from `sample_rate` Hz to the bundle's.

    Characters that the bundle's alphabet lacks are left out of the targets and logged as a warning with their counts;
    the texts keep them. Raises `DataError` naming utterances whose text has more labels than CTC can fit.
    """
    if unknown := bundle.alphabet.unknown([utterance.text for utterance in utterances]):
        _log.warning("characters that the recogniser cannot write, and how often they occur: %s", unknown)
    examples = [_example(utterance, bundle, sample_rate) for utterance in utterances]
    too_short = [
        f"{utterance.id} ({bundle.output_frames(len(example.features))} frames for {needed_frames(example.target)})"
        for utterance, example in zip(utterances, examples, strict=True)
        if bundle.output_frames(len(example.features)) < needed_frames(example.target)
    ]
    if too_short:
        raise DataError(
            f"{len(too_short)} of {len(examples)} utterances are too short for their text; use a smaller time stride, "
            f"or leave them out: {', '.join(too_short)}"
        )
    return examples


def _example(utterance: Utterance, bundle: CtcBundle, sample_rate: int) -> Example:
    waveform = resample(torch.from_numpy(utterance.audio.read()), source=sample_rate, target=bundle.sample_rate)
    target = torch.tensor(bundle.alphabet.encode(utterance.text), dtype=torch.int64)
    return Example(features=bundle.features(waveform), target=target, text=utterance.text)


def needed_frames(target: Tensor) -> int:
    """Return the fewest frames that can spell a target in CTC: one a label, and a blank between equal neighbours."""
    return len(target) + int((target[1:] == target[:-1]).sum())


def collate(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the features padded with zeros to (batch, frames, bins), and the frames of each: (batch,), int64."""
    lengths = torch.tensor([len(frames) for frames in features])
    return pad_sequence(list(features), batch_first=True), lengths
