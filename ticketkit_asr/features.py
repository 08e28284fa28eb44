"""From a waveform to what a recogniser hears: log-spectra, normalised over the utterance."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ticketkit import DataError
from ticketkit_asr.backbones.options import FeatureOptions
from ticketkit_asr.torchaudio_shim import torchaudio

_MEL_FLOOR = 1e-2
"""Added to mel magnitudes before the logarithm: about a quiet room's noise, lest silence outweigh speech."""


@dataclass(frozen=True)
class FeatureExtractor:
    """Waveforms at `sample_rate` Hz to normalised features; plain facts, so that it pickles and hashes."""

    options: FeatureOptions
    sample_rate: int

    @property
    def bins(self) -> int:
        """Features in a frame."""
        return self.options.bins(self.sample_rate)

    def frames(self, samples: int) -> int:
        """Return the number of frames of a waveform of `samples` samples; windows are centred on 0, hop, 2 hop, …"""
        return samples // self.options.hop(self.sample_rate) + 1

    def __call__(self, waveform: Tensor) -> Tensor:
        """Return the features (frames, bins) of a waveform (samples,), with mean 0 and deviation 1 over the utterance.

        Raises `DataError` when the waveform is too short to be reflected at its ends, by half an FFT.
        """
        needed = self.options.fft(self.sample_rate) // 2 + 1
        if len(waveform) < needed:
            raise DataError(f"{len(waveform)} samples are too few for features; at least {needed} are needed")
        magnitude: Tensor = _transform(self.options, self.sample_rate)(waveform)  # (bins, frames)
        features = _compressed(magnitude, self.options).T.contiguous()
        return standardised(centred_by_bin(features) if self.options.centre == "bin" else features)


def standardised(features: Tensor) -> Tensor:
    """Return the features shifted and scaled to mean 0 and deviation 1; constant features become zeros."""
    centred = features - features.mean()
    return centred / centred.square().mean().sqrt().clamp_min(1e-5)


def centred_by_bin(features: Tensor) -> Tensor:
    """Return the features (frames, bins) without each bin's mean over the utterance."""
    return features - features.mean(0)


def _compressed(magnitude: Tensor, options: FeatureOptions) -> Tensor:
    return magnitude.log1p() if options.kind == "log_spectrogram" else (magnitude + _MEL_FLOOR).log()


@lru_cache(maxsize=8)
def _transform(options: FeatureOptions, sample_rate: int) -> Any:
    """Return the torchaudio transform from a waveform (samples,) to magnitudes (bins, frames)."""
    transforms = torchaudio().transforms
    shape: dict[str, Any] = {
        "n_fft": options.fft(sample_rate),
        "win_length": options.window(sample_rate),
        "hop_length": options.hop(sample_rate),
        "window_fn": torch.hamming_window,
        "power": 1.0,
    }
    if options.kind == "log_spectrogram":
        return transforms.Spectrogram(**shape)
    return transforms.MelSpectrogram(sample_rate=sample_rate, n_mels=options.mels, **shape)
