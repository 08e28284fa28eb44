"""Commands that plugins add to the command line, found when they are asked for. Free of torch."""

from functools import cache
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from ticketkit.console import errors
from ticketkit.discovery import FoundPlugin, found_plugins
from ticketkit.errors import PluginError
from ticketkit.plugin_checks import check_plugin, hooks_of

HOOK = "ticketkit_register_commands"


class WithPluginCommands(TyperGroup):
    """The commands of ticketkit, and behind them those of plugins; plugins load only when a name is none of ours."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, ours first."""
        own = super().list_commands(ctx)
        return [*own, *sorted(plugin_commands(tuple(own)))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of that name, or None."""
        own = super().get_command(ctx, cmd_name)
        return own or plugin_commands(tuple(super().list_commands(ctx))).get(cmd_name)


@cache
def plugin_commands(own: tuple[str, ...]) -> dict[str, Any]:
    """Return the commands of all plugins by name; a plugin whose commands cannot be had is named on stderr.

    `own` are the names that are taken. Of two commands with one name neither counts.
    """
    commands: dict[str, Any] = {}
    owners: dict[str, str] = dict.fromkeys(own, "ticketkit itself")
    for found in found_plugins():
        try:
            added = commands_of(found)
        except PluginError as error:
            errors.print(f"warning: {error}; it adds no commands")
            continue
        for name, command in added.items():
            if name in owners:
                errors.print(f"warning: the command {name!r} of {found.facts} is that of {owners[name]}; block one")
                commands.pop(name, None)
            else:
                owners[name], commands[name] = str(found.facts), command
    return commands


def commands_of(found: FoundPlugin) -> dict[str, Any]:
    """Return the commands that one plugin adds; raises `PluginError` if it is broken."""
    if found.fault:
        raise PluginError(found.fault)
    cli = typer.Typer(pretty_exceptions_enable=False)
    cli.callback()(_several)
    try:
        check_plugin(found.plugin)
        if HOOK not in hooks_of(found.plugin):
            return {}
        answer = getattr(found.plugin, HOOK)(cli=cli)
    except Exception as error:
        reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        raise PluginError(f"{found.facts} is broken: {reason}") from error
    if answer is not None:
        raise PluginError(f"{found.facts} is broken: {HOOK} returned {answer!r}; it adds to cli and returns None")
    return dict(getattr(get_command(cli), "commands", {}))


def _several() -> None:
    """Make an app a group of commands, even of one."""
