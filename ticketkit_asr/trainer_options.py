"""What the trainer can be told. Free of torch: checking a config is fast."""

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt


class SpecAugmentOptions(BaseModel):
    """How much of each training spectrum is masked; the defaults are the paper's for the CNN-LSTM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frequency_masks: NonNegativeInt = 1
    frequency_width: PositiveInt = 27
    """A frequency mask is narrower than this, in bins."""
    time_masks: NonNegativeInt = 1
    time_width: PositiveInt = 70
    """A time mask is shorter than this, in frames."""
    time_fraction: float = Field(default=1.0, gt=0, le=1)
    """A time mask covers at most this part of an utterance."""


class CtcOptions(BaseModel):
    """How to train; the defaults are the paper's for the CNN-LSTM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: PositiveInt = 16
    batch_size: PositiveInt = 32
    """Utterances in a training step."""
    lr: float = Field(default=3e-4, gt=0)
    """AdamW's learning rate in the first epoch."""
    lr_anneal: float = Field(default=1.1, ge=1)
    """The learning rate is divided by this after every epoch."""
    weight_decay: float = Field(default=1e-5, ge=0)
    grad_norm: float = Field(default=400.0, gt=0)
    """Gradients are scaled down to this norm where they exceed it."""
    scoring_batches: PositiveInt = 16
    """Training batches that a criterion which looks at gradients or activations sees, without SpecAugment."""
    augment: SpecAugmentOptions | None = None
    """SpecAugment of the training features; none by default."""
