"""What the command line shows of plugins: all of them, or one with its entries and their options."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.table import Table

from ticketkit.discovery import left_out
from ticketkit.errors import ConfigError
from ticketkit.plugins import LoadedPlugin, Plugins
from ticketkit.registry import Entry, suggestion

REGISTRATION = "ticketkit_register_"


def overview(plugins: Plugins) -> Iterator[Table]:
    """Yield a table of the plugins and one of everything that they register."""
    table = Table("plugin", "version", "distribution", "registers", "watches", title="plugins", title_justify="left")
    for plugin in plugins.loaded:
        entries = [entry.name for entry in _entries(plugins, plugin.name)]
        shown = f"{len(entries)} entries" if len(entries) > 4 else ", ".join(entries)
        table.add_row(plugin.name, plugin.version, plugin.distribution, shown, ", ".join(_events(plugin)))
    yield table
    table = Table("kind", "name", "plugin", "what it is", "options", title="entries", title_justify="left")
    for registry in plugins.registries.values():
        for entry in registry:
            table.add_row(entry.kind, entry.name, entry.plugin, entry.summary, ", ".join(_fields(entry)))
    for name in plugins.recipes():
        table.add_row("recipe", name, "", f"ticketkit run {name}", "")
    for name in plugins.studies():
        table.add_row("study", name, "", f"ticketkit study all --config {name}", "")
    yield table


def details(plugins: Plugins, name: str) -> Iterator[str | Table]:
    """Yield what there is to say of a plugin, or of every entry of that name, with all options.

    Raises `ConfigError` with the nearest names if there is neither.
    """
    loaded = {plugin.name: plugin for plugin in plugins.loaded}
    entries = [entry for registry in plugins.registries.values() for entry in registry]
    if name in loaded:
        yield from _of_plugin(loaded[name])
        chosen = _entries(plugins, name)
    elif any(broken.name == name for broken in plugins.broken) or name in left_out():
        yield plugins.absence(name).replace("it is", f"{name} is", 1)
        return
    else:
        chosen = [entry for entry in entries if entry.name == name]
    if name not in loaded and not chosen:
        known = {*loaded, *(entry.name for entry in entries)}
        raise ConfigError(f"there is no plugin and no entry called {name!r}{suggestion(name, known)}")
    for entry in chosen:
        yield from _of_entry(entry)


def _of_plugin(plugin: LoadedPlugin) -> Iterator[str]:
    yield f"{plugin.name}: {plugin.distribution} {plugin.version}, imported from {plugin.package}"
    if events := _events(plugin):
        yield f"watches: {', '.join(events)}"
    if "ticketkit_register_commands" in plugin.hooks:
        yield "adds commands: see ticketkit --help"


def _of_entry(entry: Entry) -> Iterator[str | Table]:
    yield f"\n{entry.kind} {entry.name} ({entry.plugin} {entry.version}): {entry.summary}"
    if entry.needs:
        yield f"needs: {', '.join(sorted(entry.needs))}"
    if entry.options is None:
        yield "no options"
        return
    table = Table("option", "type", "default", "what it does")
    for name, (kind, default, text) in _fields(entry).items():
        table.add_row(name, kind, default, text)
    yield table


def _fields(entry: Entry) -> Mapping[str, tuple[str, str, str]]:
    """Return type, default and description of each option of an entry."""
    model: type[BaseModel] | None = entry.options
    if model is None:
        return {}
    return {
        name: (_type(field.annotation), _default(field), " ".join((field.description or "").split()))
        for name, field in model.model_fields.items()
    }


def _type(annotation: Any) -> str:
    plain = getattr(annotation, "__name__", "") if not hasattr(annotation, "__args__") else ""
    return plain or str(annotation).replace("typing.", "").replace("pathlib.", "")


def _default(field: Any) -> str:
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    return "" if value is PydanticUndefined else str(value)


def _entries(plugins: Plugins, plugin: str) -> list[Entry]:
    return [entry for registry in plugins.registries.values() for entry in registry if entry.plugin == plugin]


def _events(plugin: LoadedPlugin) -> list[str]:
    return [hook.removeprefix("ticketkit_") for hook in plugin.hooks if not hook.startswith(REGISTRATION)]
