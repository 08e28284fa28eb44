"""What is done to clean speech: noise, babble, rooms, speed. Free of torch: checking a config is fast."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from ticketkit import Options
from ticketkit_asr.sound.audio import OnBadAudio

Probability = Annotated[float, Field(gt=0, le=1)]
"""How many of the utterances are changed; which ones is drawn for each."""

Decibels = Annotated[float, Field(ge=-100, le=100)]
"""A signal-to-noise ratio, in dB."""

Level = Literal["utterance", "active"]
"""Speech power over the whole `utterance`, pauses included, or over its `active` frames: see `noise.active_power`."""


def _has_one_group(rule: str) -> str:
    """Return the rule; raises `ValueError` unless it is `folder`, `file` or a regular expression with one group."""
    if rule in ("folder", "file"):
        return rule
    try:
        groups = re.compile(rule).groups
    except re.error as error:
        raise ValueError(f"type_rule is folder, file or a regular expression; {rule!r} is none: {error}") from error
    if groups != 1:
        raise ValueError(f"type_rule {rule!r} has {groups} groups; its one group is the type")
    return rule


class SoundsOptions(Options):
    """A folder of sounds, each of some type, and which types are for training and which for the test."""

    root: Path
    """The folder, with whatever folders it holds: WAV, FLAC, Ogg, Opus and MP3 files of any rate, mono or not.

    A relative path that is not there is looked for below the environment variable TICKETKIT_DATA.
    """
    probability: Probability = 1.0
    type_rule: Annotated[str, AfterValidator(_has_one_group)] = "folder"
    """What the type of a sound is.

    `folder`: the folder that it is in, below root (`rain` for `rain/1-17367-A.ogg`). `file`: every file is a type.
    Anything else is a regular expression, searched for in the path below root, whose one group is the type.
    """
    type_table: Path | None = None
    r"""A table with a header instead of `type_rule`, below root: a column `file` or `filename` and a column `type`,
    `class` or `category`; between commas in a .csv, else between tabs."""
    types: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The types that are used, in training or in the test; all by default."""
    test_types: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The types heard in the test alone; by default as many as `test_share` says, drawn by `split_seed`."""
    test_share: float = Field(default=0.25, ge=0, lt=1)
    """The part of the types that is held out for the test, rounded, at least one; 0 holds out none."""
    split_seed: int = 0
    """Draws the types held out; apart from the experiment's seed, so that all seeds share one split."""
    on_bad_audio: OnBadAudio = "fail"
    """Stop at files that cannot be read, or go on without them and name them in the facts."""

    @property
    def folder(self) -> Path:
        """Where `root` is: as it is given, or else below TICKETKIT_DATA."""
        below = Path(os.environ.get("TICKETKIT_DATA", "")) / self.root
        return below if not self.root.is_dir() and below.is_dir() else self.root

    @model_validator(mode="after")
    def _check_sounds(self) -> "SoundsOptions":
        for one, other in (("type_rule", "type_table"), ("test_types", "test_share")):
            if {one, other} <= self.model_fields_set and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} say the same thing in two ways; give one of them")
        if self.types is not None and (unused := set(self.test_types or ()) - set(self.types)):
            raise ValueError(f"test_types that types leaves out: {', '.join(sorted(unused))}")
        return self


class NoiseOptions(SoundsOptions):
    """Recorded noise, added to speech."""

    snr_db: tuple[Decibels, ...] = Field(min_length=1)
    """Signal-to-noise ratios in dB; each utterance draws one."""
    level: Level = "utterance"


class BabbleOptions(Options):
    """Other people of the same split who talk at the same time."""

    talkers: PositiveInt = 4
    """How many, each another speaker, all equally loud."""
    snr_db: tuple[Decibels, ...] = Field(min_length=1)
    """Ratios of speech to all talkers together in dB; each utterance draws one."""
    level: Level = "utterance"
    probability: Probability = 1.0


class RoomOptions(SoundsOptions):
    """Rooms that speech is heard in, as recordings of their impulse responses."""

    type_rule: Annotated[str, AfterValidator(_has_one_group)] = "file"
    channel: NonNegativeInt | None = None
    """The channel of responses that have several, from 0; by default one is drawn."""


class CorruptionOptions(Options):
    """Speech is heard in a room, then babble and noise are added; parts that are left out do nothing.

    >>> CorruptionOptions().is_empty
    True
    """

    noise: NoiseOptions | None = None
    babble: BabbleOptions | None = None
    room: RoomOptions | None = None

    @property
    def is_empty(self) -> bool:
        """Whether speech stays as it is."""
        return self.noise is None and self.babble is None and self.room is None


class SpeedOptions(Options):
    """Speech played faster and slower, pitch included (Ko et al. 2015)."""

    factors: tuple[Annotated[float, Field(ge=0.1, le=10)], ...] = Field(default=(0.9, 1.0, 1.1), min_length=1)
    """Times the original speed; each utterance draws one, another in every epoch."""

    @model_validator(mode="after")
    def _check(self) -> "SpeedOptions":
        if repeated := {factor for factor in self.factors if self.factors.count(factor) > 1}:
            raise ValueError(f"factors are given once each; repeated: {sorted(repeated)}")
        return self
