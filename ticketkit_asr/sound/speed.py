"""Speech played faster and slower, pitch included: three voices out of one (Ko et al. 2015)."""

from random import Random

from torch import Tensor

from ticketkit_asr.sound.audio import resample
from ticketkit_asr.sound.options import SpeedOptions


def speed_factor(options: SpeedOptions, *, utterance_id: str, seed: int, epoch: int) -> float:
    """Return how many times faster an utterance is played: the same for the same arguments, in whatever order."""
    return Random(f"speed/{seed}/{epoch}/{utterance_id}").choice(options.factors)


def at_speed(waveform: Tensor, factor: float, *, sample_rate: int) -> Tensor:
    """Return the waveform (samples,) at `sample_rate` Hz, `factor` times as fast and as high; itself for the factor 1.

    About samples / factor samples are left. Resampled with torchaudio's filter, which is kept from call to call.
    """
    return resample(waveform, source=round(factor * sample_rate), target=sample_rate)
