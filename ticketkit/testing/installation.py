"""A plugin project as it would be found if it were installed, without installing it."""

import importlib
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from ticketkit.errors import ConfigError

GROUP = "ticketkit"


@contextmanager
def plugin_installed(project: Path, site: Path) -> Iterator[None]:
    """Let a plugin project be found inside the `with` block as an installed distribution would be.

    `project` is the folder of its `pyproject.toml`, with entry points for ticketkit and the module or package that the
    wheel would hold (hatchling's `only-include` or `packages`; by default at the root). Its metadata is written into
    `site`, a folder to throw away, and both go to the front of `sys.path`; inside, the plugin is imported afresh.
    Afterwards `sys.path` and the plugin's part of `sys.modules` are as before. If the distribution is really installed,
    nothing happens at all: then that is what is tested.

    Raises `ConfigError` for a project without a name or without entry points for ticketkit.

        with plugin_installed(Path(__file__).parents[1], tmp_path):
            check_criterion("movement")
    """
    settings = _settings(project)
    name = settings["project"]["name"]
    if _is_installed(name):
        yield
        return
    _write_metadata(settings["project"], site)
    packages = _packages(settings)
    path, before = list(sys.path), _taken_out(packages)
    sys.path[:0] = [str(site), *_roots(project, settings)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        _taken_out(packages)
        sys.modules.update(before)
        importlib.invalidate_caches()


def _settings(project: Path) -> dict[str, Any]:
    try:
        settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{project} is no plugin project: its pyproject.toml cannot be read: {error}") from error
    described = settings.get("project", {})
    if "name" not in described or not described.get("entry-points", {}).get(GROUP):
        raise ConfigError(
            f"{project / 'pyproject.toml'} needs [project] with a name, and [project.entry-points.{GROUP}] with a line "
            'such as movement = "ticketkit_movement"'
        )
    return settings


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _write_metadata(described: Mapping[str, Any], site: Path) -> None:
    """Write what a wheel's installation would: name, version and entry points."""
    name, version = described["name"], described.get("version", "0")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    groups = [
        f"[{group}]\n" + "".join(f"{point} = {value}\n" for point, value in points.items())
        for group, points in described["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")


def _wheel(settings: Mapping[str, Any]) -> list[str]:
    """Return the files and folders that hatchling would put into the wheel, if the project lists them."""
    wheel = settings.get("tool", {}).get("hatch", {}).get("build", {}).get("targets", {}).get("wheel", {})
    return [*wheel.get("packages", []), *wheel.get("only-include", [])]


def _packages(settings: Mapping[str, Any]) -> set[str]:
    """Return the top-level names that the plugin is imported under."""
    values = settings["project"]["entry-points"][GROUP].values()
    listed = {Path(part).name.removesuffix(".py") for part in _wheel(settings)}
    return listed | {value.partition(":")[0].partition(".")[0].strip() for value in values}


def _roots(project: Path, settings: Mapping[str, Any]) -> list[str]:
    """Return the folders in which the plugin's modules and packages lie."""
    parents = [project.resolve() / Path(part).parent for part in _wheel(settings)]
    return [str(root) for root in dict.fromkeys(parents or [project.resolve()])]


def _taken_out(packages: set[str]) -> dict[str, Any]:
    """Remove the plugin's modules from `sys.modules` and return them."""
    names = [name for name in sys.modules if name.partition(".")[0] in packages]
    return {name: sys.modules.pop(name) for name in names}
