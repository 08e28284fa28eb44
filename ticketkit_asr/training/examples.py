"""From the utterances of a corpus to what a network hears and should write, the same way in every process."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ticketkit import DataError
from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.corpora.corpus import SpeechCorpus, Utterance
from ticketkit_asr.features.augment import spec_augment
from ticketkit_asr.features.cache import cached_features
from ticketkit_asr.features.extraction import measured
from ticketkit_asr.features.hearing import Hearing
from ticketkit_asr.sound.corruption import open_corruption
from ticketkit_asr.training.options import SpecAugmentOptions, TrainerOptions

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Example:
    """An utterance, ready for the network."""

    id: str
    features: Tensor
    """(frames, bins), float32."""
    target: Tensor
    """Label indices, int64."""
    text: str


@dataclass(frozen=True)
class Fault:
    """An utterance that cannot be used, and why."""

    id: str
    reason: str


class Examples(Dataset[Example | Fault]):
    """The utterances of a split that can be used, by (index, epoch); epoch None for what never changes.

    `features` holds those that are the same in every epoch; without them they are made when they are asked for.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        targets: Sequence[Tensor],
        frames: Sequence[int],
        hearing: Hearing,
        features: Sequence[Tensor] | None,
        augment: SpecAugmentOptions | None = None,
    ):
        self.utterances = utterances
        self.targets = targets
        self.frames = frames
        self._hearing = hearing
        self._features = features
        self._augment = augment

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, key: tuple[int, int | None]) -> Example | Fault:
        index, epoch = key
        utterance = self.utterances[index]
        try:
            kept = self._features
            features = self._hearing.features(utterance, epoch) if kept is None else kept[index]
        except DataError as error:
            return Fault(utterance.id, str(error))
        if self._augment is not None and epoch is not None:
            draw = f"augment/{self._hearing.seed}/{epoch}/{utterance.id}"
            features = spec_augment(features, self._augment, draw)
        return Example(utterance.id, features, self.targets[index], utterance.text)


def open_examples(
    corpus: SpeechCorpus, split: str, bundle: SpeechBundle, options: TrainerOptions, *, seed: int
) -> tuple[Examples, list[Fault]]:
    """Return the examples of a split, and the utterances that are left out because they cannot be used.

    Characters that the alphabet lacks are left out of the targets and logged with their counts; the texts keep them.
    Raises `DataError` naming utterances that cannot be used, unless `on_bad_utterance` is "skip".
    """
    utterances = corpus.split(split)
    if unknown := bundle.alphabet.unknown([utterance.text for utterance in utterances]):
        _log.warning("%s: characters that the recogniser cannot write, and how often: %s", split, unknown)
    training = split == "train"
    hearing = Hearing(
        bundle.extractor,
        corpus.sample_rate,
        seed,
        open_corruption(options.corruption, corpus, split=split, sample_rate=bundle.sample_rate),
        options.speed if training else None,
    )
    changes = training and hearing.changes
    usable, features, faults = list(range(len(utterances))), None, list[Fault]()
    if not changes:
        usable, features, faults = _heard(corpus, split, hearing, options)
    targets = {i: torch.tensor(bundle.alphabet.encode(utterances[i].text), dtype=torch.int64) for i in usable}
    frames = {
        i: len(features[place]) if features is not None else _frames(utterances[i], hearing)
        for place, i in enumerate(usable)
    }
    fitting, too_long = [], []
    for place, i in enumerate(usable):
        output = bundle.output_frames(frames[i])
        if bundle.objective.fits(targets[i].tolist(), output):
            fitting.append((place, i))
        else:
            too_long.append(Fault(utterances[i].id, f"{len(targets[i])} labels do not fit {output} output frames"))
    _refuse_or_log(split, faults + too_long, len(utterances), options)
    return (
        Examples(
            [utterances[i] for _, i in fitting],
            [targets[i] for _, i in fitting],
            [frames[i] for _, i in fitting],
            hearing,
            None if features is None else Picked(features, [place for place, _ in fitting]),
            options.augment if training else None,
        ),
        faults + too_long,
    )


def learn_statistics(corpus: SpeechCorpus, bundle: SpeechBundle, *, seed: int) -> None:
    """Let a bundle whose features are centred over the corpus learn those of the train split, undisturbed."""
    extractor = bundle.untrained_extractor
    if extractor.is_fitted:
        return
    hearing = Hearing(extractor, corpus.sample_rate, seed)
    waveforms = (hearing.waveform(utterance, None) for utterance in corpus.split("train"))
    bundle.learn_statistics(measured(extractor.spectra(waveform) for waveform in waveforms))


@dataclass(frozen=True)
class Picked(Sequence[Tensor]):
    """Some of a sequence's items, in an order, without a copy."""

    items: Sequence[Tensor]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self.items[self.places[index]]


def _heard(
    corpus: SpeechCorpus, split: str, hearing: Hearing, options: TrainerOptions
) -> tuple[list[int], Sequence[Tensor], list[Fault]]:
    """Return the features that never change, of which utterances they are, and the utterances that have none."""
    utterances = corpus.split(split)
    if options.features == "disk":
        cached = cached_features(
            corpus.digest,
            split,
            utterances,
            hearing.extractor,
            options.cache_dir,
            sample_rate=corpus.sample_rate,
            corruption=hearing.corruption,
            seed=hearing.seed,
        )
        return list(range(len(utterances))), cached, []
    usable, features, faults = [], [], []
    for index, utterance in enumerate(utterances):
        try:
            features.append(hearing.features(utterance, None))
            usable.append(index)
        except DataError as error:
            faults.append(Fault(utterance.id, str(error)))
    return usable, features, faults


def _frames(utterance: Utterance, hearing: Hearing) -> int:
    samples = utterance.audio.samples * hearing.extractor.sample_rate // hearing.recorded_at
    return hearing.extractor.frames(samples)


def _refuse_or_log(split: str, faults: Sequence[Fault], total: int, options: TrainerOptions) -> None:
    if not faults:
        return
    listed = "; ".join(f"{fault.id}: {fault.reason}" for fault in faults[:20])
    more = f"; and {len(faults) - 20} more" if len(faults) > 20 else ""
    if options.on_bad_utterance == "fail" or len(faults) == total:
        raise DataError(
            f"{len(faults)} of {total} utterances of {split} cannot be used (trainer option on_bad_utterance: skip "
            f"goes on without them; a smaller time stride fits more text): {listed}{more}"
        )
    _log.warning("%s: training goes on without %d of %d utterances: %s%s", split, len(faults), total, listed, more)
