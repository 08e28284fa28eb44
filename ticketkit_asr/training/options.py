"""What the trainer can be told. Free of torch: checking a config is fast."""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ticketkit import Options
from ticketkit_asr.sound.options import CorruptionOptions, SpeedOptions


class SpecAugmentOptions(Options):
    """How much of each training spectrum is masked; the defaults are the paper's for the CNN-LSTM."""

    frequency_masks: NonNegativeInt = 1
    frequency_width: PositiveInt = 27
    """A frequency mask is narrower than this, in bins."""
    time_masks: NonNegativeInt = 1
    time_width: PositiveInt = 70
    """A time mask is shorter than this, in frames."""
    time_fraction: float = Field(default=1.0, gt=0, le=1)
    """A time mask covers at most this part of an utterance."""


class TrainerOptions(Options):
    """How to train; the defaults are the paper's for the CNN-LSTM."""

    epochs: PositiveInt = 16
    patience: PositiveInt | None = None
    """Stop after so many epochs without a better one on dev; by default all epochs are trained."""
    batch_size: PositiveInt = 32
    """Utterances in a batch, at most."""
    batch_seconds: PositiveFloat | None = None
    """Sound in a batch at most, padding included; by default only `batch_size` bounds it."""
    accumulate: PositiveInt = 1
    """Batches in an optimizer step; each utterance counts the same, whatever batch it is in."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: PositiveFloat = 3e-4
    """The learning rate: of the first epoch for `anneal`, the highest for `noam`."""
    schedule: Literal["anneal", "noam", "constant"] = "anneal"
    lr_anneal: float = Field(default=1.1, ge=1)
    """What `anneal` divides the learning rate by after every epoch."""
    warmup: PositiveInt = 10_000
    """Optimizer steps in which `noam` lets the learning rate rise."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's memory of gradients and of their squares."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD's, in Nesterov's form; 0 for plain SGD."""
    weight_decay: float = Field(default=1e-5, ge=0)
    grad_norm: PositiveFloat = 400.0
    """Gradients are scaled down to this norm where they exceed it."""
    nonfinite: NonNegativeInt = 0
    """Optimizer steps of a training that may be left out because a loss or gradient is not finite, before it fails."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What autocast computes in; float16 scales the loss, and needs a GPU."""
    device: str | None = None
    """Where to train, such as "cuda:0"; by default where the network is."""
    workers: NonNegativeInt = 0
    """Processes that load and augment batches ahead; 0 does it in the training process."""
    features: Literal["memory", "disk"] = "memory"
    """Where features wait that are the same in every epoch: in memory, or in a file mapped into it."""
    cache_dir: Path | None = None
    """Where features are kept on disk; by default the user's cache folder."""
    on_bad_utterance: Literal["fail", "skip"] = "fail"
    """Stop at utterances that cannot be read or whose text is too long for them, or train without them."""
    checkpoint_steps: PositiveInt | None = None
    """Save the middle of a round every so many optimizer steps; by default after every epoch."""
    scoring_batches: PositiveInt = 16
    """Training batches that a criterion which looks at gradients or activations sees, without augmentation."""
    augment: SpecAugmentOptions | None = None
    """SpecAugment of the training features; none by default."""
    speed: SpeedOptions | None = None
    """Speed perturbation of the training sound, another draw in every epoch; none by default."""
    corruption: CorruptionOptions | None = None
    """Noise, babble and rooms: in training drawn anew in every epoch, on dev and test the same every time."""

    @model_validator(mode="after")
    def _check(self) -> "TrainerOptions":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas lie from 0 to below 1; got {self.betas}")
        return self
