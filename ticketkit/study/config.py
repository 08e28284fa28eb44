"""What a study is: a frozen description read from YAML, checked whole before anything runs."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from ticketkit.errors import ConfigError
from ticketkit.registry import suggestion, validation_lines

Kind = Literal["existence", "controls", "transfer", "structure", "noise"]
KINDS: tuple[Kind, ...] = ("existence", "controls", "transfer", "structure", "noise")
Layers = dict[str, dict[str, Any]]
"""Named settings to be put over those of a run."""

Levels = Annotated[list[PositiveInt], Field(min_length=1)]
"""Rounds of the ladder, such as 10 for 0.8^10 = 10.7 % of the scope, at which something is compared."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Small(_Section):
    """How to make a small dense network: the honest rival of a ticket."""

    size: str
    """The setting whose whole number makes the network larger, such as `backbone.hidden`."""
    epochs: str | None = None
    """The setting with the epochs of a training, for a rival with the training cost of the whole search."""
    anneal: str | None = None
    """The setting that the learning rate is divided by after each epoch; over n times the epochs, its n-th root is."""


class Existence(_Section):
    """Is there a ticket? The whole ladder of each variant."""

    variants: list[str] | None = None
    """By default all."""


class Controls(_Section):
    """Is it the ticket that matters? Whatever else has as many weights, at some levels of the ladder."""

    variants: list[str] | None = None
    levels: Levels
    small: dict[str, Small] = {}
    """Of each variant, how it is made smaller; without it there is no small dense network."""


class Transfer(_Section):
    """Does a ticket move? Masks found on sources, trained on targets."""

    sources: Layers = Field(min_length=1)
    targets: Layers = Field(min_length=1)
    variant: str
    levels: Levels
    starts: list[Literal["initial", "trained"]] = ["initial", "trained"]
    """From the weights that the source began with, or from those that it ended in."""


class Structure(_Section):
    """What does structure cost? The ladder with other granularities."""

    variant: str
    granularities: Layers = Field(min_length=1)
    """Settings of `prune` for each."""
    levels: Levels


class Noise(_Section):
    """Do tickets shrug off noise in training? The ladder and its rivals on noisy speech."""

    variant: str
    train: Layers = Field(min_length=1)
    """Settings of each training condition; training without them is always there, as `none`."""
    test: Layers = Field(min_length=1)
    """Settings of each test condition, such as `clean: {trainer: {corruption: null}}`."""
    levels: Levels
    dense: Layers = {}
    """Settings of regularised dense networks."""
    small: Small | None = None
    """How a small dense network is made."""


class Scale(_Section):
    """How large a corpus is, for a dry run where it is not at hand."""

    hours: float = Field(gt=0)
    """Hours of sound in the train split."""
    stand_in: dict[str, Any]
    """Settings of a run on a small corpus, whose one epoch is timed."""


class StudyConfig(_Section):
    """A grid of runs, declared: settings that all share, and what each study varies."""

    title: str
    base: dict[str, Any]
    """Settings of a run, as `ticketkit run` takes them, without a seed."""
    variants: Layers = Field(min_length=1)
    """Settings over the base, by name: backbones, corpora."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**62)]] = Field(default=[0, 1, 2], min_length=1)
    margin: float = Field(ge=0)
    """How much worse than its rival a network may be on test and still match it, in the metric's unit."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=10_000, ge=1000)
    threads: PositiveInt = 1
    """Threads of each run: sums depend on it to the last bit."""
    existence: Existence | None = None
    controls: Controls | None = None
    transfer: Transfer | None = None
    structure: Structure | None = None
    noise: Noise | None = None
    scale: dict[str, Scale] = {}
    """Of variants whose corpus is not at hand."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are given once each; got {self.seeds}")
        if "seed" in self.base:
            raise ValueError("base: the seed of a run comes from seeds; take it out")
        for where, variants in self._named_variants().items():
            for variant in variants:
                if variant not in self.variants:
                    raise ValueError(f"{where}: there is no variant {variant!r}{suggestion(variant, self.variants)}")
        for name in [*self.variants, *self._layers()]:
            if not name.replace("_", "").replace(".", "").isalnum():
                raise ValueError(f"{name!r} names files: letters, digits, dots and underscores alone can be in it")
        return self

    def _named_variants(self) -> dict[str, list[str]]:
        """Return the variants that each section names."""
        existence, controls = self.existence, self.controls
        named = {"scale": list(self.scale)}
        named["existence"] = list(existence.variants or ()) if existence else []
        named["controls"] = [*(controls.variants or ()), *controls.small] if controls else []
        single = (("transfer", self.transfer), ("structure", self.structure), ("noise", self.noise))
        return named | {kind: [section.variant] for kind, section in single if section}

    def _layers(self) -> list[str]:
        transfer, structure, noise = self.transfer, self.structure, self.noise
        names = [*transfer.sources, *transfer.targets] if transfer else []
        names += list(structure.granularities) if structure else []
        return names + ([*noise.train, *noise.test, *noise.dense] if noise else [])

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The studies that are declared, in the order of the paper."""
        return tuple(kind for kind in KINDS if getattr(self, kind) is not None)

    def declared(self, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        """Return the kinds; raises `ConfigError` naming one that the config does not declare."""
        for kind in kinds:
            if kind not in self.kinds:
                raise ConfigError(
                    f"the config declares no study {kind!r}; it declares {', '.join(self.kinds) or 'none'}"
                )
        return kinds


def parse_study(settings: Mapping[str, Any]) -> StudyConfig:
    """Return the checked config; raises `ConfigError` listing every fault with its path."""
    try:
        return StudyConfig.model_validate(settings)
    except ValidationError as error:
        lines = validation_lines(error)
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        raise ConfigError(f"the study's config has {count}:\n  " + "\n  ".join(lines)) from error
