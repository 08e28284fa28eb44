import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from pathlib import Path

import pytest

from ticketkit import ConfigError, Plugins
from ticketkit.testing import check_criterion, plugin_installed

SOURCE = '''
import ticketkit

@ticketkit.hookimpl
def ticketkit_register_criteria(register):
    register("{name}", {name})

def {name}(inputs):
    """Return |w|."""
    return {{key: weights.abs() for key, weights in inputs.weights.items()}}
'''
SETTINGS = """
[project]
name = "ticketkit-{name}"
version = "2.5"
[project.entry-points.ticketkit]
{name} = "{value}"
"""
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A plugin in a single file: a criterion called smallish."""
    return written(tmp_path / "project", "smallish", "ticketkit_smallish", "ticketkit_smallish.py")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    assert not [name for name in sys.modules if "smallish" in name]


def written(folder: Path, name: str, value: str, module: str, settings: str = "") -> Path:
    path = folder / module
    path.parent.mkdir(parents=True)
    path.write_text(SOURCE.format(name=name))
    (folder / "pyproject.toml").write_text(SETTINGS.format(name=name, value=value) + settings)
    return folder


def test_a_project_is_found_like_an_installed_distribution(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKETKIT_LOAD_PLUGINS", "smallish")
    with plugin_installed(project, tmp_path / "site"):
        plugins = Plugins.discover()
        assert plugins.broken == []
        assert ("smallish", "ticketkit-smallish", "2.5") in [
            (p.name, p.distribution, p.version) for p in plugins.loaded
        ]
        assert distribution("ticketkit-smallish").version == "2.5"
        chosen = plugins.choose("criterion", "smallish")
        assert (chosen.provenance.entry, chosen.provenance.version) == ("smallish:smallish", "2.5")
        check_criterion("smallish", examples=1)


def test_nothing_is_left_afterwards(project: Path, tmp_path: Path) -> None:
    path, modules = list(sys.path), dict(sys.modules)
    with plugin_installed(project, tmp_path / "site"):
        import_module("ticketkit_smallish")
        assert sys.path != path
    assert sys.path == path
    with pytest.raises(ModuleNotFoundError), plugin_installed(project, tmp_path / "site"):
        import_module("ticketkit_smallish.no_such_part")
    assert sys.path == path
    assert {name for name in sys.modules if name not in modules} == set()
    with pytest.raises(PackageNotFoundError):
        distribution("ticketkit-smallish")
    assert not [point for point in entry_points(group="ticketkit") if point.name == "smallish"]


def test_a_module_that_was_loaded_before_comes_back(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = object()
    monkeypatch.setitem(sys.modules, "ticketkit_smallish", before)  # type: ignore[arg-type]
    with plugin_installed(project, tmp_path / "site"):
        assert import_module("ticketkit_smallish") is not before
    assert sys.modules["ticketkit_smallish"] is before


def test_what_is_really_installed_is_left_alone(project: Path, tmp_path: Path) -> None:
    with plugin_installed(project, tmp_path / "site"):
        path, loaded = list(sys.path), import_module("ticketkit_smallish")
        with plugin_installed(project, tmp_path / "other"):
            assert sys.path == path
            assert import_module("ticketkit_smallish") is loaded
        assert sys.path == path
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        ("ticketkit_smallish/plugin.py", ""),
        ("ticketkit_smallish/plugin.py", '[tool.hatch.build.targets.wheel]\npackages = ["ticketkit_smallish"]'),
        ("src/ticketkit_smallish/plugin.py", '[tool.hatch.build.targets.wheel]\npackages = ["src/ticketkit_smallish"]'),
    ],
    ids=["at the root", "listed", "below src"],
)
def test_packages_are_found_where_the_wheel_takes_them_from(tmp_path: Path, module: str, settings: str) -> None:
    project = written(tmp_path / "project", "smallish", "ticketkit_smallish.plugin", module, settings)
    (project / module).with_name("__init__.py").touch()
    with plugin_installed(project, tmp_path / "site"):
        Plugins.discover().choose("criterion", "smallish")


def test_what_is_no_plugin_project_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"is no plugin project: its pyproject.toml cannot be read"),
        plugin_installed(tmp_path, tmp_path),
    ):
        pass
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "smallish"\n')
    with pytest.raises(ConfigError, match=r"needs \[project\] with a name, and \[project.entry-points.ticketkit\]"):
        plugin_installed(tmp_path, tmp_path).__enter__()


def test_the_example_criterion_is_checked_in_one_line(tmp_path: Path) -> None:
    project = ROOT / "plugins" / "ticketkit-movement"
    if not project.is_dir():
        pytest.skip("an installed package carries no example plugins")
    with plugin_installed(project, tmp_path):
        check_criterion("movement", examples=1)
