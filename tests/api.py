"""What is promised, as data: names, signatures, hooks, entries with their options, commands, config keys, files.

`tests/api.json` is the last snapshot that somebody wrote on purpose; `python -m tests.api` writes it anew. Everything
is text, read from sources and schemas, so that it does not depend on the version of Python.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from typer.main import get_command

import ticketkit
import ticketkit.testing
import ticketkit_asr.plugin
from tests.hook_sections import signature as hook_signature
from ticketkit import Plugins, cli, discovery, experiment, export, ledger, observers, origins
from ticketkit.config import RunConfig
from ticketkit.discovery import PluginFacts
from ticketkit.plugin_checks import hook_names
from ticketkit.registry import Entry
from ticketkit.ticket import TicketHeader

FILE = Path(__file__).with_name("api.json")
COMMAND = "python -m tests.api"
SILENT = {"__repr__", "__str__", "__post_init__"}  # dunder methods that nobody calls by what they promise
NOT_MADE = {"Round"}  # by anybody but IMP: how it is made is not promised
Section = dict[str, str]

# What a section of the snapshot is, in the words of docs/stability.md.
PROMISES = {
    "names": "The names in `ticketkit.__all__`, their signatures and their public members stay.",
    "hooks": "Hooks and their arguments stay; adding an argument is always compatible.",
    "entries": "Registered names and their options stay, with their defaults.",
    "config": "Config keys stay, with their types and their defaults.",
    "commands": "Commands and their options stay.",
    "exit codes": "The exit codes of the command line stay.",
    "files": "Files of a format are read for ever; a format changes with its number.",
    "environment": "Environment variables stay.",
    "testing": "The names in `ticketkit.testing.__all__` stay; what a check asks for may grow.",
}


def snapshot() -> dict[str, Section]:
    """Return everything that is promised: for each section what there is, by name."""
    plugins = Plugins()
    plugins.add(ticketkit_asr.plugin, PluginFacts("asr", "ticketkit_asr", "ticketkit", "0"))
    register = plugins._register_for("criterion", PluginFacts("x", "x", "x", "0"))
    entries = [entry for registry in plugins.registries.values() for entry in registry]
    return {
        "names": _names(ticketkit),
        "hooks": {hook: hook_signature(hook) for hook in hook_names()} | {"register": _bare(register)},
        "entries": dict(line for entry in entries for line in _entry(entry)),
        "config": dict(settings(RunConfig)) | {f"recipe {name}": "" for name in sorted(plugins.recipes())},
        "commands": dict(_commands("ticketkit", get_command(cli.app))),
        "exit codes": {"done": "0", "failed run": str(cli.FAILED), "bad input": str(cli.BAD_INPUT)},
        "files": _files(),
        "environment": dict.fromkeys(_environment(), ""),
        "testing": _names(ticketkit.testing),
    }


def differences(promised: Mapping[str, Section], found: Mapping[str, Section]) -> str:
    """Return every difference under the promise that it breaks or adds to; nothing if there is none."""
    reports = []
    for section, promise in PROMISES.items():
        before, now = promised.get(section, {}), found.get(section, {})
        lines = [f"  gone:    {name}  {before[name]}" for name in before if name not in now]
        for name in before:
            if name in now and before[name] != now[name]:
                lines += [f"  changed: {name}", f"      was: {before[name]}", f"       is: {now[name]}"]
        lines += [f"  new:     {name}  {now[name]}" for name in now if name not in before]
        if lines:
            reports.append("\n".join([f"{section}: {promise}", *map(str.rstrip, lines)]))
    return "\n\n".join(reports)


# Names


def _names(package: Any) -> Section:
    """Return the public names of a package, and those of their members as `Class.member`."""
    found: Section = {}
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isclass(value) and _is_ours(value):
            found[name] = f"class({', '.join(base.__name__ for base in value.__bases__)})"
            found |= {f"{name}.{member}": text for member, text in members(value).items()}
        elif inspect.isfunction(value):
            made = value.__code__.co_filename.startswith("<")  # a strategy that hypothesis has composed
            found[name] = _bare(value) if made else _definition(_parsed(value))
        elif inspect.isclass(value):
            found[name] = f"{value.__module__}.{value.__qualname__}"
        else:
            found[name] = type(value).__name__
    return found


def members(kind: type) -> Section:
    """Return the public members of a class of ours: methods, properties, fields, and what `__init__` sets."""
    found: Section = {}
    for owner in reversed([cls for cls in kind.__mro__ if _is_ours(cls)]):
        for node in _parsed(owner).body:
            if isinstance(node, ast.FunctionDef):
                if node.name == "__init__":
                    found |= dict.fromkeys(_attributes(node), "attribute")
                if _is_public(node.name) and not (node.name == "__init__" and kind.__name__ in NOT_MADE):
                    found[node.name] = _definition(node)
            elif isinstance(node, ast.AnnAssign) and _is_public(name := ast.unparse(node.target)):
                default = f" = {ast.unparse(node.value)}" if node.value else ""
                found[name] = f"{_unquoted(node.annotation)}{default}"
    return found


def _attributes(initialiser: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(initialiser):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            for leaf in target.elts if isinstance(target, ast.Tuple) else [target]:
                own = isinstance(leaf, ast.Attribute) and isinstance(leaf.value, ast.Name) and leaf.value.id == "self"
                if own and _is_public(leaf.attr):
                    yield leaf.attr


def _definition(node: ast.FunctionDef) -> str:
    """Return a function as `(a: int, *, b: str = 'x') -> bool`, after what its decorators make of it."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    marks = [name for name in ("property", "classmethod", "staticmethod", "contextmanager") if name in decorators]
    marks += ["property"] if "cached_property" in decorators else []
    arguments = node.args
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]:
        if argument is not None and argument.annotation is not None:
            argument.annotation = ast.Name(_unquoted(argument.annotation))
    returned = f" -> {_unquoted(node.returns)}" if node.returns else ""
    shown = "" if "property" in marks else f"({ast.unparse(arguments)})"
    return " ".join([*marks, f"{shown}{returned}".strip()])


def _parsed(thing: Any) -> Any:
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def _unquoted(annotation: ast.expr) -> str:
    return annotation.value if isinstance(annotation, ast.Constant) and annotation.value else ast.unparse(annotation)


def _is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__") and name not in SILENT)


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("ticketkit", __name__.partition(".")[0])


# Hooks, entries, settings


def _bare(function: Any) -> str:
    """Return the parameters of a function without their types."""
    found = inspect.signature(function)
    bare = [parameter.replace(annotation=parameter.empty) for parameter in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=found.empty))


def _entry(entry: Entry) -> Iterator[tuple[str, str]]:
    needs = f"needs {', '.join(sorted(entry.needs))}" if entry.needs else ""
    yield f"{entry.kind} {entry.name}", needs + (" regrows" if entry.regrows else "")
    if entry.options is not None:
        for option, text in settings(entry.options):
            yield f"{entry.kind} {entry.name}.{option}", text


def settings(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield every key of a model, those of models inside it as `outer.inner`, with its type and default."""
    schema = model.model_json_schema()
    yield from _keys(schema, schema.get("$defs", {}), "")


def _keys(schema: Mapping[str, Any], models: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    required = schema.get("required", ())
    for name, value in schema.get("properties", {}).items():
        default = f"= {json.dumps(value['default'])}" if "default" in value else "= (computed)"
        yield f"{prefix}{name}", f"{_type(value, models)} {'(required)' if name in required else default}"
        for model in _models_in(value, models):
            yield from _keys(models[model], models, f"{prefix}{name}.")


def _models_in(schema: Any, models: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the models that a value can be, or hold."""
    for key, inner in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if key == "$ref" and "properties" in models[inner.rpartition("/")[2]]:
            yield inner.rpartition("/")[2]
        elif isinstance(inner, dict | list) and key != "default":
            yield from _models_in(inner, models)


def _type(schema: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    """Return a JSON schema in a few words: `integer (minimum 1)`, `"mean" | "sum"`, `array of number`."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return str(name) if "properties" in models[name] else _type(models[name], models)
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return " | ".join(_type(choice, models) for choice in choices)
    if "const" in schema or "enum" in schema:
        return " | ".join(map(json.dumps, schema.get("enum", [schema.get("const")])))
    parts = [*schema.get("prefixItems", ()), *([schema["items"]] if isinstance(schema.get("items"), dict) else [])]
    inside = f" of {', '.join(_type(part, models) for part in parts)}" if parts else ""
    values = schema.get("additionalProperties")
    inside += f" of {_type(values, models)}" if isinstance(values, dict) else ""
    bounds = [f"{key} {schema[key]}" for key in sorted(schema) if re.match(r"(exclusive)?[mM](in|ax)|pattern", key)]
    return f"{schema.get('type', 'anything')}{inside}" + (f" ({', '.join(bounds)})" if bounds else "")


# The command line and files


def _commands(path: str, command: Any) -> Iterator[tuple[str, str]]:
    """Yield every command that is ticketkit's own, with its arguments and options."""
    hints = get_type_hints(command.callback) if command.callback else {}
    shown = []
    for parameter in command.params:
        if parameter.name in hints:
            names = "/".join([*parameter.opts, *parameter.secondary_opts])
            default = "(required)" if parameter.required else f"= {json.dumps(parameter.default, default=str)}"
            shown.append(f"{names}: {_plain(hints[parameter.name])} {default}")
    yield path, "; ".join(shown)
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(f"{path} {name}", inner)


def _plain(hint: Any) -> str:
    """Return a type as one would write it, without the modules of its names."""
    if not get_args(hint):
        return "None" if hint is type(None) else str(getattr(hint, "__name__", hint))
    inside = [_plain(argument) for argument in get_args(hint)]
    return " | ".join(inside) if isinstance(hint, UnionType) else f"{_plain(get_origin(hint))}[{', '.join(inside)}]"


def _files() -> Section:
    """Return the formats of files and the names that they have in a run directory and in an export."""
    constants = {
        "run config": experiment.CONFIG_FILE,
        "test metrics": experiment.TEST_FILE,
        "results": experiment.RESULTS_FILE,
        "plugins of a run": origins.FILE,
        "facts of an export": export.FACTS_FILE,
        "state before the first round": ledger.INIT,
        "state that rounds go back to": ledger.REWIND,
        "middle of a round": f"rounds/NNN/{ledger.CHECKPOINT}",
        "ticket of a round": f"rounds/NNN/{ledger.TICKET}",
        "network at the end of a round": f"rounds/NNN/{ledger.TRAINED}",
    }
    formats = {"ticket": TicketHeader.model_fields["format"].default, "run directory": ledger.FORMAT}
    return constants | {f"format of a {what}": str(number) for what, number in formats.items()} | dict(_headers())


def _headers() -> Iterator[tuple[str, str]]:
    for key, text in settings(TicketHeader):
        yield f"ticket header {key}", text


def _environment() -> list[str]:
    """Return the environment variables that the sources name."""
    root = Path(ticketkit.__file__).parents[1]
    texts = [
        path.read_text() for name in ("ticketkit", "ticketkit_asr") for path in sorted((root / name).rglob("*.py"))
    ]
    found = {name for text in texts for name in re.findall(r"\"(TICKETKIT_[A-Z_]+)\"", text)}
    return sorted(found | {discovery.ALLOW, discovery.BLOCK, observers.CHECK})


if __name__ == "__main__":
    FILE.write_text(json.dumps(snapshot(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    typer.echo(f"wrote {FILE}")
