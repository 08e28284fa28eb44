"""A new plugin, ready to install: its project, one module with a working example, and a test that passes."""

import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from packaging.version import Version

from ticketkit.discovery import RESERVED, left_out
from ticketkit.errors import ConfigError
from ticketkit.plugins import Plugins
from ticketkit.registry import KINDS, suggestion
from ticketkit.storage import PARTIAL, file_system_errors

OBSERVER, COMMAND = "observer", "command"
PREFIX = "ticketkit-"
_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Sample:
    """What a new package of one kind says of itself: in a line, and how it is used (`$name`, `$command`)."""

    summary: str
    use: str
    entry: str = "$module"


IN_A_CONFIG = "In a config, or with `--set`:\n\n```yaml\n{}\n```"
SAMPLES = {
    "criterion": Sample(
        "A criterion for ticketkit: a weight counts for what it is and for how far it came",
        IN_A_CONFIG.format("prune: {rate: 0.2, rounds: 10, criterion: {name: $name, pull: 2.0}}"),
    ),
    "schedule": Sample(
        "A schedule for ticketkit: down along a power of what is left to go",
        IN_A_CONFIG.format("prune: {density: 0.05, rounds: 10, schedule: {name: $name, power: 2}}"),
    ),
    "granularity": Sample(
        "A granularity for ticketkit: neighbouring rows of a matrix live and die together",
        IN_A_CONFIG.format("prune: {rate: 0.2, rounds: 10, granularity: {name: $name, rows: 4}}"),
    ),
    "allocation": Sample(
        "An allocator for ticketkit: the first and the last parameter stay denser",
        IN_A_CONFIG.format("prune: {rate: 0.2, rounds: 10, allocation: {name: $name, ends: 3}}"),
    ),
    "backbone": Sample(
        "A backbone for ticketkit: a perceptron with one hidden layer",
        IN_A_CONFIG.format("backbone: {name: $name, hidden: 32}"),
    ),
    "corpus": Sample(
        "A corpus for ticketkit: vectors of which one half has the larger sum",
        IN_A_CONFIG.format("corpus: {name: $name, examples: 256}"),
    ),
    "trainer": Sample(
        "A trainer for ticketkit: Adam on cross-entropy, epochs chosen on dev",
        IN_A_CONFIG.format("trainer: {name: $name, epochs: 20}\nmetric: error"),
    ),
    "exporter": Sample(
        "An exporter for ticketkit: kept weights and their indices",
        "```sh\nticketkit export runs/mine/extreme.safetensors --to shipped --exporter $name\n```",
    ),
    OBSERVER: Sample(
        "An observer for ticketkit: a line of JSON for every round",
        "It watches every run as soon as it is installed; `TICKETKIT_BLOCK_PLUGINS=$name` keeps it out.",
        entry="$module:plugin",
    ),
    COMMAND: Sample(
        "A command for ticketkit: the emptiest parameters of a ticket",
        "```sh\nticketkit $command runs/mine/extreme.safetensors\n```",
    ),
}


def write_package(name: str, kind: str, directory: Path, *, taken: Collection[str] = ()) -> list[Path]:
    """Write a package for a plugin into a new directory, whole or not at all, and return its files.

    `kind` is a key of `SAMPLES`. The plugin and its entry are called `name` with `_` for `-`; so that both can be had
    beside what is installed, no plugin may have that name, nor an entry of that kind, nor any of `taken`.

    Raises `ConfigError` for a kind that there is not, a name that will not do, and a directory that exists, and
    `StorageError` if it cannot be written.
    """
    if kind not in SAMPLES:
        raise ConfigError(f"there is no kind of plugin {kind!r}{suggestion(kind, SAMPLES)}")
    identifier = _checked_name(name, kind, taken)
    if directory.exists():
        raise ConfigError(f"{directory} exists already; choose another place for the package")
    texts = package_texts(identifier, kind)
    with file_system_errors(directory):
        directory.absolute().parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=directory.absolute().parent, prefix=f".{directory.name}.", suffix=PARTIAL))
        try:
            for place, text in texts.items():
                (partial / place).parent.mkdir(exist_ok=True)
                (partial / place).write_text(text, encoding="utf-8")
            partial.chmod(0o755)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return [directory / place for place in texts]


def package_texts(name: str, kind: str) -> dict[str, str]:
    """Return the content of every file of a package by its path in it; `name` is an identifier.

    >>> list(package_texts("sharpest", "criterion"))
    ['pyproject.toml', 'ticketkit_sharpest.py', 'tests/test_sharpest.py', 'README.md']
    """
    sample, hyphened = SAMPLES[kind], name.replace("_", "-")
    module, project = f"ticketkit_{name}", f"{PREFIX}{hyphened}"
    names = {"name": name, "command": hyphened, "module": module, "project": project, "version": _lowest_version()}
    names |= {part: Template(getattr(sample, part)).substitute(names) for part in ("summary", "use", "entry")}
    return {
        "pyproject.toml": _filled("pyproject.toml", names),
        f"{module}.py": _filled(f"{kind}.py", names),
        f"tests/test_{name}.py": _filled(f"test_{kind}.py", names),
        "README.md": _filled("README.md", names),
    }


def _filled(template: str, names: Mapping[str, str]) -> str:
    text = files("ticketkit").joinpath("templates", f"{template}.template").read_text(encoding="utf-8")
    return Template(text).substitute(names)


def _lowest_version() -> str:
    """Return the version of ticketkit, without what changes nothing for plugins: 0.3 for 0.3.1."""
    installed = Version(version("ticketkit"))
    return f"{installed.major}.{installed.minor}"


def _checked_name(name: str, kind: str, taken: Collection[str]) -> str:
    """Return the name as an identifier; raise `ConfigError` if it is none, or somebody has it."""
    identifier = name.replace("-", "_")
    if not _NAME.fullmatch(identifier):
        raise ConfigError(
            f"a plugin cannot be called {name!r}: its name becomes that of a distribution, a module and an entry; give "
            "it letters, digits, '-' and '_', a letter first and a letter or a digit last"
        )
    if identifier.lower().startswith("ticketkit_"):
        raise ConfigError(f"{name!r}: the distribution gets the prefix {PREFIX!r} by itself; leave it out")
    if owner := _owner(identifier, kind, taken):
        raise ConfigError(f"{name!r} is taken by {owner}; choose another name")
    return identifier


def _owner(name: str, kind: str, taken: Collection[str]) -> str:
    """Return who has a name that a new plugin of a kind would need, or nothing."""
    plugins = Plugins.discover()
    if name in RESERVED:
        return "ticketkit itself"
    if {name, name.replace("_", "-")} & set(taken):
        return f"a {kind} of ticketkit"
    for facts in (*plugins.loaded, *plugins.broken):
        if facts.name == name:
            return str(facts)
    if name in left_out():
        return f"a plugin that is left out: {left_out()[name]}"
    if kind in KINDS:
        entries = [entry for entry in plugins.registries[kind] if entry.name == name]
        if entries:
            return f"the {kind} of plugin {entries[0].plugin!r} ({entries[0].distribution} {entries[0].version})"
    if find_spec(f"ticketkit_{name}") is not None:
        return f"the module ticketkit_{name}, which can be imported already"
    return ""
