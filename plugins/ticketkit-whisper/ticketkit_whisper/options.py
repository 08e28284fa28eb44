"""What the backbone and the trainer can be told. Free of torch and transformers: checking a config is fast."""

from pathlib import Path

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ticketkit import Options


class WhisperSizes(Options):
    """Sizes of a Whisper that starts from random weights; the defaults train on a CPU."""

    width: PositiveInt = 64
    """Features of every position in encoder and decoder."""
    encoder_layers: PositiveInt = 2
    """Layers of the encoder, which hears."""
    decoder_layers: PositiveInt = 2
    """Layers of the decoder, which writes."""
    heads: PositiveInt = 4
    """Attention heads of every layer; they share the width evenly."""
    feedforward: PositiveInt = 256
    """Features between the two linear layers of a block."""
    mels: PositiveInt = 40
    """Mel bands of the log-mel spectrogram."""
    seconds: PositiveInt = 10
    """How much sound the encoder hears: shorter utterances are padded with silence, longer ones are refused."""
    labels: PositiveInt = 96
    """The most labels that the decoder writes: characters of the text, and one for its end."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """The share of features that training leaves out at random."""

    @model_validator(mode="after")
    def _divisible(self) -> "WhisperSizes":
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and a multiple of heads {self.heads}")
        return self


class WhisperOptions(Options):
    """Which Whisper: random weights of some sizes (`config`), or those in a local folder (`path`)."""

    config: WhisperSizes | None = None
    """Sizes of a network with random weights; by default a small one."""
    path: Path | None = None
    """A folder that `save_pretrained` wrote: config.json and model.safetensors. Nothing is downloaded."""
    characters: str = Field(default="'ABCDEFGHIJKLMNOPQRSTUVWXYZ ", min_length=1)
    """What the recogniser writes, one label each; labels 0, 1 and 2 are padding, start and end."""
    new_labels: bool = False
    """Give a network from `path` that has other labels a new, random table of them, instead of refusing it."""

    @model_validator(mode="after")
    def _one_source(self) -> "WhisperOptions":
        if self.config is not None and self.path is not None:
            raise ValueError("config (random weights) and path (weights of a folder) exclude each other; give one")
        if self.new_labels and self.path is None:
            raise ValueError("new_labels is for a network from path; without one all labels are new")
        if repeated := sorted({c for c in self.characters if self.characters.count(c) > 1}):
            raise ValueError(f"characters holds {repeated} more than once")
        if self.characters != self.characters.upper():
            raise ValueError("characters must be upper case: texts are written in upper case before they are labelled")
        return self


class Seq2SeqOptions(Options):
    """How to train."""

    epochs: PositiveInt = 16
    """Passes over the training examples; dev chooses one of them."""
    batch_size: PositiveInt = 16
    """Utterances in a training step."""
    lr: PositiveFloat = 1e-3
    """AdamW's learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's, per unit of learning rate."""
    grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm where they exceed it."""
    scoring_batches: PositiveInt = 8
    """Training batches that a criterion which looks at gradients or activations sees."""
