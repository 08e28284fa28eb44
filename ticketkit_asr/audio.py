"""Sound files in, float32 samples out; and from one sample rate to another."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ticketkit import DataError
from ticketkit_asr.errors import BadAudioError
from ticketkit_asr.extras import require
from ticketkit_asr.torchaudio_shim import torchaudio

if TYPE_CHECKING:
    import torch

Waveform = NDArray[np.float32]
"""Samples of one channel in [-1, 1], shape (samples,)."""

Pcm = NDArray[np.int16]
"""Samples of one channel in 16 bits, shape (samples,)."""

_CUT_SHORT = re.compile(r"^data *: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""What libsndfile notes of a WAV file that ends before its header says; it then reports the frames that are there."""

_LENGTH_UNKNOWN = 0x7FFFF000
"""Lengths from here on are what programs write that stream a WAV file and do not know yet."""

OnBadAudio = Literal["fail", "skip"]
"""Stop at sound files that cannot be used, or go on without them and name them in the report."""


def read_audio(path: Path, *, sample_rate: int) -> Waveform:
    """Return the samples of a one-channel file recorded at `sample_rate` Hz.

    Raises `BadAudioError` naming the file when it cannot be read, holds fewer samples than its header promises, is
    empty, has several channels, or was recorded at another rate.
    """
    soundfile = require("soundfile", extra="asr")
    try:
        with soundfile.SoundFile(path) as file:
            rate, channels, promised, log = file.samplerate, file.channels, file.frames, file.extra_info
            samples: Waveform = file.read(dtype="float32")
    except (soundfile.SoundFileError, OSError) as error:
        raise BadAudioError(f"{path} cannot be read as audio: {error}") from error
    if channels != 1:
        raise BadAudioError(f"{path} has {channels} channels; one is needed")
    if rate != sample_rate:
        raise BadAudioError(f"{path} was recorded at {rate} Hz; the corpus is at {sample_rate} Hz")
    if len(samples) != promised:
        raise BadAudioError(f"{path} holds {len(samples)} samples; its header promises {promised}")
    if cut := _CUT_SHORT.search(log):
        promised, found = map(int, cut.groups())
        if found < promised < _LENGTH_UNKNOWN:
            raise BadAudioError(
                f"{path} is cut short: its header promises {promised} bytes of sound, {found} are there"
            )
    if not len(samples):
        raise BadAudioError(f"{path} holds no samples")
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
    """Return the waveform (..., samples) at `target` Hz, given at `source` Hz; the same tensor when both are equal."""
    if source == target:
        return waveform
    resampled: torch.Tensor = _resampler(source, target)(waveform)
    return resampled


@lru_cache(maxsize=8)
def _resampler(source: int, target: int) -> Any:
    return torchaudio().transforms.Resample(source, target)
