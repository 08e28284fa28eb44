"""What decides is chosen by name: registries of entries, each with its options and the plugin it came from."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from ticketkit.errors import ConfigError, PluginError
from ticketkit.ticket import Provenance

# The word in a config for each kind of entry, and the hook that registers it.
KINDS = {
    "criterion": "ticketkit_register_criteria",
    "schedule": "ticketkit_register_schedules",
    "granularity": "ticketkit_register_granularities",
    "allocation": "ticketkit_register_allocators",
    "backbone": "ticketkit_register_backbones",
    "corpus": "ticketkit_register_corpora",
    "trainer": "ticketkit_register_trainers",
}

# What a criterion may say at registration that it looks at, beyond the weights.
NEEDS = frozenset({"initial", "gradients", "activations"})


@dataclass(frozen=True)
class Choice:
    """Something callable that a user chose, with its options bound and its origin noted.

    `needs` and `regrows` are those of a criterion: what it looks at, and whether it may bring pruned weights back.
    """

    call: Callable[..., Any]
    provenance: Provenance
    needs: frozenset[str] = frozenset()
    regrows: bool = False


@dataclass(frozen=True)
class Entry:
    """One registered object: its name, what it is, who brought it and which options it takes."""

    kind: str
    name: str
    call: Callable[..., Any]
    options: type[BaseModel] | None
    plugin: str
    version: str
    needs: frozenset[str] = frozenset()
    regrows: bool = False

    @property
    def summary(self) -> str:
        """The first line of the object's docstring."""
        lines = (self.call.__doc__ or "").strip().splitlines()
        return lines[0] if lines else "(no description)"

    def configured(self, options: Mapping[str, Any]) -> Choice:
        """Return the object with validated options bound; raises `ConfigError` listing every option that is wrong."""
        origin = f"{self.plugin}:{self.name}"
        if self.options is None:
            if options:
                raise ConfigError(f"{self.kind} {self.name!r} takes no options, but {sorted(options)} were given")
            return Choice(self.call, Provenance(entry=origin, version=self.version), self.needs, self.regrows)
        try:
            validated = self.options.model_validate(dict(options))
        except ValidationError as error:
            raise ConfigError(f"{self.kind} {self.name!r}:\n  " + "\n  ".join(validation_lines(error))) from error
        call = _with_options(self.call, validated)
        recorded = validated.model_dump(mode="json", exclude_defaults=True)
        provenance = Provenance(entry=origin, version=self.version, options=recorded)
        return Choice(call, provenance, self.needs, self.regrows)


class Registry:
    """The entries of one kind, by name."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._clashes: dict[str, str] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries[name] for name in sorted(self._entries))

    def add(self, entry: Entry) -> None:
        """Add an entry; raises `PluginError` naming both plugins when the name is taken.

        Asking for that name raises it too: which plugin came first may not decide a result.
        """
        if other := self._entries.get(entry.name):
            self._clashes[entry.name] = (
                f"{self.kind} {entry.name!r} is registered by plugin {other.plugin!r} ({other.version}) and again by "
                f"{entry.plugin!r} ({entry.version}); block one with TICKETKIT_BLOCK_PLUGINS"
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
        lines.append(f"{path}: {fault['msg']}{came}")
    return lines


def _with_options(call: Callable[..., Any], options: BaseModel) -> Callable[..., Any]:
    def configured(*args: Any, **kwargs: Any) -> Any:
        return call(*args, options=options, **kwargs)

    return configured
