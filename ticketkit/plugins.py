"""Find plugins, check them, let them register, and tell those that watch what happens."""

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import pluggy
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion
from pydantic import BaseModel

from ticketkit import builtin, hookspecs
from ticketkit.errors import ConfigError, PluginError
from ticketkit.plugin_checks import check_answers, check_plugin
from ticketkit.registry import KINDS, NEEDS, Choice, Entry, Registry
from ticketkit.storage import file_digest
from ticketkit.ticket import Provenance

GROUP = "ticketkit"
BUILTIN = "builtin"
ALLOW = "TICKETKIT_LOAD_PLUGINS"
BLOCK = "TICKETKIT_BLOCK_PLUGINS"


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin that takes part: its name, its import package, its distribution and the version of that."""

    name: str
    package: str
    distribution: str
    version: str


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that was found but left out, and why."""

    name: str
    distribution: str
    version: str
    reason: str


class Plugins:
    """The plugins of one run: registries of what decides, and the hooks of what watches.

    Built-ins register through the same hooks as anyone's. Installing a package never changes a result: entries are only
    used when a config names them, and a name that two plugins register is an error.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.registries = {kind: Registry(kind) for kind in KINDS}
        self.loaded: list[LoadedPlugin] = []
        self.broken: list[BrokenPlugin] = []
        self.add(builtin, LoadedPlugin(BUILTIN, "ticketkit", "ticketkit", version("ticketkit")))

    @classmethod
    def discover(cls) -> Self:
        """Return the built-ins and every installed plugin, in the order of their names.

        `TICKETKIT_LOAD_PLUGINS` (comma-separated names) loads only these, `TICKETKIT_BLOCK_PLUGINS` all but these. A
        plugin that fails is listed in `broken` and left out; it matters only if something it registers is asked for.
        """
        plugins = cls()
        points = [point for point in entry_points(group=GROUP) if _wanted(point.name)]
        points.sort(key=lambda point: (point.name, point.value))
        for name, same in groupby(points, key=lambda point: point.name):
            plugins._load(name, list(same))
        return plugins

    def add(self, plugin: object, facts: LoadedPlugin) -> None:
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
                f"plugin {facts.name!r} (distribution {facts.distribution} {facts.version}) is broken: "
                + (str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}")
            ) from error
        self.loaded.append(facts)

    def add_file(self, path: Path) -> None:
        """Load a plugin from a single Python file, for a one-off; its version is the digest of the file.

        Raises `PluginError` for a file that is missing or cannot be imported.
        """
        spec = spec_from_file_location(path.stem, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise PluginError(f"--plugin {path}: there is no such Python file")
        module = module_from_spec(spec)
        sys.modules[path.stem] = module  # so that its classes can be found again by name
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[path.stem]
            raise PluginError(f"--plugin {path} cannot be imported: {type(error).__name__}: {error}") from error
        self.add(module, LoadedPlugin(path.stem, path.stem, str(path), f"sha256:{file_digest(path)[:16]}"))

    def require(self, pins: Mapping[str, str]) -> None:
        """Raise `PluginError` listing every pinned plugin that is not loaded or not in its range of versions.

        A pin is a version specifier such as `">=0.2,<1"`, or empty for any version.
        """
        loaded, faults = {plugin.name: plugin for plugin in self.loaded}, []
        for name, pin in pins.items():
            found = loaded.get(name)
            if found is None:
                reasons = [f"it is left out: {broken.reason}" for broken in self.broken if broken.name == name]
                faults.append(f"{name}{pin}: {(reasons or ['it is not installed'])[0]}")
            elif not _fits(name, found.version, pin):
                faults.append(f"{name}: {found.distribution} {found.version} is installed, {pin} is asked for")
        if faults:
            raise PluginError("the config asks for plugins:\n  " + "\n  ".join(faults))

    def recipes(self) -> dict[str, Traversable]:
        """Return the ready configs of all plugins by name: the YAML files in a folder `recipes` of their package."""
        found: dict[str, Traversable] = {}
        for name in sorted({plugin.package for plugin in self.loaded}):
            package = find_spec(name)
            if package is None or package.submodule_search_locations is None:
                continue  # a plugin that is a single file carries no recipes
            folder = files(name) / "recipes"
            if folder.is_dir():
                yaml = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
                found |= {file.name.removesuffix(".yaml"): file for file in yaml}
        return found

    def watch(self, observer: object) -> None:
        """Let an object with event hooks watch runs; raises `PluginError` if it watches nothing that happens."""
        try:
            name = self._manager.register(observer)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.is_registered(observer):
                self._manager.unregister(observer)
            raise PluginError(f"observer {observer!r} cannot watch: {error}") from error
        if not self._manager.get_hookcallers(observer):
            self._manager.unregister(name=name)
            raise PluginError(f"observer {observer!r} watches nothing; mark its functions with @ticketkit.hookimpl")

    def emit(self, event: str, **arguments: Any) -> None:
        """Tell every observer of `ticketkit_<event>`; raises `PluginError` if one answers anything but None."""
        answers = getattr(self._manager.hook, f"ticketkit_{event}")(**arguments)
        if answers:
            raise PluginError(f"observers of ticketkit_{event} must return None, but {answers!r} came; they only watch")

    def observers(self, event: str) -> list[str]:
        """Return the names of the plugins that watch an event."""
        return [hook.plugin_name for hook in getattr(self._manager.hook, f"ticketkit_{event}").get_hookimpls()]

    def choose(self, kind: str, chosen: str | Mapping[str, Any] | Callable[..., Any]) -> Choice:
        """Return what a user named: `"name"`, `{"name": ..., option: ...}`, or any callable of the right shape."""
        if isinstance(chosen, str):
            return self.registries[kind].get(chosen, note=self._broken_note()).configured({})
        if isinstance(chosen, Mapping):
            options = dict(chosen)
            name = options.pop("name", None)
            if not isinstance(name, str):
                raise ConfigError(f"{kind} needs a name: {{name: ..., options}}, but {dict(chosen)!r} came")
            return self.registries[kind].get(name, note=self._broken_note()).configured(options)
        if callable(chosen):
            origin = f"python:{getattr(chosen, '__module__', '?')}.{getattr(chosen, '__qualname__', repr(chosen))}"
            return Choice(chosen, Provenance(entry=origin, version="unversioned"))
        raise ConfigError(f"{kind} must be a name, a mapping with a name, or a callable, not {chosen!r}")

    def _load(self, name: str, points: Sequence[EntryPoint]) -> None:
        """Add the plugin of that name, or note why it is broken; of two distributions with one name, neither counts."""
        origins = [(point.dist.name, point.dist.version) if point.dist else ("unknown", "unknown") for point in points]
        try:
            if len(points) > 1:
                both = " and ".join(f"{distribution} {installed}" for distribution, installed in origins)
                raise PluginError(f"two plugins are called {name!r}, from {both}; block or uninstall one of them")
            package = points[0].module.partition(".")[0]
            self.add(_imported(points[0]), LoadedPlugin(name, package, *origins[0]))
        except PluginError as error:
            self.broken += [BrokenPlugin(name, *origin, str(error)) for origin in origins]

    def _register_for(self, kind: str, facts: LoadedPlugin) -> Callable[..., None]:
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
            if (needs or regrows) and kind != "criterion":
                raise PluginError(f"{kind} {name!r}: needs and regrows are for criteria")
            if isinstance(needs, str) or not NEEDS.issuperset(needs):
                raise PluginError(f"criterion {name!r} needs {needs!r}; choose from {sorted(NEEDS)}")
            entry = Entry(kind, name, obj, options, facts.name, facts.version, frozenset(needs), regrows)
            self.registries[kind].add(entry)

        return register

    def _broken_note(self) -> str:
        lines = [f"\n  left out: {broken.reason}" for broken in self.broken]
        return "".join(lines)


def _imported(point: EntryPoint) -> object:
    try:
        return point.load()
    except Exception as error:
        raise PluginError(
            f"plugin {point.name!r} ({point.value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _fits(name: str, installed: str, pin: str) -> bool:
    try:
        return not pin or SpecifierSet(pin).contains(installed, prereleases=True)
    except (InvalidSpecifier, InvalidVersion) as error:
        raise PluginError(f"plugins: {name}: {pin!r} is no range of versions such as '>=0.2,<1' ({error})") from error


def _wanted(name: str) -> bool:
    allowed, blocked = os.environ.get(ALLOW), os.environ.get(BLOCK, "")
    return name not in _names(blocked) and (allowed is None or name in _names(allowed))


def _names(listed: str) -> set[str]:
    return {name.strip() for name in listed.split(",")}
