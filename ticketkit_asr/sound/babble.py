"""Babble: other people of the same split, talking all at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from ticketkit import DataError
from ticketkit_asr.corpora.corpus import Utterance
from ticketkit_asr.sound.audio import resample
from ticketkit_asr.sound.noise import PassedOver, at_snr, power, stretch_of
from ticketkit_asr.sound.options import BabbleOptions


@dataclass(frozen=True, eq=False)
class Talkers:
    """The utterances of one split, by speaker, as voices in the background of each other."""

    options: BabbleOptions
    by_speaker: Mapping[str, Sequence[Utterance]]
    """Speakers and their utterances, both in alphabetical order."""
    speaker_of: Mapping[str, str]
    """Who says each utterance."""
    recorded_at: int
    """The rate of the utterances, in Hz."""
    sample_rate: int
    """The rate of what is returned, in Hz."""
    passed_over: PassedOver = field(default_factory=PassedOver)

    def drawn_for(self, speech: Tensor, random: Random, *, utterance_id: str) -> Tensor:
        """Return babble of the length of `speech` (samples,), scaled to one of the ratios asked for.

        Nobody in it is the speaker of the utterance, no two are the same, all have the same power. The ratio is drawn
        last: with another list of ratios the same babble is heard, at another level.
        """
        if utterance_id not in self.speaker_of:
            raise DataError(f"babble: no utterance {utterance_id!r} in the split, so its speaker cannot be left out")
        others = [speaker for speaker in self.by_speaker if speaker != self.speaker_of[utterance_id]]
        voices = [
            self._voice(self.by_speaker[speaker], len(speech), random)
            for speaker in random.sample(others, self.options.talkers)
        ]
        babble = torch.stack([voice / math.sqrt(power(voice)) for voice in voices]).sum(0)
        snr_db = random.choice(self.options.snr_db)
        return at_snr(babble, speech, snr_db, sample_rate=self.sample_rate, level=self.options.level)

    def _voice(self, utterances: Sequence[Utterance], samples: int, random: Random) -> Tensor:
        def draw() -> tuple[str, Tensor]:
            utterance = random.choice(utterances)
            waveform = torch.from_numpy(utterance.audio.read())
            waveform = resample(waveform, source=self.recorded_at, target=self.sample_rate)
            return utterance.id, stretch_of(waveform, samples, random, sample_rate=self.sample_rate)

        return self.passed_over.first_audible(draw, what="babble")


def talkers_of(
    utterances: Sequence[Utterance], options: BabbleOptions, *, recorded_at: int, sample_rate: int
) -> Talkers:
    """Return the utterances of a split, recorded at `recorded_at` Hz, as talkers at `sample_rate` Hz.

    Raises `DataError` when there are not enough speakers for everybody to hear `talkers` others.
    """
    by_speaker: dict[str, list[Utterance]] = {speaker: [] for speaker in sorted({u.speaker for u in utterances})}
    for utterance in sorted(utterances, key=lambda utterance: utterance.id):
        by_speaker[utterance.speaker].append(utterance)
    if len(by_speaker) <= options.talkers:
        raise DataError(
            f"babble of {options.talkers} talkers needs {options.talkers + 1} speakers in the split; there are "
            f"{len(by_speaker)}: {', '.join(list(by_speaker)[:10]) or 'none'}; ask for fewer talkers"
        )
    return Talkers(
        options=options,
        by_speaker=by_speaker,
        speaker_of={utterance.id: utterance.speaker for utterance in utterances},
        recorded_at=recorded_at,
        sample_rate=sample_rate,
    )
