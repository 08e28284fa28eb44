"""What the RNN-T can be told: sizes and features, with named presets. Free of torch: checking a config is fast."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from ticketkit import Options
from ticketkit_asr.backbones.options import FeatureOptions, LabelOptions, filled

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "sample_rate": 16_000,
        "features": {"kind": "log_mel", "mels": 80, "window_ms": 25.0},
        "stack": (1, 2, 2, 1, 1),
        "hidden": 1696,
        "bidirectional": False,
        "embedding": 640,
        "predictor": 640,
        "joint": 640,
    },
    "small": {
        "sample_rate": 8_000,
        "features": {"kind": "log_mel", "centre": "bin"},
        "stack": (2, 2),
        "hidden": 128,
        "bidirectional": True,
        "embedding": 64,
        "predictor": 128,
        "joint": 128,
    },
}
"""`paper`: 132 M parameters, 5 + 1 LSTM layers as reported, the sizes ours; `small`: 0.75 M, for spoken digits."""


class RnntOptions(Options):
    """Sizes of the RNN-T: a preset, and whatever is to differ from it.

    >>> RnntOptions(hidden=64).stack, RnntOptions(preset="paper").stack
    ((2, 2), (1, 2, 2, 1, 1))
    """

    preset: Literal["small", "paper"] = "small"
    sample_rate: PositiveInt
    """Rate of the audio that the features are computed from, in Hz; corpora at other rates are resampled."""
    features: FeatureOptions
    labels: LabelOptions = LabelOptions()
    stack: tuple[PositiveInt, ...] = Field(min_length=1)
    """One encoder LSTM layer an entry: how many frames are joined into one in front of it."""
    hidden: PositiveInt
    """Units of each direction of each encoder layer."""
    bidirectional: bool
    """Whether the encoder also reads backwards (its directions are added) or could write while it listens."""
    embedding: PositiveInt
    """Width in which the predictor reads a label."""
    predictor: PositiveInt
    """Units of the predictor's LSTM layer."""
    joint: PositiveInt
    """Units in which encoder and predictor are added."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        return filled(PRESETS, given)
