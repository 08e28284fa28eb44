"""What is wrong with a plugin, said before it takes part: each mistake has a message of its own."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ticketkit import hookspecs
from ticketkit.errors import PluginError
from ticketkit.registry import suggestion

PREFIX = f"{hookspecs.PROJECT}_"
REGISTRATION = f"{PREFIX}register_"
MARK = f"{hookspecs.PROJECT}_impl"  # the attribute that `hookimpl` sets


def hook_names() -> list[str]:
    """Return the names of all hooks, in the order in which `hookspecs` documents them."""
    return [name for name in vars(hookspecs) if name.startswith(PREFIX)]


def hooks_of(plugin: object) -> list[str]:
    """Return the names of the hooks that a checked plugin implements, in the order of `hook_names`."""
    found = {mark.get("specname") or name for name, hook in _attributes(plugin) if (mark := getattr(hook, MARK, None))}
    return [name for name in hook_names() if name in found]


def check_plugin(plugin: object) -> None:
    """Raise `PluginError` for what is no plugin.

    That is a class, an unmarked or unknown hook, one that wraps those of other plugins, or one of other arguments.
    """
    if inspect.isclass(plugin):
        raise PluginError(
            f"{plugin.__name__} is a class, of which nobody made an object; let the entry point name a module, or an "
            f"object such as plugin = {plugin.__name__}()"
        )
    for name, hook in _attributes(plugin):
        mark = getattr(hook, MARK, None)
        if not isinstance(mark, dict):
            if name.startswith(PREFIX) and callable(hook):
                raise PluginError(f"{name} is not marked as a hook; write @ticketkit.hookimpl above it")
            continue
        hook_name = mark.get("specname") or name
        if hook_name not in hook_names():
            if not mark.get("optionalhook"):
                raise PluginError(f"there is no hook {hook_name!r}{suggestion(hook_name, hook_names())}")
            continue
        if mark.get("wrapper") or mark.get("hookwrapper"):
            raise PluginError(f"{hook_name} wraps the hooks of other plugins; a plugin registers or watches for itself")
        _check_arguments(hook_name, hook)


def check_answers(hook: str, answers: list[Any]) -> None:
    """Raise `PluginError` if a hook answered anything but None."""
    if answers:
        raise PluginError(
            f"{hook} returned {answers[0]!r}; a registration hook calls register(name, object) and returns None"
        )


def _attributes(plugin: object) -> Iterator[tuple[str, Any]]:
    """Yield what a plugin defines; attributes that fail when they are looked at are no hooks."""
    for name in dir(plugin):
        try:
            yield name, getattr(plugin, name)
        except Exception:
            continue


def _check_arguments(name: str, hook: Callable[..., Any]) -> None:
    known = list(inspect.signature(getattr(hookspecs, name)).parameters)
    for argument, parameter in inspect.signature(hook).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise PluginError(f"{name} takes *{argument}, but hooks name their arguments: {', '.join(known)}")
        if argument not in known and parameter.default is parameter.empty:
            raise PluginError(f"{name} takes an argument {argument!r} that is not one of its: {', '.join(known)}")
