"""What an experiment is: a frozen description read from YAML, checked whole before anything runs."""

from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from ticketkit.errors import ConfigError
from ticketkit.plugins import Plugins
from ticketkit.pruning import OnCollapse
from ticketkit.registry import Choice, suggestion, validation_lines
from ticketkit.rewind import Rewind
from ticketkit.schedule import Target

Chosen = str | dict[str, Any]
A_LARGE_NETWORK = 10**12  # weights
Floor = Annotated[float, Field(ge=0, lt=1)]


def _known(kind: str) -> AfterValidator:
    """Return a validator that a name is registered and its options are right."""

    def check(chosen: Chosen, info: ValidationInfo) -> Chosen:
        plugins: Any = info.context
        try:
            plugins.choose(kind, chosen)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return chosen

    return AfterValidator(check)


def _rewind(policy: Chosen) -> Chosen:
    try:
        Rewind.of(policy)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return policy


class ScopeConfig(BaseModel):
    """Which parameters can be pruned, by patterns over their names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    include: list[str] | None = None
    exclude: list[str] = []
    embeddings: bool = False
    bare: bool = False


class PruneConfig(BaseModel):
    """How to prune; the defaults are the paper's: a fifth of what is left each round, by global magnitude."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float | None = None
    rounds: int | None = None
    density: float | None = None
    criterion: Annotated[Chosen, _known("criterion")] = "magnitude"
    granularity: Annotated[Chosen, _known("granularity")] = "weight"
    allocation: Annotated[Chosen, _known("allocation")] = "global"
    schedule: Annotated[Chosen, _known("schedule")] = "geometric"
    rewind: Annotated[Chosen, AfterValidator(_rewind)] = "init"
    scope: ScopeConfig = ScopeConfig()
    floor: Floor | dict[str, Floor] | None = None
    on_collapse: OnCollapse = "warn"
    start: str | None = None
    """A ticket file whose mask the first round begins with, instead of all weights; looked for in the run directory
    first."""

    @model_validator(mode="after")
    def _reachable(self, info: ValidationInfo) -> "PruneConfig":
        plugins: Any = info.context
        try:
            if Target.of(rate=self.rate, rounds=self.rounds, density=self.density) is None:
                plugins.choose("schedule", self.schedule).call(A_LARGE_NETWORK, None)  # raises unless it knows the end
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self


class RunConfig(BaseModel):
    """One experiment: what is trained on what, how it is pruned, and by which metric tickets are judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, lt=2**63)
    plugins: dict[str, str] = {}
    """Plugins that must be there, each with a range of versions such as ">=0.2"."""
    corpus: Annotated[Chosen, _known("corpus")]
    backbone: Annotated[Chosen, _known("backbone")]
    trainer: Annotated[Chosen, _known("trainer")]
    prune: PruneConfig
    initial: str | None = None
    """A safetensors file of weights to start from, instead of fresh ones; looked for in the run directory first."""
    metric: str = "wer"
    mode: Literal["min", "max"] = "min"
    tolerance: float = Field(default=0.0, ge=0)
    """How much worse than the dense network a ticket may be on dev and still win, in the metric's unit."""
    percent: bool = True
    """Whether the metric is a rate, shown times 100."""

    @property
    def named(self) -> dict[str, Chosen]:
        """What the config names, by kind."""
        roles = {kind: getattr(self, kind) for kind in ("corpus", "backbone", "trainer")}
        return roles | {
            kind: getattr(self.prune, kind) for kind in ("criterion", "granularity", "allocation", "schedule")
        }

    def chosen(self, plugins: Plugins, kind: Literal["corpus", "backbone", "trainer"]) -> Choice:
        """Return the entry that the config names for one of its roles, options bound."""
        return plugins.choose(kind, getattr(self, kind))


def parse_config(settings: Mapping[str, Any], plugins: Plugins) -> RunConfig:
    """Return the checked config; raises `ConfigError` listing every fault with its path.

    Plugins that the config pins are looked for first: without them the names it uses may mean something else.
    """
    pins = settings.get("plugins")
    if isinstance(pins, Mapping):
        plugins.require({str(name): str(pin or "") for name, pin in pins.items()})
    try:
        return RunConfig.model_validate(settings, context=plugins)
    except ValidationError as error:
        lines = validation_lines(error)
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        raise ConfigError(f"the config has {count}:\n  " + "\n  ".join(lines)) from error


def read_settings(source: str, overrides: Sequence[str], recipes: Mapping[str, Traversable]) -> dict[str, Any]:
    """Return the settings of a YAML file or a recipe's name, with `a.b=value` overrides put in."""
    if source in recipes:
        text = recipes[source].read_text(encoding="utf-8")
    elif Path(source).is_file():
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} cannot be read as UTF-8 text: {error}") from error
    else:
        raise ConfigError(f"{source!r} is neither a config file nor a recipe{suggestion(source, recipes)}")
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{source} must hold a mapping of settings, not {type(settings).__name__}")
    return with_overrides(settings, overrides)


def with_overrides(settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings with `a.b=value` overrides put in, one after another."""
    for override in overrides:
        _override(settings, override)
    return settings


def _override(settings: dict[str, Any], override: str) -> None:
    """Put one `a.b=value` into the settings; the value is read as YAML, and a bare name gains options as it needs."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"a setting is written a.b=value, not {override!r}")
    for key in keys[:-1]:
        inner = settings.get(key, {})
        settings[key] = inner = {"name": inner} if isinstance(inner, str) else inner
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {key!r} holds {inner!r}, which has no settings inside")
        settings = inner
    try:
        settings[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not valid YAML") from error
