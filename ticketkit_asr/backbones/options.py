"""What a recogniser can be told: sizes and features, with named presets. Free of torch: checking a config is fast."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Predicate
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

_OddInt = Annotated[int, Field(gt=0), Predicate(lambda size: size % 2 == 1)]


class FeatureOptions(BaseModel):
    """The spectral features that a recogniser hears, frame by frame."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["log_spectrogram", "log_mel"] = "log_spectrogram"
    """`log_spectrogram`: log1p |STFT|, the paper's; `log_mel`: the logarithm of mel-weighted |STFT|."""
    window_ms: float = Field(default=20.0, gt=0)
    """Length of the Hamming window, in milliseconds."""
    hop_ms: float = Field(default=10.0, gt=0)
    """From one frame to the next, in milliseconds."""
    mels: PositiveInt = 40
    """Mel bands of `log_mel`."""
    centre: Literal["utterance", "bin"] = "utterance"
    """Subtract the utterance's mean, as in the paper, or each bin's own mean, which cancels microphone and timbre."""

    def window(self, sample_rate: int) -> int:
        """Return the samples in a window."""
        return round(sample_rate * self.window_ms / 1000)

    def hop(self, sample_rate: int) -> int:
        """Return the samples from one frame to the next."""
        return round(sample_rate * self.hop_ms / 1000)

    def fft(self, sample_rate: int) -> int:
        """Return the size of the FFT: the window; for mel bands the power of two above, so that none is empty."""
        window = self.window(sample_rate)
        return window if self.kind == "log_spectrogram" else 1 << (window - 1).bit_length()

    def bins(self, sample_rate: int) -> int:
        """Return the number of features in a frame."""
        return self.mels if self.kind == "log_mel" else self.fft(sample_rate) // 2 + 1


class ConvOptions(BaseModel):
    """One convolution over (frequency, time), padded so that only its stride shortens its input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class CnnLstmOptions(BaseModel):
    """Sizes of the CNN-LSTM: a preset, and whatever is to differ from it.

    >>> CnnLstmOptions(hidden=64).layers, CnnLstmOptions(preset="paper").hidden
    (2, 1024)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["small", "paper"] = "small"
    sample_rate: PositiveInt
    """Rate of the audio that the features are computed from, in Hz; corpora at other rates are resampled."""
    features: FeatureOptions
    convs: tuple[ConvOptions, ...] = Field(min_length=1)
    hidden: PositiveInt
    """Units of each direction of each LSTM layer."""
    layers: PositiveInt
    """Bidirectional LSTM layers."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        """Return the preset's settings with those given put over them; `features` are merged one by one.

        A preset that is not there is left for its field to refuse.
        """
        if not isinstance(given, Mapping):
            return given
        preset = PRESETS.get(given.get("preset", "small"), {})
        merged = {**preset, **given}
        if isinstance(given.get("features"), Mapping):
            merged["features"] = {**preset.get("features", {}), **given["features"]}
        return merged
