"""A newcomer's afternoon: a new package, pip, pytest, a run, an upgrade, an uninstallation, and a broken neighbour.

In a virtual environment of its own that sees this one's packages; nothing is downloaded and nothing here is changed.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from ticketkit import Ticket

TESTS = Path(__file__).parent
CONFIG = str(TESTS / "toy" / "toy.yaml")
PAGE = TESTS.parent / "docs" / "writing-plugins.md"


@dataclass(frozen=True)
class Machine:
    """A virtual environment and the folder that its user works in."""

    python: Path
    home: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Return what `python -m ARGUMENTS` does there; the toy corpus, backbone and trainer can be imported."""
        environment = os.environ | {"PYTHONPATH": str(TESTS / "toy"), "COLUMNS": "160", "NO_COLOR": "1"}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        return subprocess.run(
            [str(self.python), "-m", *arguments],
            cwd=self.home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def succeed(self, *arguments: str) -> str:
        """Return what a command prints that has to succeed."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def install(self, *packages: str) -> None:
        """Let pip build and install packages from folders."""
        self.succeed("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", *packages)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    folder = tmp_path_factory.mktemp("machine")
    venv.create(folder / "venv", with_pip=False, symlinks=os.name != "nt")
    paths = sysconfig.get_paths(vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    beneath = dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    lines = [f"import site; site.addsitedir({place!r})" for place in beneath]  # and what is editable there
    (Path(paths["purelib"]) / "beneath.pth").write_text("\n".join(lines))
    (folder / "home").mkdir()
    return Machine(Path(paths["scripts"]) / Path(sys.executable).name, folder / "home")


@pytest.fixture(scope="module")
def installed(machine: Machine) -> str:
    """A new criterion and a broken plugin beside it, both installed by pip; what `ticketkit plugins new` printed."""
    printed = machine.succeed("ticketkit", "plugins", "new", "loyal", "--kind", "criterion")
    broken = machine.home / "broken"
    broken.mkdir()
    pyproject = (machine.home / "ticketkit-loyal" / "pyproject.toml").read_text()
    (broken / "pyproject.toml").write_text(pyproject.replace("loyal", "broken"))
    (broken / "ticketkit_broken.py").write_text("import nothing_of_that_name\n")
    (broken / "README.md").write_text("")
    machine.install("./ticketkit-loyal", "./broken")
    return printed


@pytest.fixture(scope="module")
def finished(machine: Machine, installed: str) -> str:
    """A run on the toy corpus that names the new criterion; what it printed."""
    chosen = ("--set", "prune.criterion={name: loyal, pull: 3}", "--set", "prune.rounds=1")
    return machine.succeed("ticketkit", "run", CONFIG, "--out", "run", *chosen)


def test_a_new_package_is_installed_and_its_tests_pass(machine: Machine, installed: str) -> None:
    for file in ("pyproject.toml", "ticketkit_loyal.py", "tests/test_loyal.py", "README.md"):
        assert f"wrote ticketkit-loyal/{file}" in installed
    assert "now: pip install -e " in installed
    assert "2 passed" in machine.succeed("pytest", "-p", "no:cacheprovider", "-q", "ticketkit-loyal")


def test_a_run_names_it_and_its_ticket_says_so(machine: Machine, finished: str) -> None:
    facts = Ticket.load(machine.home / "run" / "rounds" / "001" / "ticket.safetensors").facts
    assert facts.criterion is not None
    assert facts.criterion.model_dump() == {
        "entry": "loyal:loyal",
        "version": "0.1.0",
        "distribution": "ticketkit-loyal",
        "options": {"pull": 3.0},
    }


def test_a_broken_plugin_beside_it_is_named_and_hurts_nobody(finished: str) -> None:
    (warning,) = [line for line in finished.splitlines() if "plugin 'broken'" in line]
    assert warning.startswith("warning: plugin 'broken' (distribution ticketkit-broken 0.1.0) cannot be imported")
    assert warning.endswith("No module named 'nothing_of_that_name'; it is left out")


def test_a_run_goes_on_only_with_the_version_it_was_started_with(machine: Machine, finished: str) -> None:
    """Upgraded, then uninstalled: each is one message, which docs/writing-plugins.md shows as it is."""
    pyproject = machine.home / "ticketkit-loyal" / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('version = "0.1.0"', 'version = "0.2.0"'))
    machine.install("./ticketkit-loyal")
    upgraded = machine.run("ticketkit", "resume", "run")
    assert upgraded.returncode == 2
    came = "criterion 'loyal' came from ticketkit-loyal 0.1.0 (plugin 'loyal')"
    assert f"{came}, but ticketkit-loyal 0.2.0 is installed" in upgraded.stderr

    machine.succeed("pip", "uninstall", "--quiet", "--yes", "ticketkit-loyal")
    gone = machine.run("ticketkit", "resume", "run")
    assert gone.returncode == 2
    assert f"{came}: it is not installed; go on with: pip install 'ticketkit-loyal==0.1.0'" in gone.stderr
    assert "Traceback" not in upgraded.stderr + gone.stderr

    shown = PAGE.read_text(encoding="utf-8").partition("<!-- resume:")[2].partition("```text\n")[2].partition("```")[0]
    errors = [done.stderr[done.stderr.index("error: ") :] for done in (upgraded, gone)]
    assert shown == "".join(errors), "docs/writing-plugins.md shows other messages than resume prints"
