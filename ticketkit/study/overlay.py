"""Settings over settings: how the runs of a study differ from their base."""

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]


def merged(*layers: Settings) -> dict[str, Any]:
    """Return the settings of the layers, later ones over earlier ones, mappings key by key.

    A mapping with another `name` takes the place of the one below it: options of one entry mean nothing to another. A
    bare name is a mapping with that name.

    >>> merged({"corpus": {"name": "fsdd", "seed": 1}, "seed": 0}, {"corpus": {"seed": 2}}, {"seed": 3})
    {'corpus': {'name': 'fsdd', 'seed': 2}, 'seed': 3}
    >>> merged({"corpus": {"name": "fsdd", "seed": 1}}, {"corpus": {"name": "an4"}})
    {'corpus': {'name': 'an4'}}
    """
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            result[key] = _over(result.get(key), value)
    return result


def _over(below: Any, above: Any) -> Any:
    if not isinstance(above, Mapping):
        return above
    below = {"name": below} if isinstance(below, str) and "name" not in above else below
    if not isinstance(below, Mapping) or ("name" in above and above["name"] != below.get("name")):
        return merged(above)
    return merged(below, above)


def valued(path: str, value: Any) -> dict[str, Any]:
    """Return the layer that sets one dotted path.

    >>> valued("backbone.hidden", 48)
    {'backbone': {'hidden': 48}}
    """
    for key in reversed(path.split(".")):
        value = {key: value}
    layer: dict[str, Any] = value
    return layer


def at(path: str, settings: Settings) -> Any:
    """Return what stands at a dotted path; raises `KeyError` if nothing does."""
    found: Any = settings
    for key in path.split("."):
        found = found[key]
    return found
