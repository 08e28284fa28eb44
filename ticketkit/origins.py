"""Which plugins a run was started with: written into its directory, and asked for again when it goes on."""

import json
from pathlib import Path

from ticketkit.config import RunConfig
from ticketkit.discovery import PluginFacts
from ticketkit.errors import PluginError, StorageError
from ticketkit.plugins import Plugins
from ticketkit.registry import BUILTIN
from ticketkit.storage import write_text_atomically

FILE = "plugins.json"


def write_origins(config: RunConfig, directory: Path, plugins: Plugins) -> None:
    """Write the distribution and version of every plugin that decides something in a run, and what it is."""
    used: dict[str, list[str]] = {}
    for kind, chosen in config.named.items():
        plugin, _, name = plugins.choose(kind, chosen).provenance.entry.partition(":")
        used.setdefault(plugin, []).append(f"{kind} {name!r}")
    origins = {}
    for plugin, entries in used.items():
        facts = plugins.facts(plugin)
        if facts is not None and plugin != BUILTIN:
            origins[plugin] = {"distribution": facts.distribution, "version": facts.version, "entries": entries}
    write_text_atomically(directory / FILE, json.dumps(origins, indent=1))


def check_origins(directory: Path, plugins: Plugins) -> None:
    """Raise `PluginError` for every plugin that a run was started with and that is missing, or of another version."""
    path = directory / FILE
    try:
        origins = json.loads(path.read_text(encoding="utf-8"))
        faults = [
            fault
            for name, origin in origins.items()
            if (fault := _fault(PluginFacts(name, "", origin["distribution"], origin["version"]), plugins))
        ]
        entries = {name: ", ".join(origin["entries"]) for name, origin in origins.items()}
    except FileNotFoundError:
        return  # a run of an earlier version
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StorageError(f"{path} is damaged: {error!r}; restore it from a copy of the run directory") from error
    if faults:
        lines = [f"{entries[facts.name]} came from {fault}" for facts, fault in faults]
        raise PluginError(f"the run in {directory} cannot go on:\n  " + "\n  ".join(lines))


def _fault(wanted: PluginFacts, plugins: Plugins) -> tuple[PluginFacts, str] | None:
    """Return what is wrong with a plugin now, and what mends it."""
    found = plugins.facts(wanted.name)
    if found is not None and (found.version == wanted.version):
        return None
    if wanted.version.startswith("sha256:"):
        now = "has changed since" if found else "is not given"
        return wanted, f"the file {wanted.distribution}, which {now}; go on with: --plugin {wanted.distribution}"
    what = f"{wanted.distribution} {wanted.version} (plugin {wanted.name!r})"
    pip = f"pip install '{wanted.distribution}=={wanted.version}'"
    if found is not None:
        return wanted, f"{what}, but {found.distribution} {found.version} is installed; go on with: {pip}"
    reason = plugins.absence(wanted.name)
    return wanted, f"{what}: {reason}; go on with: {pip}" if "not installed" in reason else f"{what}: {reason}"
