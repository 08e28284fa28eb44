"""The plugins of a command: those installed and those given as files, the broken ones named."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ticketkit.console import errors

if TYPE_CHECKING:
    from ticketkit.plugins import Plugins

PluginFiles = Annotated[list[Path], typer.Option("--plugin", help="a plugin in a single Python file", metavar="FILE")]


def load_plugins(files: list[Path]) -> "Plugins":
    """Return the installed plugins and those in files; name the broken ones on stderr."""
    from ticketkit.plugins import Plugins

    plugins = Plugins.discover()
    for file in files:
        plugins.add_file(file)
    for note in plugins.notes:
        errors.print(f"warning: {note}")
    for broken in plugins.broken:
        errors.print(f"warning: {broken.reason}; it is left out")
    return plugins
