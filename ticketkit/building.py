"""What a config names, made: backbone, corpus, trainer, each checked for what the engine needs of it."""

from typing import Any

from torch import nn

from ticketkit.errors import PluginError
from ticketkit.registry import Choice

# What the engine needs of what a plugin's entry makes.
PARTS = {"backbone": ("module",), "corpus": ("describe",), "trainer": ("train", "evaluate")}


def made(choice: Choice, kind: str, *arguments: Any, **named: Any) -> Any:
    """Return what the entry of a role makes; raise `PluginError` naming what it lacks."""
    result = choice.call(*arguments, **named)
    if lacking := [name for name in PARTS[kind] if not hasattr(result, name)]:
        raise PluginError(
            f"{choice.culprit or choice.provenance.entry} made a {type(result).__name__} without "
            f"{' and '.join(lacking)}; what a {kind} makes needs {' and '.join(PARTS[kind])}"
        )
    if kind == "backbone" and not isinstance(result.module, nn.Module):
        came = type(result.module).__name__
        raise PluginError(f"{choice.culprit}: the bundle's module must be a torch.nn.Module, not {came}")
    return result
