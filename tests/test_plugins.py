import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from ticketkit import IMP, ConfigError, PluginError, Plugins, ScoreError, Ticket, TicketkitError, hookimpl, hookspecs
from ticketkit.discovery import PluginFacts
from ticketkit.registry import KINDS
from ticketkit.testing import mlp

EVENTS = (
    "run_start",
    "round_start",
    "scores_ready",
    "mask_ready",
    "round_end",
    "ticket_saved",
    "run_error",
    "run_end",
)
FACTS = PluginFacts("mine", "mine", "mine-dist", "3.1")


def plugin(**hooks: Callable[..., Any]) -> types.ModuleType:
    module = types.ModuleType("mine")
    for name, hook in hooks.items():
        setattr(module, name, hookimpl(hook))
    return module


def test_builtins_register_through_the_hooks() -> None:
    plugins = Plugins()
    names = {kind: [entry.name for entry in registry] for kind, registry in plugins.registries.items()}
    assert {"magnitude", "random", "snip", "synflow", "wanda"} <= set(names["criterion"])
    assert {"geometric", "one_shot", "cubic", "explicit"} <= set(names["schedule"])
    assert {"weight", "block", "n_m", "rnn_unit", "head"} <= set(names["granularity"])
    assert {"global", "uniform", "erk", "by_pattern"} <= set(names["allocation"])
    assert {entry.plugin for registry in plugins.registries.values() for entry in registry} == {"builtin"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_registered_through_its_hook(kind: str) -> None:
    plugins = Plugins()
    plugins.add(plugin(**{KINDS[kind]: lambda register: register("mine", lambda: "called")}), FACTS)
    entry = plugins.registries[kind].get("mine")
    assert (entry.kind, entry.plugin, entry.version) == (kind, "mine", "3.1")
    choice = plugins.choose(kind, "mine")
    origin = choice.provenance
    assert (origin.entry, origin.version, origin.distribution) == ("mine:mine", "3.1", "mine-dist")
    assert choice.call() == "called"


def test_every_hook_specification_is_a_registration_or_an_event() -> None:
    specified = {name for name in vars(hookspecs) if name.startswith("ticketkit_")}
    events = {f"ticketkit_{event}" for event in EVENTS}
    assert events <= specified
    registrations = {name for name in specified if name.startswith("ticketkit_register_")}
    assert set(KINDS.values()) <= registrations
    assert all(getattr(hookspecs, name).__doc__ for name in specified)


class Strength(BaseModel):
    model_config = ConfigDict(extra="forbid")

    power: int = 1


def powered(inputs: Any, *, options: Strength) -> dict[str, torch.Tensor]:
    return {name: w.abs() ** options.power for name, w in inputs.weights.items()}


def test_a_choice_may_be_a_name_a_mapping_or_a_callable() -> None:
    plugins = Plugins()
    plugins.add(
        plugin(ticketkit_register_criteria=lambda register: register("powered", powered, options=Strength)), FACTS
    )
    assert plugins.choose("criterion", "powered").provenance.options == {}
    assert plugins.choose("criterion", {"name": "powered", "power": 3}).provenance.options == {"power": 3}
    direct = plugins.choose("criterion", powered)
    assert direct.call is powered
    assert direct.provenance.entry == f"python:{__name__}.powered"
    for wrong, message in [(7, "must be a name"), ({"power": 3}, "needs a name"), ("power", "did you mean 'powered'")]:
        with pytest.raises(ConfigError, match=message):
            plugins.choose("criterion", wrong)


def raises(register: Callable[..., None]) -> None:
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"ticketkit_register_criteria": lambda register: register("magnitude", print)}, "plugin 'builtin'"),
        ({"ticketkit_register_criteria": lambda register: register("no name", print)}, "letters, digits"),
        ({"ticketkit_register_criteria": lambda register: register("x", 3)}, "must be callable, not int"),
        ({"ticketkit_register_criteria": raises}, "RuntimeError: boom"),
        (
            {"ticketkit_register_criterion": lambda register: None},
            r"there is no hook 'ticketkit_register_criterion'; did you mean 'ticketkit_register_criteria'\?",
        ),
        ({"ticketkit_register_criteria": lambda registrar: None}, "takes an argument 'registrar' that is not one of"),
        (
            {"ticketkit_register_criteria": lambda *hooks: None},
            r"takes \*hooks, but hooks name their arguments: register",
        ),
        (
            {"ticketkit_register_criteria": lambda register: 3},
            r"ticketkit_register_criteria returned 3; .* returns None",
        ),
        (
            {"ticketkit_register_criteria": lambda register: (register("twice", print), register("twice", len))[2:]},
            "'twice' is registered by plugin 'mine' .* and again by plugin 'mine'",
        ),
        (
            {"ticketkit_register_criteria": lambda register: register("x", print, needs={"hessian"})},
            r"needs .*'hessian'.*; choose from \['activations', 'gradients', 'initial'\]",
        ),
        (
            {"ticketkit_register_schedules": lambda register: register("x", print, needs={"gradients"})},
            "needs and regrows are for criteria",
        ),
    ],
)
def test_a_broken_plugin_is_named_and_leaves_no_trace(hooks: dict[str, Callable[..., Any]], message: str) -> None:
    plugins = Plugins()
    good = {"ticketkit_register_allocators": lambda register: register("extra", print)}
    with pytest.raises(PluginError, match=message) as caught:
        plugins.add(plugin(**good, **hooks), FACTS)
    assert "'mine' (distribution mine-dist 3.1)" in str(caught.value)
    assert [facts.name for facts in plugins.loaded] == ["builtin"]
    assert {e.plugin for registry in plugins.registries.values() for e in registry} == {"builtin"}
    plugins.add(plugin(**good), FACTS)
    assert [facts.name for facts in plugins.loaded] == ["builtin", "mine"]


def test_a_class_instead_of_an_object_is_refused() -> None:
    with pytest.raises(PluginError, match=r"Recorder is a class, of which nobody made an object; .*= Recorder\(\)"):
        Plugins().add(Recorder, FACTS)


def test_a_forgotten_mark_is_noticed() -> None:
    module = types.ModuleType("mine")
    module.ticketkit_register_criteria = lambda register: None  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match=r"ticketkit_register_criteria is not marked as a hook; write @ticketkit"):
        Plugins().add(module, FACTS)


def test_an_optional_hook_of_a_later_version_is_let_be() -> None:
    module = types.ModuleType("mine")
    module.ticketkit_later = hookimpl(optionalhook=True)(lambda anything: None)  # type: ignore[attr-defined]
    Plugins().add(module, FACTS)


def test_a_plugin_in_a_file_is_named_and_versioned_by_it(tmp_path: Path) -> None:
    path = tmp_path / "one_off.py"
    path.write_text(MOVEMENT.format(name="moved"))
    plugins = Plugins()
    plugins.add_file(path)
    provenance = plugins.choose("criterion", "moved").provenance
    assert provenance.entry == "one_off:moved"
    assert provenance.version.startswith("sha256:")
    path.write_text(path.read_text() + "\n")
    other = Plugins()
    other.add_file(path)
    assert other.choose("criterion", "moved").provenance.version != provenance.version


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no such Python file"), ("1 / 0", "cannot be imported: ZeroDivisionError")],
)
def test_a_plugin_file_that_does_not_load_is_named(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken_file.py"
    if content:
        path.write_text(content)
    with pytest.raises(PluginError, match=rf"--plugin .*broken_file\.py.*{message}"):
        Plugins().add_file(path)
    assert "broken_file" not in sys.modules


def test_pins_hold_plugins_to_a_range_of_versions() -> None:
    plugins = Plugins()
    plugins.add(plugin(), FACTS)
    plugins.require({"mine": ">=3,<4", "builtin": ""})
    with pytest.raises(PluginError, match=r"(?s)mine: mine-dist 3\.1 is installed, >=4 is asked for.*absent>=1: it is"):
        plugins.require({"mine": ">=4", "absent": ">=1"})
    with pytest.raises(PluginError, match=r"mine: 'latest' is no range of versions such as '>=0\.2,<1'"):
        plugins.require({"mine": "latest"})


def test_a_plugin_registers_once_and_only_for_itself() -> None:
    plugins, calls = Plugins(), []
    first = plugin(ticketkit_register_criteria=lambda register: calls.append("first"))
    second = plugin(ticketkit_register_criteria=lambda register: calls.append("second"))
    plugins.add(first, FACTS)
    plugins.add(second, PluginFacts("other", "other", "other-dist", "1"))
    assert calls == ["first", "second"]


def test_two_plugins_with_one_name_are_refused() -> None:
    plugins = Plugins()
    plugins.add(plugin(), FACTS)
    with pytest.raises(PluginError, match="two plugins are called 'mine'"):
        plugins.add(plugin(), FACTS)


# Observers


def run(*observers: object) -> None:
    plugins = Plugins()
    for observer in observers:
        plugins.watch(observer)
    model = mlp()
    for _ in IMP(model, rounds=2, rate=0.5, plugins=plugins):
        torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_observers_see_a_run_from_start_to_end() -> None:
    seen: list[Any] = []
    run(
        plugin(
            ticketkit_run_start=lambda plan, finished: seen.append(("run_start", plan, finished)),
            ticketkit_round_start=lambda round: seen.append(("round_start", round.index, round.mask.kept)),
            ticketkit_round_end=lambda record: seen.append(("round_end", record.index, record.kept)),
            ticketkit_run_end=lambda records: seen.append(("run_end", len(records))),
        )
    )
    rounds = [(what, i, kept) for i, kept in enumerate((72, 36, 18)) for what in ("round_start", "round_end")]
    assert seen == [("run_start", (72, 36, 18), 0), *rounds, ("run_end", 3)]


@pytest.mark.parametrize("event", [event for event in EVENTS if event not in ("ticket_saved", "run_error")])
def test_an_observer_that_answers_is_refused(event: str) -> None:
    with pytest.raises(PluginError, match=f"observer .* returned 0 from ticketkit_{event}; observers"):
        run(plugin(**{f"ticketkit_{event}": lambda: 0}))


def test_an_observer_of_an_unknown_event_is_refused() -> None:
    plugins = Plugins()
    with pytest.raises(PluginError, match="ticketkit_round_finished"):
        plugins.watch(plugin(ticketkit_round_finished=lambda record: None))
    with pytest.raises(PluginError, match="model"):
        plugins.watch(plugin(ticketkit_round_end=lambda model: None))


def test_an_observer_without_any_hook_is_refused() -> None:
    with pytest.raises(PluginError, match="watches nothing"):
        Plugins().watch(types.ModuleType("mute"))


# Real distributions


def install(folder: Path, name: str, source: str, *, version: str = "1.0", entry: str | None = None) -> None:
    """Write an importable distribution with an entry point, as pip would leave it in site-packages."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[ticketkit]\n{entry or module} = {module}\n")


MOVEMENT = """
import ticketkit

@ticketkit.hookimpl
def ticketkit_register_criteria(register):
    register("{name}", movement)

def movement(inputs: ticketkit.ScoreInputs) -> dict[str, ticketkit.Tensor]:
    return {{name: (w - inputs.initial[name]).abs() for name, w in inputs.weights.items()}}
"""


def python(script: str, folder: Path, **environment: str) -> str:
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


LIST = """
import ticketkit
plugins = ticketkit.Plugins.discover()
for plugin in plugins.loaded:
    print("loaded", plugin.name, plugin.distribution, plugin.version)
for plugin in plugins.broken:
    print("broken", plugin.name, plugin.distribution, plugin.version, plugin.reason)
"""


def test_an_installed_third_party_criterion_decides_a_run(tmp_path: Path) -> None:
    install(tmp_path, "movement-plugin", MOVEMENT.format(name="movement"), version="2.5")
    script = """
import torch, ticketkit
model = torch.nn.Linear(4, 2, bias=False)
start = model.weight.detach().clone()
imp = ticketkit.IMP(model, rate=0.5, rounds=1, criterion="movement")
for round in imp:
    with torch.no_grad():
        model.weight[:, :2] += 1.0
mask = imp.tickets[1].mask["weight"]
assert mask.tolist() == [[True, True, False, False]] * 2, mask
print(imp.tickets[1].facts.criterion.entry, imp.tickets[1].facts.criterion.version)
"""
    assert python(script, tmp_path).split() == ["movement_plugin:movement", "2.5"]


def test_allow_and_block_lists_choose_plugins(tmp_path: Path) -> None:
    install(tmp_path, "one-plugin", MOVEMENT.format(name="one"))
    install(tmp_path, "two-plugin", MOVEMENT.format(name="two"))

    script = """
import os, ticketkit
for allowed, blocked in [(None, None), ("two_plugin", None), ("", None), (None, "one_plugin, asr"),
                         ("one_plugin,two_plugin", "one_plugin")]:
    for name, value in (("TICKETKIT_LOAD_PLUGINS", allowed), ("TICKETKIT_BLOCK_PLUGINS", blocked)):
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    print(*sorted(plugin.name for plugin in ticketkit.Plugins.discover().loaded))
"""
    everything, allowed, none, blocked, both = (set(line.split()) for line in python(script, tmp_path).splitlines())
    assert {"builtin", "one_plugin", "two_plugin"} <= everything
    assert allowed == {"builtin", "two_plugin"}
    assert none == {"builtin"}
    assert blocked == everything - {"one_plugin", "asr"}
    assert both == {"builtin", "two_plugin"}


def test_a_plugin_that_cannot_be_imported_hurts_only_who_needs_it(tmp_path: Path) -> None:
    install(tmp_path, "broken-plugin", "import nothing_of_that_name\n", version="0.3")
    script = f"""
{LIST}
import torch
model = torch.nn.Linear(4, 2)
ticketkit.IMP(model, rounds=1)
try:
    ticketkit.IMP(model, rounds=1, criterion="brokenness")
except ticketkit.ConfigError as error:
    print("refused", " ".join(str(error).split()))
"""
    lines = python(script, tmp_path, TICKETKIT_BLOCK_PLUGINS="asr").splitlines()
    assert lines[0].startswith("loaded builtin")
    assert lines[1].startswith("broken broken_plugin broken-plugin 0.3")
    assert "ModuleNotFoundError: No module named 'nothing_of_that_name'" in lines[1]
    assert "unknown criterion 'brokenness'" in lines[2]
    assert "nothing_of_that_name" in lines[2]


def test_a_name_that_two_distributions_register_cannot_be_chosen(tmp_path: Path) -> None:
    install(tmp_path, "zz-plugin", MOVEMENT.format(name="movement"))
    alone = "import ticketkit; print(ticketkit.Plugins.discover().choose('criterion', 'movement').provenance.entry)"
    assert python(alone, tmp_path).strip() == "zz_plugin:movement"
    install(tmp_path, "aa-plugin", MOVEMENT.format(name="movement"))
    script = """
import ticketkit
try:
    ticketkit.Plugins.discover().choose("criterion", "movement")
except ticketkit.PluginError as error:
    print(error)
"""
    message = python(script, tmp_path)
    assert "'aa_plugin'" in message
    assert "'zz_plugin'" in message
    assert python(alone, tmp_path, TICKETKIT_BLOCK_PLUGINS="aa_plugin").strip() == "zz_plugin:movement"


def test_two_distributions_with_one_plugin_name_are_both_left_out_and_named(tmp_path: Path) -> None:
    install(tmp_path, "one-plugin", MOVEMENT.format(name="one"), entry="same")
    install(tmp_path, "two-plugin", MOVEMENT.format(name="two"), entry="same")
    output = python(LIST, tmp_path, TICKETKIT_LOAD_PLUGINS="same")
    assert "loaded same" not in output
    assert output.count("broken same") == 2
    assert "one-plugin 1.0" in output
    assert "two-plugin 1.0" in output


def test_installing_a_plugin_changes_no_result(tmp_path: Path) -> None:
    script = """
import torch, ticketkit
torch.manual_seed(0)
model = torch.nn.Linear(6, 5)
imp = ticketkit.IMP(model, rounds=3, seed=4, criterion="random")
for round in imp:
    model(torch.randn(4, 6)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
print([ticket.digest for ticket in imp.tickets])
"""
    before = python(script, tmp_path)
    install(tmp_path, "aaa-plugin", MOVEMENT.format(name="movement"))
    assert python(script, tmp_path) == before


class Recorder:
    """An observer of every event; keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    @hookimpl
    def ticketkit_scores_ready(self, index: int, scores: Any, mask: Any) -> None:
        self.seen.append(("scores", {"index": index, "names": set(scores), "mask": mask}))

    @hookimpl
    def ticketkit_mask_ready(self, index: int, mask: Any, previous: Any) -> None:
        self.seen.append(("mask", {"index": index, "mask": mask, "previous": previous}))

    @hookimpl
    def ticketkit_ticket_saved(self, ticket: Any, path: Path) -> None:
        self.seen.append(("saved", {"ticket": ticket, "path": path}))

    @hookimpl
    def ticketkit_run_error(self, error: BaseException, index: int) -> None:
        self.seen.append(("error", {"error": error, "index": index}))


def test_observers_see_scores_masks_and_tickets(tmp_path: Path) -> None:
    plugins, recorder = Plugins(), Recorder()
    plugins.watch(recorder)
    imp = IMP(mlp(), rate=0.5, rounds=1, run_dir=tmp_path, plugins=plugins)
    for _ in imp:
        pass
    assert [kind for kind, _ in recorder.seen] == ["saved", "scores", "mask", "saved"]
    scores, mask = recorder.seen[1][1], recorder.seen[2][1]
    assert scores["names"] == set(imp.scope.names)
    assert scores["mask"] == mask["previous"] == imp.tickets[0].mask
    assert mask["mask"] == imp.tickets[1].mask
    for _, saved in (recorder.seen[0], recorder.seen[3]):
        assert Ticket.load(saved["path"]) == saved["ticket"]


def test_observers_see_an_error_once_and_it_goes_on() -> None:
    plugins, recorder = Plugins(), Recorder()
    plugins.watch(recorder)

    def broken(model: nn.Module) -> None:
        raise RuntimeError("the loop failed")

    with pytest.raises(RuntimeError, match="the loop failed"):
        IMP(mlp(), rounds=1, plugins=plugins).run(broken)
    imp = IMP(mlp(), rounds=1, criterion=lambda inputs: {}, plugins=plugins)
    with pytest.raises(ScoreError):
        imp.run(lambda model: None)
    assert [(kind, type(facts["error"]), facts["index"]) for kind, facts in recorder.seen if kind == "error"] == [
        ("error", RuntimeError, 0),
        ("error", ScoreError, 1),
    ]


class Meddler:
    @hookimpl
    def ticketkit_round_start(self, round: Any) -> None:
        with torch.no_grad():
            round.model[0].weight[0, 0] += 1


def test_an_observer_that_changes_the_model_is_found_out_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = Plugins()
    plugins.watch(Meddler())
    monkeypatch.setenv("TICKETKIT_CHECK_OBSERVERS", "1")
    message = r"Meddler .* changed parameter/0\.weight while it watched ticketkit_round_start; observers only watch"
    with pytest.raises(PluginError, match=message):
        next(iter(IMP(mlp(), rounds=1, plugins=plugins)))


def test_observers_that_only_watch_pass_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = Plugins()
    plugins.watch(Recorder())
    monkeypatch.setenv("TICKETKIT_CHECK_OBSERVERS", "1")
    assert len(list(IMP(mlp(), rounds=1, plugins=plugins))) == 2


# Blame: every mistake of a third party's entry names plugin, distribution and version


def third_party(kind: str, call: Callable[..., Any], **named: Any) -> Plugins:
    plugins = Plugins()
    plugins.add(plugin(**{KINDS[kind]: lambda register: register("theirs", call, **named)}), FACTS)
    return plugins


def prune(plugins: Plugins, **chosen: Any) -> None:
    model = mlp()
    for _ in IMP(model, rounds=2, rate=0.5, plugins=plugins, **chosen):
        pass


def all_nan(inputs: Any) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(w, torch.nan) for name, w in inputs.weights.items()}


def too_few(shapes: Any, keep: int, *, floors: Any, capacities: Any) -> dict[str, int]:
    return dict.fromkeys(shapes, 1)


class Greedy:
    """A pattern that keeps whatever it was told to prune."""

    def __init__(self, layout: Any):
        self.shapes = layout.shapes

    def capacities(self, mask: Any) -> dict[str, int]:
        return mask.counts

    def final_count(self, planned: int) -> int:
        return planned

    def select(self, scores: Any, mask: Any, keep: Any, floors: Any = None) -> Any:
        return mask


class Halved(Greedy):
    def capacities(self, mask: Any) -> dict[str, int]:
        return {name: count // 2 for name, count in mask.counts.items()}


@pytest.mark.parametrize(
    ("kind", "call", "message"),
    [
        ("criterion", lambda inputs: {}, "scores do not fit the mask:.*0.weight"),
        ("criterion", lambda inputs: {n: w.long() for n, w in inputs.weights.items()}, "must be floating-point"),
        ("criterion", lambda inputs: {n: w[:1] for n, w in inputs.weights.items()}, "scores do not fit the mask"),
        ("criterion", lambda inputs: dict.fromkeys(inputs.weights, 1.0), "must be a tensor, not float"),
        ("criterion", lambda inputs: None, "must return a mapping from names to tensors, not None"),
        ("criterion", all_nan, "score of parameter '0.weight' is nan"),
        ("criterion", lambda inputs: 1 / 0, "failed: ZeroDivisionError: division by zero"),
        ("criterion", lambda: None, "failed: TypeError: .* takes 0 positional arguments"),
        ("schedule", lambda total, target: (total, total), "a schedule must go from 72 weights to 18"),
        ("schedule", lambda total, target: (total, 36.0, 18), "must return whole numbers"),
        ("schedule", lambda total, target: None, "must return a sequence of whole numbers of weights, not None"),
        ("allocation", too_few, "must split 36 weights, but:\n  the counts sum to 2"),
        ("allocation", lambda *_, **__: {}, "'0.weight' has no count"),
        ("allocation", lambda *_, **__: None, "must return 36 itself or counts by name, not None"),
        ("allocation", lambda *_, **__: {"0.weight": 36.0, "3.weight": 0}, "36.0, no whole number"),
        ("allocation", lambda *_, **__: {"0.weight": 60, "3.weight": -24}, r"gets 60; 0 \(floor\) to 48 \(left\)"),
        ("allocation", lambda *_, **__: {"0.weight": 36, "3.weight": 0, "x": 0}, "'x' is none of the 2 names"),
        ("granularity", lambda layout: None, "must return a pattern"),
        ("granularity", Greedy, "must choose at most 36 of the 72 weights that are left, not 72"),
        ("granularity", Halved, "must hold every weight once: its parts have 36 weights of 72"),
    ],
)
def test_a_mistake_of_a_third_party_names_plugin_distribution_and_version(
    kind: str, call: Callable[..., Any], message: str
) -> None:
    with pytest.raises(TicketkitError, match=f"(?s){message}") as caught:
        prune(third_party(kind, call), **{kind: "theirs"})
    assert str(caught.value).startswith(f"{kind} 'theirs' of plugin 'mine' (mine-dist 3.1)")
    assert str(caught.value).count("mine-dist") == 1


def test_a_users_own_callable_is_not_blamed_and_its_errors_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        prune(Plugins(), criterion=lambda inputs: 1 / 0)
    with pytest.raises(ScoreError, match=r"^scores do not fit the mask"):
        prune(Plugins(), criterion=lambda inputs: {})


def test_options_that_a_model_would_ignore_are_refused() -> None:
    class Lax(BaseModel):
        power: int = 1

    plugins = third_party("criterion", powered, options=Lax)
    with pytest.raises(ConfigError) as caught:
        plugins.choose("criterion", {"name": "theirs", "powr": 2, "power": "high"})
    assert "powr: there is no such option; did you mean 'power'?" in str(caught.value)
    assert "power: Input should be a valid integer" in str(caught.value)
    with pytest.raises(PluginError, match=r"options must be a class of pydantic options"):
        third_party("criterion", powered, options={"power": 1})


def test_an_observer_that_fails_or_answers_is_named_with_its_distribution() -> None:
    for hook, message in [
        (lambda record: 1 / 0, "failed while it watched ticketkit_round_end: ZeroDivisionError"),
        (lambda record: "done", "returned 'done' from ticketkit_round_end; observers"),
    ]:
        plugins = Plugins()
        plugins.add(plugin(ticketkit_round_end=hook), FACTS)
        with pytest.raises(PluginError, match=rf"plugin 'mine' \(distribution mine-dist 3\.1\) {message}"):
            prune(plugins)


def test_a_hook_that_wraps_those_of_others_is_refused() -> None:
    module = types.ModuleType("mine")
    module.ticketkit_round_end = hookimpl(wrapper=True)(lambda record: (yield))  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match="ticketkit_round_end wraps the hooks of other plugins"):
        Plugins().add(module, FACTS)


def test_observers_are_told_last_come_first_unless_they_ask_otherwise() -> None:
    plugins, order = Plugins(), []
    for name in "abc":
        plugins.watch(plugin(ticketkit_run_end=lambda name=name: order.append(name)))
    late = types.ModuleType("late")
    late.ticketkit_run_end = hookimpl(trylast=True)(lambda: order.append("late"))  # type: ignore[attr-defined]
    plugins.watch(late)
    plugins.emit("run_end", records=())
    assert order == ["c", "b", "a", "late"]


def test_a_pin_by_distribution_is_told_the_plugins_name() -> None:
    plugins = Plugins()
    plugins.add(plugin(), FACTS)
    with pytest.raises(PluginError, match="mine-dist: it is not installed; the plugin of that distribution is 'mine'"):
        plugins.require({"mine-dist": ""})


def test_the_directory_of_a_run_is_told_to_observers(tmp_path: Path) -> None:
    seen: list[Any] = []
    for run_dir in (None, tmp_path / "run"):
        plugins = Plugins()
        plugins.watch(plugin(ticketkit_run_start=lambda directory: seen.append(directory)))
        list(IMP(mlp(), rounds=1, plugins=plugins, run_dir=run_dir))
    assert seen == [None, tmp_path / "run"]


def test_observers_are_shown_scores_that_have_the_right_form_alone() -> None:
    seen: list[Any] = []
    plugins = third_party("criterion", lambda inputs: {})
    plugins.watch(plugin(ticketkit_scores_ready=lambda scores: seen.append(scores["0.weight"])))
    with pytest.raises(ScoreError, match="scores do not fit the mask"):
        prune(plugins, criterion="theirs")
    assert seen == []
