"""What every corpus of sound files lets one choose."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ticketkit import Options
from ticketkit_asr.corpora.stretch import Channel
from ticketkit_asr.sound.audio import OnBadAudio
from ticketkit_asr.text.rules import AS_WRITTEN, TextRules

Share = Annotated[float, Field(ge=0, lt=1)]


class FileCorpusOptions(Options):
    """How sound and text are read, and how much of them."""

    sample_rate: Annotated[int, Field(gt=0, le=768_000)] = 16_000
    """What every file is resampled to, in Hz."""
    channels: Literal["refuse", "first", "mix"] = "refuse"
    """What to do with files of several channels, where the manifest does not choose one."""
    on_bad_audio: OnBadAudio = "fail"
    """Stop at files that are missing, or whose header shows that they cannot be used, or go on without them."""
    min_seconds: NonNegativeFloat = 0.0
    """Training utterances that are shorter are left out; dev and test stay whole."""
    max_seconds: PositiveFloat | None = None
    """Training utterances that are longer are left out; dev and test stay whole."""
    train_utterances: PositiveInt | None = None
    """How many to keep, chosen by `seed`; all of them by default. More always include fewer."""
    dev_utterances: PositiveInt | None = None
    """The same for dev."""
    test_utterances: PositiveInt | None = None
    """The same for test."""
    seed: int = 0
    """Decides which utterances are kept; apart from the experiment's seed, so that all seeds share one corpus."""
    text: TextRules = AS_WRITTEN
    """How transcripts are normalised."""
    threads: PositiveInt = 4
    """How many file headers are read at once, where lengths are not listed; never changes a result."""

    @model_validator(mode="after")
    def _in_order(self) -> "FileCorpusOptions":
        if self.max_seconds is not None and self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds} is above max_seconds {self.max_seconds}")
        return self

    def most(self, split: str) -> int | None:
        """Return how many utterances of a split to keep, or None for all."""
        wanted = {"train": self.train_utterances, "dev": self.dev_utterances, "test": self.test_utterances}
        return wanted[split]

    def channel(self) -> Channel:
        """Return the channel to read where none is chosen."""
        channels: dict[str, Channel] = {"refuse": None, "first": 0, "mix": "mix"}
        return channels[self.channels]
