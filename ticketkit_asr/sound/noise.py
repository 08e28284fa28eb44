"""Noise added to speech at a true signal-to-noise ratio.

SNR = 10 log10(P(speech) / P(noise)), in dB, where P is the mean square of the samples. The noise is scaled, the speech
never. Sums are float and may exceed 1: nothing is clipped here, and who writes them to a file of integers must scale
them first.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import pad

from ticketkit import DataError
from ticketkit_asr.errors import BadAudioError
from ticketkit_asr.sound.folder import SoundLibrary, read_stretch
from ticketkit_asr.sound.options import Level, NoiseOptions

_log = logging.getLogger(__name__)

SILENCE = 1e-10
"""Power up to which a stretch of noise is silent, −100 dB of full scale: what decoding leaves of digital zeros."""

FADE_SECONDS = 0.02
"""How long the end of a looped noise overlaps its beginning."""

GATE_SECONDS, GATE_DB = 0.025, 40.0
"""Frames of 25 ms are active that are at most 40 dB weaker than the strongest one (STOI's bound, Taal et al. 2011)."""

_MOST_DRAWS = 100


def power(waveform: Tensor) -> float:
    """Return the mean square of the samples (samples,), added up in double precision; 0 when there are none.

    >>> power(torch.tensor([3.0, -4.0]))
    12.5
    """
    norm: Tensor = torch.linalg.vector_norm(waveform, dtype=torch.float64)
    return norm.item() ** 2 / max(len(waveform), 1)


def active_power(waveform: Tensor, *, sample_rate: int) -> float:
    """Return the mean square of the samples that lie in active frames.

    Frames of `GATE_SECONDS` follow one another, the last may be shorter; active are those whose own mean square is at
    most `GATE_DB` below the greatest. Silence before, between and after words thus counts for nothing.
    """
    if not len(waveform):
        return 0.0
    size = max(1, round(GATE_SECONDS * sample_rate))
    missing = -len(waveform) % size
    energies = pad(waveform.double().square(), (0, missing)).view(-1, size).sum(1)
    samples = torch.full_like(energies, size)
    samples[-1] -= missing
    means = energies / samples
    active = means >= means.max() * 10 ** (-GATE_DB / 10)
    return (energies[active].sum() / samples[active].sum()).item()


def at_snr(noise: Tensor, speech: Tensor, snr_db: float, *, sample_rate: int, level: Level = "utterance") -> Tensor:
    """Return the noise scaled so that speech + noise has a signal-to-noise ratio of `snr_db`; both are (samples,).

    With the level `active` the power of speech is that of its active frames; the power of noise is always that of all
    its samples. Raises `DataError` when either is silent: no scale reaches the ratio.
    """
    if len(noise) != len(speech):
        raise DataError(f"noise of {len(noise)} samples does not fit speech of {len(speech)}; cut or loop it first")
    of_speech = power(speech) if level == "utterance" else active_power(speech, sample_rate=sample_rate)
    of_noise = power(noise)
    for name, value in (("speech", of_speech), ("noise", of_noise)):
        if not (value > 0 and math.isfinite(value)):
            raise DataError(f"the {name} has a power of {value}; no scale reaches an SNR of {snr_db:g} dB")
    return noise * math.sqrt(of_speech / of_noise / 10 ** (snr_db / 10))


def stretch_of(sound: Tensor, samples: int, random: Random, *, sample_rate: int) -> Tensor:
    """Return `samples` samples of a sound from a random place on; one that is too short is looped."""
    if len(sound) >= samples:
        start = random.randrange(len(sound) - samples + 1)
        return sound[start : start + samples]
    return looped(sound, samples, start=random.randrange(len(sound)), fade=round(FADE_SECONDS * sample_rate))


def looped(sound: Tensor, samples: int, *, start: int, fade: int) -> Tensor:
    """Return `samples` samples of a sound (samples,) that goes round and round, from `start` on.

    The last `fade` samples of each round fade into the first ones of the next; at most half the sound does. Both are
    taken for independent: their squared weights add up to 1, so that the power stays.
    """
    fade = min(fade, len(sound) // 2)
    period = len(sound) - fade
    angle = torch.arange(fade) * (torch.pi / 2 / max(fade, 1))
    joint = sound[period:] * angle.cos() + sound[:fade] * angle.sin()
    once = torch.cat([joint, sound[fade:period]])
    start %= period
    return once.repeat(-(-(start + samples) // period))[start : start + samples]


@dataclass(frozen=True, eq=False)
class PassedOver:
    """Draws that gave nothing to hear, by name: drawn again, counted here (in this process), logged once a name."""

    counts: Counter[str] = field(default_factory=Counter)

    def first_audible(self, draw: Callable[[], tuple[str, Tensor]], *, what: str, skip_bad: bool = False) -> Tensor:
        """Return the first stretch drawn that is no silence, and with `skip_bad` can be read at all.

        Raises `DataError` when a hundred draws gave none.
        """
        for _ in range(_MOST_DRAWS):
            try:
                name, stretch = draw()
            except BadAudioError as error:
                if not skip_bad:
                    raise
                name, stretch = str(error), torch.zeros(1)
            if power(stretch) > SILENCE:
                return stretch
            if name not in self.counts:
                _log.info("%s: nothing to hear in a stretch of %s; another one is drawn", what, name)
            self.counts[name] += 1
        raise DataError(
            f"{what}: {_MOST_DRAWS} draws gave nothing to hear, the last of them {name}; leave out what is silent"
        )


@dataclass(frozen=True, eq=False)
class Noises:
    """Recorded noises of one split, ready to be added."""

    options: NoiseOptions
    library: SoundLibrary
    sample_rate: int
    passed_over: PassedOver = field(default_factory=PassedOver)

    def drawn_for(self, speech: Tensor, random: Random) -> Tensor:
        """Return noise of the length of `speech` (samples,), scaled to one of the ratios asked for.

        The ratio is drawn last: with another list of ratios the same stretch is heard, at another level.
        """

        def draw() -> tuple[str, Tensor]:
            sound = self.library.draw(random)
            waveform = read_stretch(sound, len(speech), random, sample_rate=self.sample_rate)
            return sound.name, stretch_of(waveform, len(speech), random, sample_rate=self.sample_rate)

        skip_bad = self.options.on_bad_audio == "skip"
        noise = self.passed_over.first_audible(draw, what="noise", skip_bad=skip_bad)
        snr_db = random.choice(self.options.snr_db)
        return at_snr(noise, speech, snr_db, sample_rate=self.sample_rate, level=self.options.level)
