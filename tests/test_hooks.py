"""Every hook has a section in docs/hooks.md, a plugin that uses it, a test that names it, and an example that runs."""

import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketkit
from tests.hook_sections import COMMAND, PAGE, ROOT, example, page, prose, signature, users
from ticketkit import IMP, Plugins
from ticketkit.config import parse_config
from ticketkit.discovery import PluginFacts
from ticketkit.experiment import run_experiment
from ticketkit.export import FACTS_FILE, export
from ticketkit.plugin_checks import hook_names
from ticketkit.testing import (
    check_allocator,
    check_criterion,
    check_granularity,
    check_schedule,
    mlp,
)

HOOKS = hook_names()
EVENTS = [hook for hook in HOOKS if not hook.startswith("ticketkit_register_")]
OWN = {"test_hooks.py", "hook_sections.py", "api.py"}  # these go over all hooks and so prove nothing of one


def sections() -> dict[str, str]:
    """Return the text under each heading of the page that is a hook's name."""
    parts = re.split(r"^## (ticketkit_\w+)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def plugin(*hooks: str) -> types.ModuleType:
    """Return one plugin made of the examples of some hooks."""
    module = types.ModuleType("examples")
    vars(module).update(json=json, ticketkit=ticketkit, torch=torch, types=types)
    for hook in hooks:
        exec(compile(example(hook), f"<example of {hook}>", "exec"), vars(module))
    return module


def with_examples(*hooks: str) -> Plugins:
    plugins = Plugins()
    plugins.add(plugin(*hooks), PluginFacts("examples", "examples", "examples", "1"))
    return plugins


# The page


def test_the_page_has_a_section_for_every_hook_in_the_order_of_the_specifications() -> None:
    assert list(sections()) == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_a_section_has_the_exact_signature_the_words_and_the_example_of_its_hook(hook: str) -> None:
    text = sections()[hook]
    for part in (signature(hook), prose(hook), example(hook)):
        assert part, f"{hook} needs a docstring that ends in an example"
        assert part in text, f"docs/hooks.md differs from ticketkit/hookspecs.py; run: {COMMAND}"


def test_the_page_names_who_uses_each_hook_as_it_is_today() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), f"docs/hooks.md is out of date; run: {COMMAND}"


def test_what_the_page_says_that_hooks_get_is_there() -> None:
    seen: dict[str, Any] = {}
    choose = Plugins().choose

    def spy(kind: str, name: str, role: str) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            seen[role] = args[-1]
            return choose(kind, name).call(*args, **kwargs)

        return called

    imp = IMP(
        mlp(),
        rounds=1,
        criterion=spy("criterion", "magnitude", "ScoreInputs"),
        granularity=spy("granularity", "weight", "Layout"),
        schedule=spy("schedule", "geometric", "Target"),
        batches=lambda: [torch.zeros(1, 6)],
        loss=lambda model, batch: model(batch).sum(),
    )
    for round in imp:
        seen["Round"] = round
    seen |= {"RoundRecord": imp.records[0], "Ticket": imp.tickets[0], "Mask": imp.tickets[0].mask}
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {row[0] for row in rows} == seen.keys()
    named = [(kind, name) for kind, text in rows for name in re.findall(r"`(\w+)(?:\(\w*\))?`", text)]
    assert len(named) > 20
    assert [f"{kind}.{name}" for kind, name in named if not hasattr(seen[kind], name)] == []


# Who uses and who tests them


@pytest.mark.parametrize("hook", HOOKS)
def test_a_plugin_uses_every_hook(hook: str) -> None:
    assert users(hook), f"no plugin under plugins/, ticketkit_asr/ or ticketkit/builtin/ implements {hook}"


@pytest.mark.parametrize("hook", HOOKS)
def test_a_test_names_every_hook(hook: str) -> None:
    tests = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "plugins").glob("*/tests/**/*.py")]
    naming = [path for path in tests if path.name not in OWN and hook in path.read_text(encoding="utf-8")]
    assert naming, f"no test under tests/ or plugins/*/tests names {hook}"


# The examples, run


def pruned(hook: str, kept: tuple[int, ...], *, rate: float = 0.5, **chosen: str) -> IMP:
    """Return a finished run, in which an example decided something and so many weights stayed in each round."""
    imp = IMP(mlp(), rate=rate, rounds=len(kept) - 1, plugins=with_examples(hook), **chosen)
    for _ in imp:
        pass
    ((kind, name),) = chosen.items()
    assert getattr(imp.tickets[-1].facts, kind).entry == f"examples:{name}"
    assert tuple(ticket.mask.kept for ticket in imp.tickets) == kept
    return imp


def test_the_criterion_keeps_the_smallest() -> None:
    imp = pruned("ticketkit_register_criteria", (72, 36, 18), criterion="smallest")
    torch.manual_seed(0)
    start, mask = dict(mlp().named_parameters()), imp.tickets[-1].mask
    kept = [weight for name in mask for weight in start[name][mask[name]].abs().tolist()]
    gone = [weight for name in mask for weight in start[name][~mask[name]].abs().tolist()]
    assert (len(kept), len(gone)) == (18, 54)
    assert max(kept) <= min(gone)
    check_criterion("smallest", plugins=with_examples("ticketkit_register_criteria"))


def test_the_schedule_goes_down_at_once() -> None:
    hook = "ticketkit_register_schedules"
    imp = IMP(mlp(), rate=0.5, rounds=2, schedule="at_once", plugins=with_examples(hook))
    assert imp.plan == (72, 18)
    check_schedule("at_once", plugins=with_examples(hook))


@pytest.mark.filterwarnings("ignore::ticketkit.CollapseWarning")  # that is what whole parameters are about
def test_the_granularity_takes_whole_parameters() -> None:
    imp = pruned("ticketkit_register_granularities", (72, 48), rate=0.3, granularity="whole")
    assert imp.tickets[1].mask.counts == {"0.weight": 48, "3.weight": 0}
    check_granularity("whole", plugins=with_examples("ticketkit_register_granularities"))


def test_the_allocator_gives_all_the_same_count() -> None:
    imp = pruned("ticketkit_register_allocators", (72, 36, 18), allocation="fair")
    assert imp.tickets[-1].mask.counts == {"0.weight": 9, "3.weight": 9}
    check_allocator("fair", plugins=with_examples("ticketkit_register_allocators"))


EXPERIMENT = ("ticketkit_register_backbones", "ticketkit_register_corpora", "ticketkit_register_trainers")


def test_backbone_corpus_and_trainer_run_together(tmp_path: Path) -> None:
    plugins = with_examples(*EXPERIMENT)
    settings = {
        "corpus": {"name": "halves", "examples": 16},
        "backbone": {"name": "perceptron", "hidden": 4},
        "trainer": {"name": "one_step", "lr": 0.2},
        "prune": {"rate": 0.5, "rounds": 1},
        "metric": "square",
    }
    seen: list[ticketkit.Progress] = []
    results = run_experiment(parse_config(settings, plugins), tmp_path, plugins, seen.append)
    assert [row.kept for row in results.rows] == [36, 18]
    assert results.corpus == {"name": "halves", "examples": 16}
    assert [progress.metrics for progress in seen] == [dict(row.dev) for row in results.rows]
    assert all(row.test["square"] > 0 for row in results.rows)


def test_the_exporter_writes_a_trained_ticket(tmp_path: Path) -> None:
    imp = IMP(mlp(), rate=0.5, rounds=1)
    for _ in imp:
        pass
    hook = "ticketkit_register_exporters"
    (name,) = re.findall(r'register\("(\w+)"', example(hook))
    chosen = with_examples(hook).choose("exporter", name)
    facts = export(types.SimpleNamespace(module=imp.model), imp.tickets[1], tmp_path / "shipped", chosen)
    written = {path.name for path in (tmp_path / "shipped").iterdir()}
    assert facts["exporter"]["entry"] == f"examples:{name}"
    assert written == {*facts["files"], FACTS_FILE}
    assert json.loads((tmp_path / "shipped" / FACTS_FILE).read_text()) == facts


def test_the_command_stands_beside_ours(tmp_path: Path) -> None:
    source = f"import ticketkit\n\n{example('ticketkit_register_commands')}\n"
    (tmp_path / "examples.py").write_text(source, encoding="utf-8")
    info = tmp_path / "examples-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: examples\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ticketkit]\nexamples = examples\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "ticketkit", "greet", "--name", "ticket"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "hello, ticket\n"), done.stderr


def failing(model: torch.nn.Module) -> None:
    raise RuntimeError("the loop failed")


PRINTED = {
    "ticketkit_run_start": r"from 72 to 36 weights, 0 of 2 rounds are done\n",
    "ticketkit_round_start": r"round 0: 100\.0% left\nround 1: 50\.0% left\n",
    "ticketkit_scores_ready": r"\{'0\.weight': [\d.]+, '3\.weight': [\d.]+\}\n",
    "ticketkit_mask_ready": r"round 1 lets 36 weights go\n",
    "ticketkit_round_end": r"0 \{'wer': 0\.5\}\n1 \{'wer': 0\.5\}\n",
    "ticketkit_ticket_saved": r"\S+ticket\.safetensors 1\.0\n\S+ticket\.safetensors 0\.5\n",
    "ticketkit_run_error": r"round 0 failed: the loop failed\n",
    "ticketkit_run_end": r"0\.5\n",
}


def test_what_every_example_of_an_event_prints_is_known() -> None:
    assert list(PRINTED) == EVENTS


@pytest.mark.parametrize("event", EVENTS)
def test_an_observer_prints_what_it_saw_and_changes_nothing(
    event: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKETKIT_CHECK_OBSERVERS", "1")
    imp = IMP(mlp(), rate=0.5, rounds=1, run_dir=tmp_path, plugins=with_examples(event))
    if event == "ticketkit_run_error":
        with pytest.raises(RuntimeError, match="the loop failed"):
            imp.run(failing)
    else:
        imp.run(lambda model: None, lambda model: {"wer": 0.5})
    printed = capsys.readouterr().out
    assert re.fullmatch(PRINTED[event], printed), printed
