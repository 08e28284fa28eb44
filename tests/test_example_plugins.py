"""The example plugins together: they use every hook between them, and each is what the docs say of plugins."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ticketkit import Plugins
from ticketkit.plugin_checks import hook_names
from ticketkit.registry import KINDS, Entry
from ticketkit.testing import plugin_installed

FOLDER = Path(__file__).parents[1] / "plugins"
PROJECTS = sorted(path.parent for path in FOLDER.glob("*/pyproject.toml"))
HEAVY = {"torch", "torchaudio", "transformers", "tensorboard", "mlflow"}
CHECKS = {
    "criterion": "check_criterion",
    "schedule": "check_schedule",
    "granularity": "check_granularity",
    "allocation": "check_allocator",
    "backbone": "check_backbone",
    "corpus": "check_corpus",
    "trainer": "check_trainer",
    "exporter": "check_exporter",
}

if not PROJECTS:
    pytest.skip("the example plugins are not beside these tests", allow_module_level=True)


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugins]:
    """The plugins of an environment where all examples are installed."""
    with ExitStack() as installed, pytest.MonkeyPatch.context() as patch:
        for project in PROJECTS:
            installed.enter_context(plugin_installed(project, tmp_path_factory.mktemp(project.name)))
        patch.setenv("TICKETKIT_LOAD_PLUGINS", ",".join(short(project) for project in PROJECTS))
        yield Plugins.discover()


def short(project: Path) -> str:
    return project.name.removeprefix("ticketkit-")


def entries(plugins: Plugins, project: Path) -> list[Entry]:
    return [entry for registry in plugins.registries.values() for entry in registry if entry.plugin == short(project)]


def test_all_of_them_load(plugins: Plugins) -> None:
    assert plugins.broken == []
    assert [plugin.name for plugin in plugins.loaded[1:]] == [short(project) for project in PROJECTS]
    assert [plugin.distribution for plugin in plugins.loaded[1:]] == [project.name for project in PROJECTS]


def test_the_command_line_waits_for_none_of_them(plugins: Plugins) -> None:
    """`ticketkit --help` imports every plugin, to look for commands."""
    packages = [plugin.package for plugin in plugins.loaded[1:]]
    script = f"import sys, {', '.join(packages)}; print(*{HEAVY} & set(sys.modules))"
    path = os.pathsep.join([*map(str, PROJECTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""


def test_every_hook_has_an_example(plugins: Plugins) -> None:
    used = {hook for plugin in plugins.loaded[1:] for hook in plugin.hooks}
    assert used == set(hook_names())


UNDESCRIBED = """
import json, sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from ticketkit import Options, Plugins
from ticketkit.testing import plugin_installed

with ExitStack() as installed:
    for project in sys.argv[1:]:
        installed.enter_context(plugin_installed(Path(project), Path(installed.enter_context(TemporaryDirectory()))))
    entries = [entry for registry in Plugins.discover().registries.values() for entry in registry]
    models = [entry.options for entry in entries if entry.options and entry.plugin != "builtin"]
    assert all(issubclass(model, Options) for model in models)
    fields = {(model.__name__, name): field for model in models for name, field in model.model_fields.items()}
    print(json.dumps([len(fields), [name for name, field in fields.items() if not field.description]]))
"""


def test_every_option_says_what_it_does() -> None:
    """In a process of its own: where a module is loaded twice, under two names, pydantic finds no docstrings."""
    command = [sys.executable, "-c", UNDESCRIBED, *map(str, PROJECTS)]
    environment = os.environ | {"TICKETKIT_LOAD_PLUGINS": ",".join(short(project) for project in PROJECTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, undescribed = json.loads(done.stdout)
    assert count > 20
    assert undescribed == []


@pytest.mark.parametrize("project", PROJECTS, ids=short)
def test_every_entry_is_held_to_the_laws_of_its_kind(plugins: Plugins, project: Path) -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in sorted(project.glob("tests/test_*.py")))
    wanted = {CHECKS[entry.kind] for entry in entries(plugins, project)}
    assert [check for check in sorted(wanted) if f"{check}(" not in tests] == []
    assert CHECKS.keys() == KINDS.keys()


@pytest.mark.parametrize("project", PROJECTS, ids=short)
def test_every_readme_says_how_to_install_it_and_names_all_its_entries(plugins: Plugins, project: Path) -> None:
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert f"pip install ./plugins/{project.name}" in readme or f"pip install './plugins/{project.name}[" in readme
    assert [entry.name for entry in entries(plugins, project) if f"`{entry.name}`" not in readme] == []
