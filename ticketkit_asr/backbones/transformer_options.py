"""What the Conformer and the Transformer can be told: sizes and features, with named presets. Free of torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from annotated_types import Predicate
from pydantic import Field, PositiveInt, model_validator

from ticketkit import Options
from ticketkit_asr.backbones.options import ConvOptions, FeatureOptions, LabelOptions, filled

_OddInt = Annotated[int, Field(gt=0), Predicate(lambda size: size % 2 == 1)]
_EvenInt = Annotated[int, Field(gt=0, multiple_of=2)]
_Dropout = Annotated[float, Field(ge=0, lt=1)]


class StageOptions(Options):
    """Conformer blocks at one frame rate; the last of them halves it, unless the stage is the last."""

    blocks: PositiveInt
    """How many there are."""
    dim: _EvenInt
    """Features of a frame."""
    group: PositiveInt = 1
    """Neighbouring frames that attend as one, at a `group`-th of the cost (Burchi and Vielzeuf 2021, section 3.2)."""


CONFORMER_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "sample_rate": 16_000,
        "features": {"kind": "log_mel", "mels": 80, "window_ms": 25.0},
        "subsampling": ({"channels": 256, "kernel": (3, 3), "stride": (2, 2)},),
        "stages": (
            {"blocks": 5, "dim": 256, "group": 3},
            {"blocks": 6, "dim": 384},
            {"blocks": 5, "dim": 512},
        ),
        "heads": 8,
        "expansion": 4,
        "kernel": 15,
        "dropout": 0.1,
    },
    "small": {
        "sample_rate": 8_000,
        "features": {"kind": "log_mel", "centre": "bin"},
        "subsampling": ({"channels": 16, "kernel": (3, 3), "stride": (2, 2)},),
        "stages": (
            {"blocks": 1, "dim": 96},
            {"blocks": 2, "dim": 96},
        ),
        "heads": 4,
        "expansion": 4,
        "kernel": 15,
        "dropout": 0.1,
    },
}
"""`paper`: as published, 65.8 M parameters with 256 labels, and 80 ms an output frame: long for the 29 characters, so
give it pieces of words (`labels: {bpe: ...}`). `small`: 0.72 M and 40 ms, for spoken digits on a CPU."""

TRANSFORMER_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "sample_rate": 16_000,
        "features": {"kind": "log_mel", "mels": 80, "window_ms": 25.0},
        "subsampling": (
            {"channels": 256, "kernel": (3, 3), "stride": (2, 2)},
            {"channels": 256, "kernel": (3, 3), "stride": (2, 2)},
        ),
        "blocks": 20,
        "dim": 512,
        "heads": 8,
        "expansion": 4,
        "dropout": 0.1,
    },
    "small": {
        "sample_rate": 8_000,
        "features": {"kind": "log_mel", "centre": "bin"},
        "subsampling": (
            {"channels": 16, "kernel": (11, 11), "stride": (2, 2)},
            {"channels": 24, "kernel": (7, 7), "stride": (2, 2)},
            {"channels": 24, "kernel": (5, 5), "stride": (2, 1)},
        ),
        "blocks": 4,
        "dim": 128,
        "heads": 4,
        "expansion": 4,
        "dropout": 0.1,
    },
}
"""`paper`: 66.3 M parameters, as many as the Conformer's; `small`: 0.85 M, for spoken digits on a CPU."""


class ConformerOptions(Options):
    """Sizes of the Conformer: a preset, and whatever is to differ from it.

    >>> ConformerOptions(heads=2).kernel, [stage.dim for stage in ConformerOptions(preset="paper").stages]
    (15, [256, 384, 512])
    """

    preset: Literal["small", "paper"] = "small"
    sample_rate: PositiveInt
    """Rate of the audio that the features are computed from, in Hz; corpora at other rates are resampled."""
    features: FeatureOptions
    labels: LabelOptions = LabelOptions()
    subsampling: tuple[ConvOptions, ...] = Field(min_length=1)
    """Convolutions in front of the blocks, each followed by batch normalisation and Swish."""
    stages: tuple[StageOptions, ...] = Field(min_length=1)
    """The blocks, from the features on: each stage hears fewer frames a second than the one before."""
    heads: PositiveInt
    """Attention heads in each block; every `dim` is a multiple."""
    expansion: PositiveInt
    """How many times wider a feed-forward layer is than a frame."""
    kernel: _OddInt
    """Frames under a depthwise convolution; odd."""
    dropout: _Dropout
    """Share of the features that training leaves out at random, behind every layer."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        return filled(CONFORMER_PRESETS, given)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for number, stage in enumerate(self.stages):
            check_heads(f"stages.{number}.dim", stage.dim, self.heads)
        return self


class TransformerOptions(Options):
    """Sizes of the Transformer encoder: a preset, and whatever is to differ from it.

    >>> TransformerOptions(blocks=2).dim, TransformerOptions(preset="paper").blocks
    (128, 20)
    """

    preset: Literal["small", "paper"] = "small"
    sample_rate: PositiveInt
    """Rate of the audio that the features are computed from, in Hz; corpora at other rates are resampled."""
    features: FeatureOptions
    labels: LabelOptions = LabelOptions()
    subsampling: tuple[ConvOptions, ...] = Field(min_length=1)
    """Convolutions in front of the blocks, each followed by batch normalisation and Swish."""
    blocks: PositiveInt
    """Attention and a feed-forward layer each."""
    dim: _EvenInt
    """Features of a frame."""
    heads: PositiveInt
    """Attention heads in each block; every `dim` is a multiple."""
    expansion: PositiveInt
    """How many times wider a feed-forward layer is than a frame."""
    dropout: _Dropout
    """Share of the features that training leaves out at random, behind every layer."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        return filled(TRANSFORMER_PRESETS, given)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_heads("dim", self.dim, self.heads)
        return self


def check_heads(name: str, dim: int, heads: int) -> None:
    """Raise `ValueError` naming the setting if `dim` features are not `heads` heads of equal size."""
    if dim % heads:
        raise ValueError(f"{name} is {dim}, which is not a multiple of heads, {heads}; change one of the two")
