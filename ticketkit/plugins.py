"""The plugins of one run: let them register what decides, and tell those that watch what happens."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import pluggy
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion
from pydantic import BaseModel

from ticketkit import builtin, hookspecs
from ticketkit.discovery import FoundPlugin, PluginFacts, file_plugin, found_plugins, left_out, misnamed
from ticketkit.errors import ConfigError, PluginError, TicketkitError
from ticketkit.plugin_checks import check_answers, check_plugin, hooks_of
from ticketkit.provenance import Provenance
from ticketkit.registry import BUILTIN, KINDS, NEEDS, Choice, Entry, Registry


@dataclass(frozen=True)
class LoadedPlugin(PluginFacts):
    """A plugin that takes part, and the hooks that it implements."""

    hooks: tuple[str, ...] = ()


@dataclass(frozen=True)
class BrokenPlugin(PluginFacts):
    """A plugin that was found but left out, and why."""

    reason: str = ""


@dataclass(frozen=True)
class Watcher:
    """One plugin's hook for one event."""

    name: str
    event: str
    call: Callable[..., Any]

    def tell(self, **arguments: Any) -> None:
        """Tell it what happened; raises `PluginError` if it fails, or answers anything but None."""
        try:
            answer = self.call(**arguments)
        except TicketkitError:
            raise  # the plugin's own words
        except Exception as error:
            raise PluginError(
                f"{self.name} failed while it watched {self.event}: {type(error).__name__}: {error}"
            ) from error
        if answer is not None:
            raise PluginError(
                f"{self.name} returned {answer!r} from {self.event}; observers of {self.event} must return None, "
                "they only watch"
            )


class Plugins:
    """Registries of what decides, and the hooks of what watches.

    Built-ins register through the same hooks as anyone's. Installing a package never changes a result: entries are only
    used when a config names them, and a name that two plugins register is an error.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._facts: dict[str, PluginFacts] = {}
        self.registries = {kind: Registry(kind) for kind in KINDS}
        self.loaded: list[LoadedPlugin] = []
        self.broken: list[BrokenPlugin] = []
        self.notes: list[str] = []
        self.add(builtin, PluginFacts(BUILTIN, "ticketkit", "ticketkit", version("ticketkit")))

    @classmethod
    def discover(cls) -> Self:
        """Return the built-ins and every installed plugin, in the order of their names.

        `TICKETKIT_LOAD_PLUGINS` (comma-separated names) loads only these, `TICKETKIT_BLOCK_PLUGINS` all but these;
        `notes` names what these lists name and nobody has. A plugin that fails is listed in `broken` and left out; it
        matters only if something it registers is asked for.
        """
        plugins = cls()
        plugins.notes = misnamed()
        for found in found_plugins():
            plugins._load(found)
        return plugins

    def add(self, plugin: object, facts: PluginFacts) -> None:
        """Register one plugin; raises `PluginError` if it is malformed, and then leaves no trace of it."""
        if self._manager.has_plugin(facts.name):
            raise PluginError(f"two plugins are called {facts.name!r}; block or uninstall one of them")
        try:
            check_plugin(plugin)
            self._manager.register(plugin, facts.name)
            self._manager.check_pending()
            others = [other for name, other in self._manager.list_name_plugin() if name != facts.name]
            for kind, hook in KINDS.items():
                caller = self._manager.subset_hook_caller(hook, [other for other in others if other is not None])
                check_answers(hook, caller(register=self._register_for(kind, facts)))
        except Exception as error:
            if self._manager.has_plugin(facts.name):
                self._manager.unregister(name=facts.name)
            for registry in self.registries.values():
                registry.remove_plugin(facts.name)
            raise PluginError(
                f"{facts} is broken: "
                + (str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}")
            ) from error
        self._facts[facts.name] = facts
        self.loaded.append(
            LoadedPlugin(facts.name, facts.package, facts.distribution, facts.version, tuple(hooks_of(plugin)))
        )

    def add_file(self, path: Path) -> None:
        """Load a plugin from a single Python file, for a one-off; its version is the digest of the file.

        Raises `PluginError` for a file that is missing or cannot be imported.
        """
        found = file_plugin(path)
        self.add(found.plugin, found.facts)

    def require(self, pins: Mapping[str, str]) -> None:
        """Raise `PluginError` listing every pinned plugin that is not loaded or not in its range of versions.

        A pin is a version specifier such as `">=0.2,<1"`, or empty for any version.
        """
        faults = []
        for name, pin in pins.items():
            found = self._facts.get(name)
            if found is None:
                faults.append(f"{name}{pin}: {self.absence(name)}")
            elif not _fits(name, found.version, pin):
                faults.append(f"{name}: {found.distribution} {found.version} is installed, {pin} is asked for")
        if faults:
            raise PluginError("the config asks for plugins:\n  " + "\n  ".join(faults))

    def absence(self, name: str) -> str:
        """Return why a plugin that is not loaded is not: it is broken, left out, or not installed."""
        for broken in self.broken:
            if broken.name == name:
                return f"it is left out: {broken.reason}"
        if reason := left_out().get(name):
            return f"it is left out: {reason}"
        by_distribution = [facts.name for facts in self._facts.values() if facts.distribution == name]
        hint = f"; the plugin of that distribution is {by_distribution[0]!r}" if by_distribution else ""
        return f"it is not installed{hint}"

    def facts(self, name: str) -> PluginFacts | None:
        """Return the facts of a loaded plugin, or None if there is none of that name."""
        return self._facts.get(name)

    def recipes(self) -> dict[str, Traversable]:
        """Return the ready configs of all plugins by name: the YAML files in a folder `recipes` of their package."""
        return self._ready("recipes")

    def studies(self) -> dict[str, Traversable]:
        """Return the ready configs of studies by name: the YAML files in a folder `studies` of plugins' packages."""
        return self._ready("studies")

    def _ready(self, folder: str) -> dict[str, Traversable]:
        found: dict[str, Traversable] = {}
        for name in sorted({plugin.package for plugin in self.loaded}):
            package = find_spec(name)
            if package is None or package.submodule_search_locations is None:
                continue  # a plugin that is a single file carries none
            if (files(name) / folder).is_dir():
                yaml = [file for file in (files(name) / folder).iterdir() if file.name.endswith(".yaml")]
                found |= {file.name.removesuffix(".yaml"): file for file in yaml}
        return dict(sorted(found.items()))

    def watch(self, observer: object) -> None:
        """Let an object with event hooks watch runs; raises `PluginError` if it watches nothing that happens."""
        try:
            check_plugin(observer)
        except PluginError as error:
            raise PluginError(f"observer {observer!r} cannot watch: {error}") from error
        if not hooks_of(observer):
            raise PluginError(f"observer {observer!r} watches nothing; mark its functions with @ticketkit.hookimpl")
        if self._manager.is_registered(observer):
            raise PluginError(f"observer {observer!r} is watching already")
        self._manager.register(observer, f"observer {id(observer)}")

    def emit(self, event: str, **arguments: Any) -> None:
        """Tell every observer of `ticketkit_<event>`; raises `PluginError` naming one that answers or fails."""
        for watcher in self.watchers(event):
            watcher.tell(**arguments)

    def watchers(self, event: str) -> list[Watcher]:
        """Return those that watch an event, in the order in which they are told: the last to come is the first."""
        hook = f"ticketkit_{event}"
        return [
            Watcher(self._named(implementation), hook, _taking(implementation))
            for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls())
        ]

    def choose(self, kind: str, chosen: str | Mapping[str, Any] | Callable[..., Any]) -> Choice:
        """Return what a user named: `"name"`, `{"name": ..., option: ...}`, or any callable of the right shape."""
        if isinstance(chosen, str):
            return self._entry(kind, chosen).configured({})
        if isinstance(chosen, Mapping):
            options = dict(chosen)
            name = options.pop("name", None)
            if not isinstance(name, str):
                raise ConfigError(f"{kind} needs a name: {{name: ..., options}}, but {dict(chosen)!r} came")
            return self._entry(kind, name).configured(options)
        if callable(chosen):
            origin = f"python:{getattr(chosen, '__module__', '?')}.{getattr(chosen, '__qualname__', repr(chosen))}"
            return Choice(chosen, Provenance(entry=origin, version="unversioned"))
        raise ConfigError(f"{kind} must be a name, a mapping with a name, or a callable, not {chosen!r}")

    def _load(self, found: FoundPlugin) -> None:
        """Add a plugin, or note why it is broken."""
        facts = found.facts
        try:
            if found.fault:
                raise PluginError(found.fault)
            self.add(found.plugin, facts)
        except PluginError as error:
            self.broken.append(BrokenPlugin(facts.name, facts.package, facts.distribution, facts.version, str(error)))

    def _register_for(self, kind: str, facts: PluginFacts) -> Callable[..., None]:
        def register(
            name: str,
            obj: Callable[..., Any],
            *,
            options: type[BaseModel] | None = None,
            needs: Collection[str] = (),
            regrows: bool = False,
        ) -> None:
            if not isinstance(name, str) or not name.isidentifier():
                raise PluginError(f"{kind} name {name!r} must be letters, digits and underscores")
            if not callable(obj):
                raise PluginError(f"{kind} {name!r} must be callable, not {type(obj).__name__}")
            if options is not None and not (inspect.isclass(options) and issubclass(options, BaseModel)):
                raise PluginError(
                    f"{kind} {name!r}: options must be a class of pydantic options (ticketkit.Options), not {options!r}"
                )
            if (needs or regrows) and kind != "criterion":
                raise PluginError(f"{kind} {name!r}: needs and regrows are for criteria")
            if isinstance(needs, str) or not NEEDS.issuperset(needs):
                raise PluginError(f"criterion {name!r} needs {needs!r}; choose from {sorted(NEEDS)}")
            entry = Entry(
                kind, name, obj, options, facts.name, facts.version, facts.distribution, frozenset(needs), regrows
            )
            self.registries[kind].add(entry)

        return register

    def _named(self, implementation: pluggy.HookImpl) -> str:
        facts = self._facts.get(implementation.plugin_name)
        return str(facts) if facts else f"observer {implementation.plugin!r}"

    def _entry(self, kind: str, name: str) -> Entry:
        """Return a registered entry; an unknown name may be that of a plugin which is left out, so those are named."""
        registry = self.registries[kind]
        if name in registry:
            return registry.get(name)
        reasons = [broken.reason for broken in self.broken] + list(left_out().values())
        return registry.get(name, note="".join(f"\n  left out: {reason}" for reason in reasons))


def _taking(implementation: pluggy.HookImpl) -> Callable[..., Any]:
    """Return the hook's function, called with those of an event's arguments that it takes."""

    def call(**arguments: Any) -> Any:
        return implementation.function(**{name: arguments[name] for name in implementation.argnames})

    return call


def _fits(name: str, installed: str, pin: str) -> bool:
    try:
        return not pin or SpecifierSet(pin).contains(installed, prereleases=True)
    except (InvalidSpecifier, InvalidVersion) as error:
        raise PluginError(f"plugins: {name}: {pin!r} is no range of versions such as '>=0.2,<1' ({error})") from error
