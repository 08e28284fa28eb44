"""New packages: of every kind, installed, tested by their own tests, and all of them in one run."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ticketkit
from ticketkit import ConfigError, Plugins, StorageError, cli
from ticketkit.discovery import RESERVED, found_plugins
from ticketkit.plugin_checks import hooks_of
from ticketkit.registry import KINDS
from ticketkit.scaffold import SAMPLES, package_texts, write_package
from ticketkit.testing import plugin_installed

ROOT = Path(__file__).parents[1]
WRITTEN = ["pyproject.toml", "ticketkit_{}.py", "tests/test_{}.py", "README.md"]
SELECTED = "E,F,W,I,B,UP,SIM,RUF,N,C4,PT,PIE,RET,T20,D1,D2,D4,PERF"
IGNORED = "D103,D105,D107,D203,D205,D212,D213,D4,RUF001,RUF002,RUF003"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a new package of every kind, called `my_<kind>`."""
    folder = tmp_path_factory.mktemp("packages")
    for kind in SAMPLES:
        written = write_package(f"my-{kind}", kind, folder / kind)
        assert written == [folder / kind / place.format(f"my_{kind}") for place in WRITTEN]
        assert all(path.is_file() for path in written)
    return folder


@pytest.fixture(scope="module")
def path(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `sys.path` begins with when all these packages are installed, for this process and for others."""
    site, before = tmp_path_factory.mktemp("site"), set(sys.path)
    with ExitStack() as installed:
        for kind in SAMPLES:
            installed.enter_context(plugin_installed(packages / kind, site))
        yield os.pathsep.join(dict.fromkeys(place for place in sys.path if place not in before))


def environment(path: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))}


def test_there_is_a_package_for_every_kind_of_entry_and_for_what_only_watches_or_adds_a_command() -> None:
    assert [*SAMPLES] == [*KINDS, "observer", "command"]


HOOKS = {
    "criterion": ["ticketkit_register_criteria"],
    "schedule": ["ticketkit_register_schedules"],
    "granularity": ["ticketkit_register_granularities"],
    "allocation": ["ticketkit_register_allocators"],
    "backbone": ["ticketkit_register_backbones"],
    "corpus": ["ticketkit_register_corpora"],
    "trainer": ["ticketkit_register_trainers"],
    "exporter": ["ticketkit_register_exporters"],
    "observer": ["ticketkit_run_start", "ticketkit_round_end", "ticketkit_run_end"],
    "command": ["ticketkit_register_commands"],
}


@pytest.mark.usefixtures("path")
def test_a_new_package_has_the_hook_of_its_kind_and_no_other() -> None:
    ours = [found for found in found_plugins() if found.facts.name.startswith("my_")]
    assert {found.facts.name.removeprefix("my_"): hooks_of(found.plugin) for found in ours} == HOOKS


def test_the_tests_of_every_new_package_pass(packages: Path, path: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error", "-v"]
    done = subprocess.run(
        [*command, *(str(packages / kind) for kind in SAMPLES)],
        cwd=packages,
        env=environment(path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in SAMPLES:
        assert re.search(rf"test_my_{kind}\.py::\w+ PASSED", done.stdout), f"no test of a new {kind} has run"
    laws = sum("PASSED" in line and "test_it_keeps_the_laws" in line for line in done.stdout.splitlines())
    assert laws == len(SAMPLES) - 3, "every kind but exporter, observer and command has a conformance check"


def test_new_packages_are_clean_whatever_their_name(packages: Path, tmp_path: Path) -> None:
    for kind in SAMPLES:
        for name in ("x", f"quite_a_long_name_for_a_{kind}"):
            for place, text in package_texts(name, kind).items():
                file = tmp_path / f"{kind}-{name}" / place
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
    check = ["check", "--isolated", "--select", SELECTED, "--ignore", IGNORED, "--line-length", "88"]
    for command in (check, ["format", "--isolated", "--check"]):
        for folder in (packages, tmp_path):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=folder, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_importing_a_new_plugin_does_not_import_torch(path: str) -> None:
    modules = [f"ticketkit_my_{kind}" for kind in SAMPLES]
    script = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=environment(path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "a template imports torch when it is imported"


CONFIG = """
corpus: {name: my_corpus, examples: 32}
backbone: {name: my_backbone, hidden: 12}
trainer: {name: my_trainer, epochs: 3}
prune:
  rounds: 2
  density: 0.5
  criterion: {name: my_criterion, pull: 0.5}
  schedule: {name: my_schedule, power: 1}
  granularity: {name: my_granularity, rows: 1}
  allocation: {name: my_allocation, ends: 1.5}
  rewind: epoch:1
metric: error
"""


@pytest.mark.usefixtures("path")
def test_new_plugins_of_every_kind_take_part_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which main() replaces
    Path("all.yaml").write_text(CONFIG)
    export = ("export", "run/rounds/002/ticket.safetensors", "--to", "shipped", "--exporter", "my_exporter")
    for arguments in (("run", "all.yaml", "--out", "run"), export):
        monkeypatch.setattr(sys, "argv", ["ticketkit", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
    facts = ticketkit.Ticket.load("run/rounds/002/ticket.safetensors").facts
    for kind in ("criterion", "schedule", "granularity", "allocation"):
        used = getattr(facts, kind)
        assert (used.entry, used.version) == (f"my_{kind}:my_{kind}", "0.1.0")
        assert (used.distribution, len(used.options)) == (f"ticketkit-my-{kind}", 1)
    lines = Path("run/my_observer.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]
    assert {path.name for path in Path("shipped").iterdir()} == {"README.md", "export.json", "sparse.safetensors"}


# Names


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("sharpest", "criteria", r"there is no kind of plugin 'criteria'; did you mean 'criterion'\?"),
        ("", "criterion", "cannot be called ''.*letters, digits"),
        ("2nd", "criterion", "cannot be called '2nd'"),
        ("_x", "criterion", "cannot be called '_x'"),
        ("x-", "criterion", "cannot be called 'x-'"),
        ("a b", "criterion", "cannot be called 'a b'"),
        ("größe", "criterion", "cannot be called 'größe'"),
        ("ticketkit-sharpest", "criterion", "gets the prefix 'ticketkit-' by itself"),
        ("builtin", "criterion", "'builtin' is taken by ticketkit itself"),
        ("python", "observer", "'python' is taken by ticketkit itself"),
        ("magnitude", "criterion", r"taken by the criterion of plugin 'builtin' \(ticketkit "),
        ("n-m", "granularity", "'n-m' is taken by the granularity of plugin 'builtin'"),
        ("asr", "corpus", r"'asr' is taken by plugin 'asr' \(distribution ticketkit "),
        ("verify", "command", "'verify' is taken by a command of ticketkit"),
        ("show-all", "command", "'show-all' is taken by a command of ticketkit"),
    ],
)
def test_a_name_that_will_not_do_is_refused_and_nothing_is_written(
    name: str, kind: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_package(name, kind, tmp_path / "new", taken=("verify", "show-all"))
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_taken_by_an_entry_of_its_own_kind_alone(tmp_path: Path) -> None:
    write_package("magnitude", "schedule", tmp_path / "new")
    assert 'register("magnitude", ' in (tmp_path / "new" / "ticketkit_magnitude.py").read_text()


def test_a_plugin_that_is_left_out_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKETKIT_BLOCK_PLUGINS", "asr")
    with pytest.raises(ConfigError, match="'asr' is taken by a plugin that is left out: TICKETKIT_BLOCK_PLUGINS"):
        write_package("asr", "criterion", tmp_path / "new")


def test_a_broken_plugin_keeps_its_name(tmp_path: Path) -> None:
    write_package("cracked", "criterion", tmp_path / "cracked")
    (tmp_path / "cracked" / "ticketkit_cracked.py").write_text("1 / 0")
    message = r"'cracked' is taken by plugin 'cracked' \(distribution ticketkit-cracked 0\.1\.0\)"
    with plugin_installed(tmp_path / "cracked", tmp_path / "site"), pytest.raises(ConfigError, match=message):
        write_package("cracked", "schedule", tmp_path / "new")


def test_a_module_that_is_there_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ticketkit_lonely.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="'lonely' is taken by the module ticketkit_lonely, which can be imported"):
        write_package("lonely", "criterion", tmp_path / "new")


def test_a_directory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(ConfigError, match="new exists already; choose another place"):
        write_package("sharpest", "criterion", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_package_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_package("sharpest", "criterion", tmp_path / "file" / "new")
    with pytest.raises(StorageError, match="cannot write"):
        write_package("x" * 250, "criterion", tmp_path / "new")  # no file system takes names that long
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


NAMES = st.one_of(st.text(max_size=12), st.from_regex(r"\A[A-Za-z][A-Za-z0-9_-]{0,12}\Z"))


@settings(max_examples=20)
@given(NAMES, st.sampled_from([*SAMPLES]))
@example("class", "criterion")
@example("sum", "trainer")
@example("ticketkit", "corpus")
@example("a__b", "observer")
@example("a--b", "command")
def test_any_name_is_refused_or_makes_a_package_that_can_be_installed(
    tmp_path_factory: pytest.TempPathFactory, name: str, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    try:
        written = write_package(name, kind, folder / "new")
    except ConfigError:
        assert list(folder.iterdir()) == []
        return
    project = tomllib.loads(written[0].read_text())["project"]
    ((plugin, value),) = project["entry-points"]["ticketkit"].items()
    assert plugin == name.replace("-", "_")
    assert plugin.isidentifier()
    assert plugin not in RESERVED
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", project["name"]), "PEP 508"
    assert value.partition(":")[0] == written[1].stem
    for path in written[1:3]:
        compile(path.read_text(), path.name, "exec", ast.PyCF_ONLY_AST)
    assert "$" not in "".join(path.read_text() for path in written)
    with plugin_installed(folder / "new", folder / "site"):
        plugins = Plugins.discover()
    facts = plugins.facts(plugin)
    assert facts is not None, plugins.absence(plugin)
    assert facts.distribution == project["name"]
    if kind in KINDS:
        assert plugins.choose(kind, plugin).provenance.entry == f"{plugin}:{plugin}"


def test_the_wheel_holds_the_templates() -> None:
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("an installed package has no sources to build a wheel from")
    held = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    wanted = {f"ticketkit/templates/{path.name}" for path in (ROOT / "ticketkit" / "templates").iterdir()}
    assert len(wanted) == 2 * len(SAMPLES) + 2
    assert wanted <= held
