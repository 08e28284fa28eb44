"""From the sound of utterances to the features that a network hears, one by one and as a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ticketkit_asr.corpora.corpus import Utterance
from ticketkit_asr.features.extraction import FeatureExtractor
from ticketkit_asr.sound.audio import resample
from ticketkit_asr.sound.corruption import Corruption, corrupted
from ticketkit_asr.sound.options import SpeedOptions
from ticketkit_asr.sound.speed import at_speed, speed_factor


@dataclass(frozen=True)
class Hearing:
    """From the sound of one utterance to features: speed, rooms and noise, spectra."""

    extractor: FeatureExtractor
    recorded_at: int
    seed: int
    corruption: Corruption | None = None
    speed: SpeedOptions | None = None

    @property
    def changes(self) -> bool:
        """Whether an utterance sounds otherwise in every epoch."""
        return self.corruption is not None or self.speed is not None

    def waveform(self, utterance: Utterance, epoch: int | None) -> Tensor:
        """Return the samples (samples,) at the extractor's rate; without an epoch the same every time."""
        rate = self.extractor.sample_rate
        waveform = resample(torch.from_numpy(utterance.audio.read()), source=self.recorded_at, target=rate)
        if self.speed is not None and epoch is not None:
            factor = speed_factor(self.speed, utterance_id=utterance.id, seed=self.seed, epoch=epoch)
            waveform = at_speed(waveform, factor, sample_rate=rate)
        return corrupted(waveform, self.corruption, utterance_id=utterance.id, seed=self.seed, epoch=epoch)

    def features(self, utterance: Utterance, epoch: int | None) -> Tensor:
        """Return the features (frames, bins)."""
        return self.extractor(self.waveform(utterance, epoch))


def collate(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the features padded with zeros to (batch, frames, bins), and the frames of each: (batch,), int64."""
    lengths = torch.tensor([len(frames) for frames in features])
    return pad_sequence(list(features), batch_first=True), lengths
