"""Sound files in, float32 samples out; and from one sample rate to another."""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ticketkit import DataError
from ticketkit_asr.errors import BadAudioError
from ticketkit_asr.sound.files import Fault, FaultyAudioError, check_finite, opened, sound_length
from ticketkit_asr.torchaudio_shim import torchaudio

if TYPE_CHECKING:
    import torch

Waveform = NDArray[np.float32]
"""Samples of one channel in [-1, 1], shape (samples,)."""

Pcm = NDArray[np.int16]
"""Samples of one channel in 16 bits, shape (samples,)."""

OnBadAudio = Literal["fail", "skip"]
"""Stop at sound files that cannot be used, or go on without them and name them in the report."""

_LARGEST_TERM = 2000
"""Ratios of sample rates are taken in terms up to this: 11127 Hz to 16 kHz would need a filter bank of 700 MB."""


def read_audio(path: Path, *, sample_rate: int) -> Waveform:
    """Return the samples of a one-channel file recorded at `sample_rate` Hz.

    Raises `BadAudioError` naming the file when it cannot be read, holds fewer samples than its header promises, is
    empty, has several channels, was recorded at another rate, or holds samples that are not finite.
    """
    with opened(path) as file:
        rate, channels, promised = file.samplerate, file.channels, sound_length(path, file)
        samples: Waveform = file.read(dtype="float32")
    if channels != 1:
        raise FaultyAudioError(Fault.CHANNELS, f"{path} has {channels} channels; one is needed")
    if rate != sample_rate:
        raise FaultyAudioError(Fault.RATE, f"{path} was recorded at {rate} Hz; the corpus is at {sample_rate} Hz")
    if len(samples) != promised:
        raise FaultyAudioError(Fault.CUT, f"{path} holds {len(samples)} samples; its header promises {promised}")
    check_finite(path, samples)
    return samples


def read_all(
    paths: Sequence[Path], *, sample_rate: int, on_bad_audio: OnBadAudio
) -> tuple[dict[Path, Waveform], tuple[str, ...]]:
    """Return the samples of each file that can be used, and the names of those that cannot.

    Raises `DataError` naming every unusable file and its fault when `on_bad_audio` is "fail".
    """
    waveforms: dict[Path, Waveform] = {}
    faults: dict[Path, BadAudioError] = {}
    for path in paths:
        try:
            waveforms[path] = read_audio(path, sample_rate=sample_rate)
        except BadAudioError as error:
            faults[path] = error
    if faults and on_bad_audio == "fail":
        raise DataError(
            f"{len(faults)} of {len(paths)} sound files cannot be used (on_bad_audio: skip goes on without them): "
            + "; ".join(map(str, faults.values()))
        )
    return waveforms, tuple(map(str, faults))


def split_pcm(samples: Pcm, lengths: Sequence[int]) -> list[Pcm]:
    """Return consecutive stretches of `lengths` samples."""
    return np.split(samples, np.cumsum(lengths)[:-1])


def from_pcm(samples: Pcm) -> Waveform:
    """Return 16-bit samples as float32 in [-1, 1)."""
    return samples.astype(np.float32) / np.float32(32768)


def resample(waveform: "torch.Tensor", *, source: int, target: int) -> "torch.Tensor":
    """Return the waveform (..., samples) at `target` Hz, given at `source` Hz; the same tensor when both are equal.

    Any two rates will do: where their ratio has terms above 2000, the nearest one with smaller terms is taken (for
    11127 Hz to 16 kHz it is off by less than one part in a million).
    """
    if source == target:
        return waveform
    resampled: torch.Tensor = _resampler(*_ratio(source, target))(waveform)
    return resampled


def _ratio(source: int, target: int) -> tuple[int, int]:
    """Return the ratio of two rates in terms of at most `_LARGEST_TERM`."""
    low, high = sorted((source, target))
    ratio = Fraction(low, high).limit_denominator(_LARGEST_TERM)
    terms = max(ratio.numerator, 1), ratio.denominator
    return terms if source < target else terms[::-1]


@lru_cache(maxsize=8)
def _resampler(source: int, target: int) -> Any:
    return torchaudio().transforms.Resample(source, target)
