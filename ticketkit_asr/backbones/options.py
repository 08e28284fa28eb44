"""What a recogniser can be told: sizes and features, with named presets. Free of torch: checking a config is fast."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Predicate
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ticketkit import ConfigError, Options

_OddInt = Annotated[int, Field(gt=0), Predicate(lambda size: size % 2 == 1)]


class FeatureOptions(Options):
    """The spectral features that a recogniser hears, frame by frame."""

    kind: Literal["log_spectrogram", "log_mel"] = "log_spectrogram"
    """`log_spectrogram`: log1p |STFT|, the paper's; `log_mel`: the logarithm of mel-weighted |STFT|."""
    window_ms: float = Field(default=20.0, gt=0)
    """Length of the Hamming window, in milliseconds."""
    hop_ms: float = Field(default=10.0, gt=0)
    """From one frame to the next, in milliseconds."""
    mels: PositiveInt = 40
    """Mel bands of `log_mel`."""
    n_fft: PositiveInt | None = None
    """Samples in an FFT, the window padded with zeros; by default as many as `fft` says."""
    centre: Literal["utterance", "bin", "corpus"] = "utterance"
    """What is subtracted, and what the rest is divided by.

    `utterance`: its mean, and its deviation, as in the paper. `bin`: each bin's own mean over the utterance, which
    cancels microphone and timbre, and the utterance's deviation. `corpus`: each bin's mean and deviation over the train
    split, measured once; unlike the others it leaves in how loud an utterance is.
    """

    def window(self, sample_rate: int) -> int:
        """Return the samples in a window."""
        return round(sample_rate * self.window_ms / 1000)

    def hop(self, sample_rate: int) -> int:
        """Return the samples from one frame to the next."""
        return round(sample_rate * self.hop_ms / 1000)

    def fft(self, sample_rate: int) -> int:
        """Return the size of the FFT: the window; for mel bands the power of two above, so that none is empty.

        Raises `ConfigError` when `n_fft` is given and shorter than the window.
        """
        window = self.window(sample_rate)
        if self.n_fft is not None:
            if self.n_fft < window:
                raise ConfigError(
                    f"n_fft {self.n_fft} is shorter than a window of {self.window_ms:g} ms at {sample_rate} Hz, "
                    f"which has {window} samples; give at least {window}, or leave n_fft out"
                )
            return self.n_fft
        return window if self.kind == "log_spectrogram" else 1 << (window - 1).bit_length()

    def bins(self, sample_rate: int) -> int:
        """Return the number of features in a frame."""
        return self.mels if self.kind == "log_mel" else self.fft(sample_rate) // 2 + 1


class LabelOptions(Options):
    """What a recogniser writes: by default the paper's 29 labels, blank, apostrophe, A to Z and space."""

    characters: str | None = None
    """Characters of your own instead, each once."""
    bpe: Path | None = None
    """A sentencepiece model instead, such as `ticketkit asr bpe` writes."""

    @model_validator(mode="after")
    def _check_labels(self) -> "LabelOptions":
        if self.characters is not None and self.bpe is not None:
            raise ValueError("characters and bpe say the same thing in two ways; give one of them")
        if self.characters is not None and len(set(self.characters)) != len(self.characters):
            raise ValueError(f"characters are given once each; {self.characters!r} repeats some")
        return self


def filled(presets: Mapping[str, Mapping[str, Any]], given: Any) -> Any:
    """Return the settings of the preset that is named with those given put over them; `features` one by one.

    A preset that is not there is left for its field to refuse.
    """
    if not isinstance(given, Mapping):
        return given
    preset = presets.get(given.get("preset", "small"), {})
    merged = {**preset, **given}
    if isinstance(given.get("features"), Mapping):
        merged["features"] = {**preset.get("features", {}), **given["features"]}
    return merged


class ConvOptions(Options):
    """One convolution over (frequency, time), padded so that only its stride shortens its input."""

    channels: PositiveInt
    kernel: tuple[_OddInt, _OddInt]
    """Size in (frequency bins, frames); odd."""
    stride: tuple[PositiveInt, PositiveInt]
    """Step in (frequency bins, frames)."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "sample_rate": 16_000,
        "features": {"kind": "log_spectrogram"},
        "convs": (
            {"channels": 32, "kernel": (41, 11), "stride": (2, 2)},
            {"channels": 32, "kernel": (21, 11), "stride": (2, 1)},
        ),
        "hidden": 1024,
        "layers": 5,
    },
    "small": {
        "sample_rate": 8_000,
        "features": {"kind": "log_mel", "centre": "bin"},
        "convs": (
            {"channels": 16, "kernel": (11, 11), "stride": (2, 2)},
            {"channels": 16, "kernel": (7, 7), "stride": (2, 2)},
        ),
        "hidden": 128,
        "layers": 2,
    },
}
"""`paper`: 86.6 M parameters, as published; `small`: 0.58 M, trains in a minute on two CPU cores."""


class CnnLstmOptions(Options):
    """Sizes of the CNN-LSTM: a preset, and whatever is to differ from it.

    >>> CnnLstmOptions(hidden=64).layers, CnnLstmOptions(preset="paper").hidden
    (2, 1024)

    `CnnLstmOptions(preset="paper", bidirectional=False, lookahead=19)` is the unidirectional form of the paper's
    model, with its 1024 units and the lookahead of deepspeech.pytorch: 43.5 M parameters.
    """

    preset: Literal["small", "paper"] = "small"
    sample_rate: PositiveInt
    """Rate of the audio that the features are computed from, in Hz; corpora at other rates are resampled."""
    features: FeatureOptions
    labels: LabelOptions = LabelOptions()
    convs: tuple[ConvOptions, ...] = Field(min_length=1)
    hidden: PositiveInt
    """Units of each direction of each LSTM layer."""
    layers: PositiveInt
    """LSTM layers."""
    bidirectional: bool = True
    """Whether the LSTMs also read backwards (their directions are added) or could write while they listen."""
    lookahead: NonNegativeInt = 0
    """Frames ahead that each frame after the last LSTM is convolved with, where `bidirectional` is false; 0: none.

    Frames of the convolutions' output: one is as long as all their strides in time make it.
    """
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of each LSTM layer's output, but for the last's, that is dropped in training."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        return filled(PRESETS, given)

    @model_validator(mode="after")
    def _check_lookahead(self) -> "CnnLstmOptions":
        if self.bidirectional and self.lookahead:
            raise ValueError(
                f"lookahead {self.lookahead} belongs to LSTMs that read forwards alone; these are bidirectional and "
                "hear everything ahead already; set bidirectional: false, or leave lookahead out"
            )
        return self
