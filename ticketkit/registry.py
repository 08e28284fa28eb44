"""What decides is chosen by name: registries of entries, each with its options and the plugin it came from."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from pydantic import BaseModel, ValidationError

from ticketkit.errors import ConfigError, PluginError, TicketkitError
from ticketkit.provenance import Provenance

BUILTIN = "builtin"  # the plugin that comes with the engine

# The word in a config for each kind of entry, and the hook that registers it.
KINDS = {
    "criterion": "ticketkit_register_criteria",
    "schedule": "ticketkit_register_schedules",
    "granularity": "ticketkit_register_granularities",
    "allocation": "ticketkit_register_allocators",
    "backbone": "ticketkit_register_backbones",
    "corpus": "ticketkit_register_corpora",
    "trainer": "ticketkit_register_trainers",
    "exporter": "ticketkit_register_exporters",
}

# What a criterion may say at registration that it looks at, beyond the weights.
NEEDS = frozenset({"initial", "gradients", "activations"})


@dataclass(frozen=True)
class Choice:
    """Something callable that a user chose, with its options bound and its origin noted.

    `needs` and `regrows` are those of a criterion: what it looks at, and whether it may bring pruned weights back.
    `culprit` names a third party's entry in errors; it is empty for built-ins and for a user's own objects.
    """

    call: Callable[..., Any]
    provenance: Provenance
    needs: frozenset[str] = frozenset()
    regrows: bool = False
    culprit: str = ""

    @contextmanager
    def blamed(self, errors: type[TicketkitError] = TicketkitError) -> Iterator[None]:
        """Put the entry's plugin, distribution and version in front of such errors that leave the block."""
        try:
            yield
        except errors as error:
            if self.culprit and not str(error).startswith(self.culprit):
                error.args = (f"{self.culprit}: {error}",)
            raise


@dataclass(frozen=True)
class Entry:
    """One registered object: its name, what it is, who brought it and which options it takes."""

    kind: str
    name: str
    call: Callable[..., Any]
    options: type[BaseModel] | None
    plugin: str
    version: str
    distribution: str = "ticketkit"
    needs: frozenset[str] = frozenset()
    regrows: bool = False

    @property
    def summary(self) -> str:
        """The first line of the object's docstring."""
        lines = (self.call.__doc__ or "").strip().splitlines()
        return lines[0] if lines else "(no description)"

    @property
    def culprit(self) -> str:
        """What errors call the entry; nothing for a built-in, whose name says enough."""
        if self.plugin == BUILTIN:
            return ""
        return f"{self.kind} {self.name!r} of plugin {self.plugin!r} ({self.distribution} {self.version})"

    def configured(self, options: Mapping[str, Any]) -> Choice:
        """Return the object with validated options bound; raises `ConfigError` listing every option that is wrong."""
        call, recorded = self.call, {}
        if self.options is None:
            if options:
                raise ConfigError(f"{self.kind} {self.name!r} takes no options, but {sorted(options)} were given")
        else:
            validated = self._validated(self.options, options)
            call, recorded = _with_options(call, validated), validated.model_dump(mode="json", exclude_defaults=True)
        provenance = Provenance(
            entry=f"{self.plugin}:{self.name}",
            version=self.version,
            distribution=self.distribution,
            options=recorded,
        )
        call = _naming(self.culprit, call) if self.culprit else call
        return Choice(call, provenance, self.needs, self.regrows, self.culprit)

    def _validated(self, model: type[BaseModel], options: Mapping[str, Any]) -> BaseModel:
        unknown = _unknown_keys(model, options)
        faults = list(unknown.values())
        try:
            validated = model.model_validate({key: value for key, value in options.items() if key not in unknown})
        except ValidationError as error:
            faults += validation_lines(error)
        if faults:
            raise ConfigError(f"{self.kind} {self.name!r}:\n  " + "\n  ".join(faults))
        return validated


class Registry:
    """The entries of one kind, by name."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._clashes: dict[str, str] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries[name] for name in sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def add(self, entry: Entry) -> None:
        """Add an entry; raises `PluginError` naming both plugins when the name is taken.

        Asking for that name raises it too: which plugin came first may not decide a result.
        """
        if other := self._entries.get(entry.name):
            self._clashes[entry.name] = (
                f"{self.kind} {entry.name!r} is registered by {_owner(other)} and again by {_owner(entry)}; block one "
                "with TICKETKIT_BLOCK_PLUGINS"
            )
            raise PluginError(self._clashes[entry.name])
        self._entries[entry.name] = entry

    def remove_plugin(self, plugin: str) -> None:
        """Forget all entries of a plugin."""
        self._entries = {name: entry for name, entry in self._entries.items() if entry.plugin != plugin}

    def get(self, name: str, *, note: str = "") -> Entry:
        """Return the entry of that name; raises `ConfigError` with the nearest names, `PluginError` if two claim it."""
        if name in self._clashes:
            raise PluginError(self._clashes[name])
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {name!r}{suggestion(name, self._entries)}{note}")
        return self._entries[name]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` or, if nothing is near, the list of what there is."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; there are: {', '.join(known) or 'none'}"


def validation_lines(error: ValidationError) -> list[str]:
    """Return one line `path: what is wrong (what came)` for every error of a pydantic validation."""
    lines = []
    for fault in error.errors(include_url=False):
        path = ".".join(map(str, fault["loc"])) or "(whole)"
        came = "" if fault["type"] in ("missing", "extra_forbidden") else f" (came: {fault['input']!r})"
        lines.append(f"{path}: {fault['msg'].removeprefix('Value error, ')}{came}")
    return lines


def _unknown_keys(model: type[BaseModel], options: Mapping[str, Any]) -> dict[str, str]:
    """Return a line for every key that a model has no field for, whether it would refuse it or take it in silence."""
    if model.model_config.get("extra") == "allow":
        return {}
    known = {alias or name for name, field in model.model_fields.items() for alias in (name, field.alias)}
    return {key: f"{key}: there is no such option{suggestion(key, known)}" for key in options if key not in known}


def _owner(entry: Entry) -> str:
    return f"plugin {entry.plugin!r} ({entry.distribution} {entry.version})"


def _with_options(call: Callable[..., Any], options: BaseModel) -> Callable[..., Any]:
    @wraps(call, updated=())
    def configured(*args: Any, **kwargs: Any) -> Any:
        return call(*args, options=options, **kwargs)

    return configured


def _naming(culprit: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the callable, whose unforeseen errors become a `PluginError` that names it."""

    @wraps(call, updated=())
    def named(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except TicketkitError:
            raise  # the plugin's own words
        except Exception as error:
            raise PluginError(f"{culprit} failed: {type(error).__name__}: {error}") from error

    return named
