"""Which plugins are installed: entry points in the order of their names, imported, or what is wrong with them.

Free of torch, so that the command line can look for commands without waiting for it.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from itertools import groupby
from pathlib import Path

from ticketkit.errors import PluginError
from ticketkit.registry import BUILTIN, suggestion
from ticketkit.storage import file_digest

GROUP = "ticketkit"
ALLOW = "TICKETKIT_LOAD_PLUGINS"
BLOCK = "TICKETKIT_BLOCK_PLUGINS"
RESERVED = (BUILTIN, "python")  # what tickets call the engine's own entries, and a user's own objects
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class PluginFacts:
    """A plugin's name, its import package, its distribution and the version of that."""

    name: str
    package: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"plugin {self.name!r} (distribution {self.distribution} {self.version})"


@dataclass(frozen=True)
class FoundPlugin:
    """A plugin that is installed: the object its entry point leads to, or the fault that keeps it out."""

    facts: PluginFacts
    plugin: object | None
    fault: str = ""


def found_plugins() -> list[FoundPlugin]:
    """Return every installed plugin, in the order of their names, but those that the environment leaves out.

    `TICKETKIT_LOAD_PLUGINS` (comma-separated names) leaves in only these, `TICKETKIT_BLOCK_PLUGINS` all but these. Of
    two distributions with one plugin name neither counts.
    """
    found: list[FoundPlugin] = []
    for name, same in _installed().items():
        facts = [_facts(point) for point in same]
        if name in left_out():
            continue
        if len(facts) > 1:
            both = " and ".join(f"{one.distribution} {one.version}" for one in facts)
            fault = f"two plugins are called {name!r}, from {both}; block or uninstall one of them"
            found += [FoundPlugin(one, None, fault) for one in facts]
        else:
            found.append(_imported(same[0], facts[0]))
    return found


def left_out() -> dict[str, str]:
    """Return why each installed plugin that the environment leaves out is left out."""
    reasons = {}
    for name in _installed():
        if name in _listed(BLOCK):
            reasons[name] = f"{BLOCK} blocks {name!r}"
        elif os.environ.get(ALLOW) is not None and name not in _listed(ALLOW):
            reasons[name] = f"{ALLOW} does not name {name!r}"
    return reasons


def misnamed() -> list[str]:
    """Return a line for every name in the environment's lists that no installed plugin has."""
    known = {*_installed(), BUILTIN}
    return [
        f"{variable} names {name!r}, which is not installed{suggestion(name, known)}"
        for variable in (ALLOW, BLOCK)
        for name in _listed(variable)
        if name not in known
    ]


def file_plugin(path: Path) -> FoundPlugin:
    """Return the plugin in a single Python file, for a one-off; its version is the digest of the file.

    Raises `PluginError` for a file that is missing or cannot be imported.
    """
    name = f"ticketkit_plugin_file_{path.stem}"  # no name that another module has
    spec = spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise PluginError(f"--plugin {path}: there is no such Python file")
    module, before = module_from_spec(spec), sys.modules.get(name)
    sys.modules[name] = module  # so that its classes can be found again by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise PluginError(f"--plugin {path} cannot be imported: {type(error).__name__}: {error}") from error
    return FoundPlugin(PluginFacts(path.stem, name, str(path), f"sha256:{file_digest(path)[:16]}"), module)


def _installed() -> Mapping[str, list[EntryPoint]]:
    points = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return {name: _distinct(same) for name, same in groupby(points, key=lambda point: point.name)}


def _distinct(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Return one entry point for each distribution and value: a path that is listed twice is no second plugin."""
    return list({(_facts(point), point.value): point for point in points}.values())


def _facts(point: EntryPoint) -> PluginFacts:
    distribution, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "unknown")
    return PluginFacts(point.name, point.module.partition(".")[0], distribution, version)


def _imported(point: EntryPoint, facts: PluginFacts) -> FoundPlugin:
    if not _NAME.fullmatch(point.name) or point.name in RESERVED:
        reserved = f"; {' and '.join(RESERVED)} are taken" if point.name in RESERVED else ""
        fault = f"{facts} needs another name for its entry point: letters, digits, '_', '-' and '.'{reserved}"
        return FoundPlugin(facts, None, fault)
    try:
        return FoundPlugin(facts, point.load())
    except Exception as error:
        fault = f"{facts} cannot be imported from {point.value!r}: {type(error).__name__}: {error}"
        return FoundPlugin(facts, None, fault)


def _listed(variable: str) -> list[str]:
    return [name for name in map(str.strip, os.environ.get(variable, "").split(",")) if name]
