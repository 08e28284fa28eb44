"""Speech as it sounds in a room: convolved with the room's impulse response (Ko et al. 2017)."""

import math
from dataclasses import dataclass
from random import Random

from torch import Tensor
from torch.nn.functional import pad

from ticketkit import DataError
from ticketkit_asr.sound.folder import SoundLibrary, read_whole
from ticketkit_asr.sound.noise import power
from ticketkit_asr.sound.options import RoomOptions
from ticketkit_asr.torchaudio_shim import torchaudio

_SMALLEST_FFT = 8192


@dataclass(frozen=True, eq=False)
class Rooms:
    """The impulse responses that one split may hear."""

    options: RoomOptions
    library: SoundLibrary
    sample_rate: int

    def __post_init__(self) -> None:
        """Raise `DataError` naming responses that lack the channel asked for."""
        channel = self.options.channel
        sounds = [sound for of_type in self.library.by_type.values() for sound in of_type]
        if channel is not None and (lacking := [sound.name for sound in sounds if sound.channels <= channel]):
            raise DataError(f"room: no channel {channel} (counted from 0) in {', '.join(lacking)}; leave channel out")

    def heard(self, speech: Tensor, random: Random) -> Tensor:
        """Return `speech` (samples,) as it is heard in a room drawn, of the same length, timing and power.

        Raises `DataError` when the response is silent.
        """
        sound = self.library.draw(random)
        channel = random.randrange(sound.channels) if self.options.channel is None else self.options.channel
        response = read_whole(sound, sample_rate=self.sample_rate, channel=channel)
        if not response.any():
            raise DataError(f"room: channel {channel} of {sound.path} is silent; leave it out of the folder")
        return reverberated(speech, response)


def reverberated(speech: Tensor, response: Tensor) -> Tensor:
    """Return the speech (samples,) convolved with an impulse response (samples,), of the same length and power.

    The greatest sample of the response, which is the direct path, is put at time 0: what was said at a time is heard at
    that time, and what rings on after the end of the speech is cut off. Silence stays silence.
    """
    direct = int(response.abs().argmax())
    heard = convolved(speech, response)[direct : direct + len(speech)]
    reached = power(heard)
    return heard * math.sqrt(power(speech) / reached) if reached else heard


def convolved(speech: Tensor, response: Tensor) -> Tensor:
    """Return the convolution of the speech (samples,) with a response (samples,), and perhaps zeros after it.

    Block by block, each of which rings on into the next (overlap-add), in FFTs whose length is a power of two: twice as
    fast as one long FFT, and up to ten times where the length has large prime factors.
    """
    size = _power_of_two(min(max(4 * len(response), _SMALLEST_FFT), len(speech) + len(response) - 1))
    step = size - len(response) + 1
    blocks = pad(speech, (0, -len(speech) % step)).view(-1, step)
    pieces: Tensor = torchaudio().functional.fftconvolve(blocks, response.unsqueeze(0))  # (blocks, size)
    if len(pieces) == 1:
        return pieces[0]
    tails = pad(pieces[:, step:], (0, 2 * step - size, 1, 0))
    return (pad(pieces[:, :step], (0, 0, 0, 1)) + tails).flatten()


def _power_of_two(number: int) -> int:
    """Return the least power of two from `number` on."""
    return 1 << (number - 1).bit_length()
