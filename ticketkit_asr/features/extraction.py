"""From a waveform to what a recogniser hears: log-spectra, normalised over the utterance or over the corpus."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ticketkit import ConfigError, DataError
from ticketkit_asr.backbones.options import FeatureOptions
from ticketkit_asr.torchaudio_shim import torchaudio

_MEL_FLOOR = 1e-2
"""Added to mel magnitudes before the logarithm: about a quiet room's noise, lest silence outweigh speech."""

_LEAST_DEVIATION = 1e-5
"""Smaller deviations count as this: features that never change become zeros."""


@dataclass(frozen=True)
class FeatureStatistics:
    """The mean and the deviation of each bin over all frames of the utterances measured; numbers alone, JSON-able."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, features: Tensor) -> Tensor:
        """Return the features (frames, bins) shifted and scaled so that those measured get mean 0 and deviation 1."""
        mean, deviation = _tensors(self)
        return (features - mean) / deviation


@dataclass(frozen=True)
class FeatureExtractor:
    """Waveforms at `sample_rate` Hz to normalised features; plain facts, so that it pickles and hashes."""

    options: FeatureOptions
    sample_rate: int
    statistics: FeatureStatistics | None = None
    """Of the train split, where `options.centre` is "corpus": see `fitted` and `cached_features`."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` when the statistics are not of such features."""
        if self.statistics is None:
            return
        if self.options.centre != "corpus":
            raise ConfigError(f"features centred by {self.options.centre} take no statistics of a corpus")
        if {len(self.statistics.mean), len(self.statistics.deviation)} != {self.bins}:
            raise ConfigError(
                f"the statistics are of {len(self.statistics.mean)} means and {len(self.statistics.deviation)} "
                f"deviations; the features have {self.bins} bins"
            )

    @property
    def bins(self) -> int:
        """Features in a frame."""
        return self.options.bins(self.sample_rate)

    @property
    def is_fitted(self) -> bool:
        """Whether all is known that features are normalised by."""
        return self.options.centre != "corpus" or self.statistics is not None

    def frames(self, samples: int) -> int:
        """Return the number of frames of a waveform of `samples` samples; windows are centred on 0, hop, 2 hop, …"""
        return samples // self.options.hop(self.sample_rate) + 1

    def __call__(self, waveform: Tensor) -> Tensor:
        """Return the features (frames, bins) of a waveform (samples,), normalised as `options.centre` says.

        Over the utterance they have mean 0 and deviation 1, over the corpus each bin has. Raises `DataError` when the
        waveform is too short to be reflected at its ends, by half an FFT, and `ConfigError` when the statistics of the
        corpus are needed and missing.
        """
        if not self.is_fitted:
            raise ConfigError(
                "features centred over the corpus need its statistics; measure them on the train split with fitted() "
                "or cached_features(), or choose centre: utterance"
            )
        return self.normalised(self.spectra(waveform))

    def spectra(self, waveform: Tensor) -> Tensor:
        """Return the logarithmic spectra (frames, bins) of a waveform (samples,), not normalised.

        Raises `DataError` when the waveform is too short.
        """
        needed = self.options.fft(self.sample_rate) // 2 + 1
        if len(waveform) < needed:
            raise DataError(f"{len(waveform)} samples are too few for features; at least {needed} are needed")
        magnitude: Tensor = _transform(self.options, self.sample_rate)(waveform)  # (bins, frames)
        return _compressed(magnitude, self.options).T.contiguous()

    def normalised(self, spectra: Tensor) -> Tensor:
        """Return what `spectra` returned, normalised; without statistics over the utterance."""
        if self.statistics is not None:
            return self.statistics(spectra)
        return standardised(centred_by_bin(spectra) if self.options.centre == "bin" else spectra)


def fitted(extractor: FeatureExtractor, waveforms: Iterable[Tensor]) -> FeatureExtractor:
    """Return the extractor with the statistics of the waveforms (samples,), which are the train split's.

    One that needs no statistics, or has them, is returned as it is. Raises `DataError` when there is no waveform.
    """
    if extractor.is_fitted:
        return extractor
    return replace(extractor, statistics=measured(extractor.spectra(waveform) for waveform in waveforms))


def measured(spectra: Iterable[Tensor]) -> FeatureStatistics:
    """Return the statistics of all frames of the spectra (frames, bins), added up in double precision.

    Raises `DataError` when there is none.
    """
    frames, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for of_utterance in spectra:
        exact = of_utterance.double()
        frames, total, squares = frames + len(exact), total + exact.sum(0), squares + exact.square().sum(0)
    if not frames:
        raise DataError("statistics of features need at least one utterance; the train split has none")
    mean = total / frames
    deviation = (squares / frames - mean.square()).clamp_min(0).sqrt().clamp_min(_LEAST_DEVIATION)
    return FeatureStatistics(mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))


def standardised(features: Tensor) -> Tensor:
    """Return the features shifted and scaled to mean 0 and deviation 1; constant features become zeros."""
    centred = features - features.mean()
    return centred / centred.square().mean().sqrt().clamp_min(_LEAST_DEVIATION)


def centred_by_bin(features: Tensor) -> Tensor:
    """Return the features (frames, bins) without each bin's mean over the utterance."""
    return features - features.mean(0)


def _compressed(magnitude: Tensor, options: FeatureOptions) -> Tensor:
    return magnitude.log1p() if options.kind == "log_spectrogram" else (magnitude + _MEL_FLOOR).log()


@lru_cache(maxsize=8)
def _tensors(statistics: FeatureStatistics) -> tuple[Tensor, Tensor]:
    return torch.tensor(statistics.mean), torch.tensor(statistics.deviation)


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
