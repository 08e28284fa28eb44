"""Data flows one way: each module imports only modules above it, and outsiders only what is public."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ticketkit

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "ticketkit"

ORDER = [
    "errors",
    "storage",
    "holder",
    "locks",
    "options",
    "provenance",
    "roles",
    "names",
    "sharding",
    "macs",
    "timing",
    "mask",
    "distributed",
    "scope",
    "rng",
    "probe",
    "criterion",
    "contenders",
    "selection",
    "granularity",
    "members",
    "contest",
    "units",
    "schedule",
    "allocation",
    "state",
    "snapshot",
    "rewind",
    "enforce",
    "gaps",
    "planes",
    "ticket",
    "ledger",
    "round",
    "capture",
    "rewinder",
    "analysis",
    "dead",
    "comparison",
    "connectivity",
    "paths",
    "adopt",
    "controls",
    "registry",
    "hookspecs",
    "pruning",
    "export",
    "runtime.products",
    "runtime.recurrent",
    "runtime.layers",
    "runtime.attention",
    "runtime.choosing",
    "runtime.idle",
    "runtime.preparing",
    "runtime.quantising",
    "runtime.saving",
    "runtime",
    "builtin.weight_criteria",
    "builtin.gradient_criteria",
    "builtin.synflow",
    "builtin.activation_criteria",
    "builtin.granularities",
    "builtin.n_m",
    "builtin.coupled_units",
    "builtin.allocators",
    "builtin.schedules",
    "builtin.exporters",
    "builtin.onnx_exporter",
    "builtin.runtime_exporters",
    "builtin",
    "plugin_checks",
    "discovery",
    "plugins",
    "observers",
    "imp",
    "adapters.holding",
    "adapters.lightning_position",
    "adapters.lightning",
    "adapters.speechbrain_position",
    "adapters.speechbrain",
    "adapters.accelerate",
    "adapters.transformers_progress",
    "adapters.transformers",
    "adapters",
    "config",
    "origins",
    "building",
    "history",
    "results",
    "experiment",
    "whereabouts",
    "trained",
    "exported",
    "bench",
    "bench_report",
    "study.overlay",
    "study.config",
    "study.jobs",
    "study.ladder",
    "study.grids",
    "study.examinations",
    "study.directory",
    "study.trainings",
    "study.materials",
    "study.worker",
    "study.executors.work",
    "study.executors.processes",
    "study.executors.ray_tasks",
    "study.executors.slurm_jobs",
    "study.executors.supervising",
    "study.executors",
    "study.estimate",
    "study.statistics",
    "study.points",
    "study.history",
    "study.costs",
    "study.findings",
    "study.judging",
    "study.evidence",
    "study.chapters.existence",
    "study.chapters.controls",
    "study.chapters.transfer",
    "study.chapters.structure",
    "study.chapters.noise",
    "study.chapters",
    "study.pages.drawing",
    "study.pages.html",
    "study.pages.markdown",
    "study.pages",
    "study.report",
    "study",
    "card",
    "report",
    "display",
    "console",
    "plugin_commands",
    "plugin_files",
    "study_commands",
    "plugin_tables",
    "scaffold",
    "cli",
    "__main__",
]
ENGINE_FILES = sorted(path for path in ENGINE.rglob("*.py") if "testing" not in path.parts)
OUTSIDE_FILES = sorted(path for folder in ("ticketkit_asr", "plugins") for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """Return `builtin.criteria` for ticketkit/builtin/criteria.py, and "" for the package itself."""
    parts = path.relative_to(ENGINE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node that is not inside `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from (inner for branch in node.orelse for inner in (branch, *at_run_time(branch)))
            continue
        yield node
        yield from at_run_time(node)


def imported(path: Path, *, typing_too: bool = False) -> set[str]:
    """Return the full names of the modules that a file imports, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if typing_too else at_run_time(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(filter(None, map(module_name, ENGINE_FILES))) == sorted(ORDER)


@pytest.mark.parametrize("path", ENGINE_FILES, ids=module_name)
def test_a_module_imports_only_modules_before_it(path: Path) -> None:
    own = module_name(path)
    before = ORDER[: ORDER.index(own)] if own else []
    ours = {name.removeprefix("ticketkit.") for name in imported(path) if name.startswith("ticketkit.")}
    assert {module for module in ORDER if module in ours} <= {*before, own}


@pytest.mark.parametrize("path", ENGINE_FILES, ids=module_name)
def test_the_engine_knows_neither_speech_nor_its_tests(path: Path) -> None:
    names = imported(path, typing_too=True)
    assert not {name for name in names if name.partition(".")[0] in ("ticketkit_asr", "hypothesis", "pytest")}
    assert not {name for name in names if name.startswith("ticketkit.testing")}


@pytest.mark.parametrize("path", OUTSIDE_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_outsiders_use_only_public_names(path: Path) -> None:
    names = {name for name in imported(path, typing_too=True) if name.partition(".")[0] == "ticketkit"}
    if "tests" in path.parts:
        names = {name for name in names if not name.startswith("ticketkit.testing")}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names |= {
        f"ticketkit.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ticketkit"
    }
    assert names - {"ticketkit"} <= {f"ticketkit.{name}" for name in ticketkit.__all__}


@pytest.mark.parametrize("path", [path for path in OUTSIDE_FILES if "tests" not in path.parts], ids=lambda p: p.name)
def test_nothing_imports_the_testing_package(path: Path) -> None:
    assert not {name for name in imported(path, typing_too=True) if name.startswith("ticketkit.testing")}


def test_every_public_name_is_there_and_comes_from_where_it_is_said_to() -> None:
    assert ticketkit.__all__ == sorted(ticketkit.__all__, key=lambda name: (not name.isupper(), name))
    assert dir(ticketkit) == sorted(ticketkit.__all__)
    for name in ticketkit.__all__:
        assert getattr(ticketkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = ticketkit.Nothing


def test_every_public_name_is_imported_for_type_checkers_and_nothing_else_is() -> None:
    tree = ast.parse((ENGINE / "__init__.py").read_text(encoding="utf-8"))
    typed = {}
    for block in tree.body:
        if isinstance(block, ast.If):
            for node in block.body:
                assert isinstance(node, ast.ImportFrom)
                typed |= {alias.asname or alias.name: node.module for alias in node.names}
    assert sorted(typed) == sorted(ticketkit.__all__)
    for name, home in typed.items():
        assert getattr(importlib.import_module(str(home)), name) is getattr(ticketkit, name)


def test_the_budget_modules_need_no_torch() -> None:
    for name in ("schedule", "allocation", "errors", "storage"):
        assert not {module for module in imported(ENGINE / f"{name}.py") if module.partition(".")[0] == "torch"}
