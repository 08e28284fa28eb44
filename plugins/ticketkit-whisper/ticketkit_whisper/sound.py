"""Sound at Whisper's sample rate."""

from functools import lru_cache
from math import gcd

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
"""What Whisper's features are computed from, in Hz."""
_ZEROS = 16
_ROLLOFF = 0.95


def resample(waveform: Tensor, *, source: int, target: int) -> Tensor:
    """Return the waveform (samples,) at `target` Hz, given at `source` Hz; the same tensor when both are equal.

    Band-limited interpolation: every output sample is a sum of input samples weighted by a sinc at the lower of the two
    Nyquist frequencies, under a Hann window of 16 zero crossings each side (Smith, Digital Audio Resampling).
    """
    if source == target:
        return waveform
    common = gcd(source, target)
    step, phases = source // common, target // common
    kernels, reach = _kernels(step, phases)
    length = -(-len(waveform) * phases // step)
    padded = torch.nn.functional.pad(waveform, (reach, reach + step))
    resampled = torch.nn.functional.conv1d(padded.view(1, 1, -1), kernels, stride=step)  # (1, phases, steps)
    return resampled[0].T.reshape(-1)[:length]


@lru_cache(maxsize=8)
def _kernels(step: int, phases: int) -> tuple[Tensor, int]:
    """Return a filter for each output sample of a period, shape (phases, 1, taps), and how far it looks back."""
    cutoff = _ROLLOFF * min(1.0, phases / step)
    reach = int(_ZEROS / cutoff) + 1
    taps = torch.arange(-reach, reach + step + 1, dtype=torch.float64)
    distance = (taps - torch.arange(phases, dtype=torch.float64)[:, None] * step / phases) * cutoff
    window = torch.cos(distance.clamp(-_ZEROS, _ZEROS) * torch.pi / _ZEROS / 2).square()
    return (torch.sinc(distance) * window * cutoff).float().unsqueeze(1), reach
