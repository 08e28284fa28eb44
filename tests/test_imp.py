import copy
import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ticketkit import (
    IMP,
    BudgetError,
    CollapseWarning,
    ConfigError,
    Mask,
    NoEffectWarning,
    Plugins,
    Scope,
    ScopeError,
    ScoreError,
    ScoreInputs,
    StorageError,
    Ticket,
    select,
)
from ticketkit.snapshot import state_tensors
from ticketkit.testing import TINY_NETS, convnet, mlp


def train(model: nn.Module, steps: int = 4, name: str = "mlp", lr: float = 0.05) -> None:
    """Train with everything random a loop may use: dropout, and shuffling by torch, numpy and Python."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    data = [TINY_NETS[name].inputs() for _ in range(3)]
    model.train()
    for _ in range(steps):
        random.shuffle(data)
        batch = data[int(np.random.randint(3))][torch.randperm(4)[:3]]
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def seed() -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)


def bits(model: nn.Module) -> dict[str, bytes]:
    return {
        key: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for key, tensor in state_tensors(model).items()
    }


def net_with_everything() -> nn.Module:
    return nn.Sequential(convnet(), nn.Dropout(0.3), nn.Linear(3, 3))


# Round 0


@pytest.mark.parametrize("name", ["mlp", "convnet", "bilstm_tagger", "attention"])
def test_round_zero_is_bit_identical_to_no_ticketkit(name: str, tmp_path: Path) -> None:
    def build() -> nn.Module:
        seed()
        return nn.Sequential(TINY_NETS[name].build(), nn.Dropout(0.3), nn.Linear(3, 3))

    plain = build()
    train(plain, name=name)
    drawn = (torch.rand(()), np.random.rand(), random.random())
    for run_dir in (None, tmp_path):
        model = build()
        rounds = iter(IMP(model, rounds=1, run_dir=run_dir))
        assert next(rounds).index == 0
        train(model, name=name)
        assert bits(model) == bits(plain)
        assert (torch.rand(()), np.random.rand(), random.random()) == drawn


# Every round


def test_rounds_follow_the_plan_with_nested_masks() -> None:
    model = mlp(16)
    imp, seen = IMP(model, rate=0.3, rounds=5, floor=0.02), []
    for current in imp:
        train(model)
        seen.append(current)
    assert [current.index for current in seen] == [0, 1, 2, 3, 4, 5]
    assert tuple(current.mask.kept for current in seen) == imp.plan
    assert imp.plan == tuple(round(0.7**index * imp.scope.total) for index in range(6))
    assert all(later.mask <= earlier.mask for earlier, later in pairwise(seen))
    assert seen[0].density == 1.0


def test_every_mask_is_the_selection_by_trained_magnitude() -> None:
    model, masks, trained = mlp(16), [], []
    imp = IMP(model, rate=0.3, rounds=3)
    for current in imp:
        train(model)
        masks.append(current.mask)
        trained.append({name: t.clone() for name, t in imp.scope.tensors(model).items()})
    for index in range(3):
        scores = {name: t.abs() for name, t in trained[index].items()}
        assert masks[index + 1] == select(scores, masks[index], imp.plan[index + 1])


def test_every_round_starts_from_the_same_masked_state_and_generators() -> None:
    seed()
    model = net_with_everything()
    start = {key: tensor.detach().clone() for key, tensor in state_tensors(model).items()}
    draws = set()
    for current in IMP(model, rounds=3):
        for key, tensor in state_tensors(model).items():
            name = key.removeprefix("parameter/")
            expected = start[key].masked_fill(~current.mask[name], 0) if name in current.mask else start[key]
            assert torch.equal(tensor, expected)
        assert all(parameter.grad is None for parameter in model.parameters())
        draws.add((torch.rand(()).item(), float(np.random.rand()), random.random()))
        train(model, name="convnet")
        assert int(model[0][1].num_batches_tracked) == 4
    assert len(draws) == 1


def test_every_round_starts_in_the_mode_the_first_began_with() -> None:
    model = nn.Sequential(mlp(dropout=0.5), nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).eval())
    imp, seen = IMP(model, rounds=2), []
    for current in imp:
        seen.append([module.training for module in model.modules()])
        model.train(current.index == 1)
    assert seen == [seen[0]] * 3
    assert len(set(seen[0])) == 2


@pytest.mark.parametrize("name", TINY_NETS)
def test_pruned_weights_end_every_round_at_zero(name: str) -> None:
    net = TINY_NETS[name]
    model = net.build()
    for current in IMP(model, rate=0.5, rounds=2, floor=0.02):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            model(net.inputs()).square().mean().backward()
            optimizer.step()
        Ticket(current.mask).verify(model)


def test_two_runs_with_one_seed_give_the_same_tickets() -> None:
    def digests(criterion: str) -> list[str]:
        seed()
        model = net_with_everything()
        imp = IMP(model, rounds=3, criterion=criterion, seed=5)
        imp.run(lambda m: train(m, name="convnet"), lambda m: {"norm": m[2].weight.norm().item()})
        return [ticket.digest for ticket in imp.tickets]

    assert digests("magnitude") == digests("magnitude")
    assert digests("random") == digests("random")
    assert digests("magnitude") != digests("random")


def test_the_last_density_is_exact() -> None:
    model = mlp(50)
    imp = IMP(model, density=0.05, rounds=3, floor=0.02)
    imp.run(lambda m: train(m))
    assert imp.tickets[-1].mask.kept == round(0.05 * imp.scope.total)


def test_tied_weights_are_pruned_once() -> None:
    net = TINY_NETS["tied_gru"]
    model = net.build()
    imp = IMP(model, rate=0.5, rounds=2)
    for current in imp:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(net.inputs()).square().mean().backward()
        optimizer.step()
        kept = int((model.output.weight != 0).sum())
        assert kept == current.mask.counts["embedding.weight"]
    assert imp.tickets[2].mask.aliases == {"embedding.weight": ("output.weight",)}


# run()


def test_run_hands_out_fresh_optimizers_and_logs_metrics() -> None:
    model, met = mlp(), []

    def fit(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        assert network is model
        assert not optimizer.state
        met.append(optimizer)
        network(TINY_NETS["mlp"].inputs()).sum().backward()
        optimizer.step()

    tickets = IMP(model, rounds=2).run(
        fit,
        lambda m: {"loss": len(met)},
        optimizer_factory=lambda m: torch.optim.Adam(m.parameters()),
    )
    assert len({id(optimizer) for optimizer in met}) == 3
    assert [ticket.metrics for ticket in tickets] == [{"loss": 1.0}, {"loss": 2.0}, {"loss": 3.0}]


def test_run_refuses_an_optimizer_of_another_model() -> None:
    model = mlp()
    other = copy.deepcopy(model)
    with pytest.raises(ScopeError, match=r"not these parameters in scope: 0\.weight \(8, 6\), 3\.weight \(3, 8\)"):
        IMP(model, rounds=1).run(
            lambda m, o: None, optimizer_factory=lambda m: torch.optim.SGD(other.parameters(), 0.1)
        )


def test_a_round_trained_by_an_optimizer_of_another_model_is_refused() -> None:
    model = mlp()
    other = copy.deepcopy(model)
    with pytest.raises(ScopeError, match="none of them over any of the 2 parameters in scope"):
        IMP(model, rounds=1).run(lambda m: train(other))


# Tickets


def test_a_ticket_carries_rewind_weights_and_where_it_came_from() -> None:
    model = mlp()
    start = copy.deepcopy(model)
    imp = IMP(model, rate=0.5, rounds=2, floor=0.1, seed=9, scope={"exclude": ["3.*"]})
    imp.run(lambda m: train(m), lambda m: {"wer": 3})
    ticket = imp.tickets[2]
    rewound = ticket.apply_(mlp())
    assert bits(rewound) == bits(Ticket(ticket.mask).apply_(start))
    facts = ticket.facts
    assert (facts.round, facts.seed, facts.floor, facts.rewind) == (2, 9, 0.1, "init")
    assert (facts.exclude, facts.include, facts.model_total) == (("3.*",), None, 83)
    assert facts.criterion.entry == "builtin:magnitude"
    assert facts.allocation.entry == "builtin:global"
    assert facts.schedule.entry == "builtin:geometric"
    assert facts.metrics == {"wer": 3.0}
    assert facts.parent == imp.tickets[1].mask.digest
    assert imp.tickets[0].facts.parent is None


def run_with_metrics(values: list[float]) -> IMP:
    model, left = mlp(), iter(values)
    imp = IMP(model, rate=0.2, rounds=len(values) - 1)
    imp.run(lambda m: train(m, 1), lambda m: {"wer": next(left)})
    return imp


def test_best_and_extreme_choose_tickets() -> None:
    imp = run_with_metrics([10.0, 9.0, 9.0, 10.0, 10.4, math.nan])
    assert imp.best("wer").facts.round == 2
    assert imp.extreme("wer").facts.round == 3
    assert imp.extreme("wer", tolerance=0.5).facts.round == 4
    assert imp.best("wer", "max").facts.round == 4
    assert imp.extreme("wer", "max").facts.round == 4


def test_without_a_winner_there_is_no_extreme_ticket() -> None:
    imp = run_with_metrics([1.0, 2.0, 3.0])
    assert imp.extreme("wer") is None
    assert imp.best("wer").facts.round == 1
    with pytest.raises(ConfigError, match="no pruned round has logged 'cer'"):
        imp.best("cer")


def test_metrics_must_be_numbers() -> None:
    for current in IMP(mlp(), rounds=1):
        for wrong in ("3", True, torch.tensor(1.0), None):
            with pytest.raises(ConfigError, match=r"metric 'wer' must be a number, .*use \.item\(\)"):
                current.log(wer=wrong)
        current.log(wer=3)
        current.log(wer=4, cer=1.5)
        assert current.metrics == {"wer": 4.0, "cer": 1.5}
        break


# Layer collapse and floors


def shrunk() -> nn.Module:
    model = mlp(40)
    with torch.no_grad():
        model[3].weight.mul_(1e-4)
    return model


def test_collapse_is_warned_of_by_layer() -> None:
    imp = IMP(shrunk(), rate=0.5, rounds=1)
    with pytest.warns(
        CollapseWarning, match=r"round 1 leaves almost nothing of 3\.weight \(0\.00% left\); set a floor"
    ):
        imp.run(lambda m: None)
    assert imp.tickets[1].mask.counts["3.weight"] == 0


def test_a_floor_keeps_its_share_of_every_parameter() -> None:
    imp = IMP(shrunk(), rate=0.5, rounds=3, floor=0.1)
    imp.run(lambda m: None)
    assert [ticket.mask.counts["3.weight"] for ticket in imp.tickets] == [120, 12, 12, 12]
    assert [ticket.mask.kept for ticket in imp.tickets] == list(imp.plan)


def test_magnitude_over_init_keeps_layers_of_any_scale() -> None:
    imp = IMP(shrunk(), rate=0.5, rounds=1, criterion="magnitude_over_init")
    imp.run(lambda m: None)
    assert 0.3 < imp.tickets[1].mask.densities["3.weight"] < 0.7


# Refusals at once


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ConfigError, "say how far to prune"),
        ({"rounds": 1, "criterion": "magnitud"}, ConfigError, "did you mean 'magnitude'"),
        ({"rounds": 1, "criterion": {"name": "magnitude", "p": 2}}, ConfigError, "takes no options"),
        ({"rounds": 1, "allocation": "globl"}, ConfigError, "did you mean 'global'"),
        ({"rounds": 1, "schedule": "cubik"}, ConfigError, "did you mean .cubic."),
        ({"rounds": 1, "rewind": "latest"}, ConfigError, "Input should be .init., .step."),
        ({"rounds": 1, "floor": 1.5}, ConfigError, "floor must be a density"),
        ({"rounds": 1, "scope": {"include": ["lstm.*"]}}, ScopeError, "matched none"),
        ({"rounds": 40}, BudgetError, "which is none"),
        ({"rounds": 4, "rate": 0.5, "floor": 0.2}, BudgetError, r"the floors keep at least 15 of 72 weights"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(
    settings: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        IMP(mlp(), run_dir=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_diverged_weights_are_refused_by_name() -> None:
    def diverge(model: nn.Module) -> None:
        with torch.no_grad():
            model[3].weight[0, 0] = float("nan")

    with pytest.raises(ScoreError, match=r"score of parameter '3\.weight' is nan"):
        IMP(mlp(), rounds=1).run(diverge)


def test_a_criterion_that_touches_weights_is_refused() -> None:
    def careless(inputs: object) -> object:
        return {name: w.abs_() for name, w in inputs.weights.items()}

    with pytest.raises(ScoreError, match="changed the weights"):
        IMP(mlp(), rounds=1, criterion=careless).run(lambda m: None)


def test_weights_changed_without_an_optimizer_are_warned_of() -> None:
    imp = IMP(mlp(), rounds=1)
    with pytest.warns(NoEffectWarning, match="changed by something other than a torch"):
        imp.run(lambda m: [parameter.data.add_(1) for parameter in m.parameters()])
    imp.tickets[1].verify(imp.model)


# Interrupted runs


def finished(imp: IMP, folder: Path) -> list[bytes]:
    """Return the bytes of every ticket file of a run."""
    files = []
    for index, ticket in enumerate(imp.tickets):
        ticket.save(folder / f"{index}.ticket")
        files.append((folder / f"{index}.ticket").read_bytes())
    return files


def new_run(run_dir: Path | None, **settings: object) -> IMP:
    seed()
    return IMP(net_with_everything(), **{"rate": 0.4, "rounds": 3, "run_dir": run_dir} | settings)


def go_on(imp: IMP, stop: Callable[[int], bool] = lambda index: False) -> IMP:
    for current in imp:
        train(imp.model, name="convnet")
        current.log(norm=imp.model[2].weight.norm().item())
        if stop(current.index):
            break
    return imp


@pytest.mark.parametrize("stop", range(4))
@pytest.mark.parametrize("same_process_object", [True, False], ids=["same", "new"])
def test_a_run_that_breaks_off_goes_on_to_the_same_bits(stop: int, same_process_object: bool, tmp_path: Path) -> None:
    expected = finished(go_on(new_run(None)), tmp_path)
    imp = go_on(new_run(tmp_path / "run"), lambda index: index == stop)
    assert len(imp.records) == stop
    if not same_process_object:
        imp = new_run(tmp_path / "run")
        torch.rand(5)  # the state of this process does not matter
    go_on(imp)
    assert finished(imp, tmp_path) == expected
    assert [record.index for record in imp.records] == [0, 1, 2, 3]


def test_without_a_directory_a_run_goes_on_in_the_same_process(tmp_path: Path) -> None:
    expected = finished(go_on(new_run(None)), tmp_path)
    imp = go_on(new_run(None), lambda index: index == 2)
    assert finished(go_on(imp), tmp_path) == expected


def test_an_exception_in_training_leaves_a_run_that_can_go_on(tmp_path: Path) -> None:
    expected = finished(go_on(new_run(None)), tmp_path)

    def fail(index: int) -> bool:
        if index == 1:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        go_on(new_run(tmp_path / "run"), fail)
    assert finished(go_on(new_run(tmp_path / "run")), tmp_path) == expected


def test_a_finished_run_trains_no_more(tmp_path: Path) -> None:
    expected = finished(go_on(new_run(tmp_path / "run")), tmp_path)
    again = new_run(tmp_path / "run")
    assert [current.index for current in again] == []
    assert finished(again, tmp_path) == expected
    assert again.trained(3).parameters().keys() == dict(again.model.named_parameters()).keys()


def test_a_directory_of_other_settings_is_refused_with_the_list(tmp_path: Path) -> None:
    go_on(new_run(tmp_path / "run"), lambda index: index == 1)
    with pytest.raises(ConfigError) as caught:
        go_on(new_run(tmp_path / "run", criterion="random", seed=3, rounds=2))
    for setting in ("criterion: there", "seed: there 0, here 3", "plan: there"):
        assert setting in str(caught.value)
    assert "floor" not in str(caught.value)


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    imp = new_run(tmp_path / "run")
    running = iter(imp)
    next(running)
    with pytest.raises(StorageError, match="another process is working in"):
        next(iter(new_run(tmp_path / "run")))
    running.close()
    next(iter(new_run(tmp_path / "run")))


@pytest.mark.parametrize(
    "damaged",
    ["init.safetensors", "rounds/001/trained.safetensors", "rounds/000/ticket.safetensors", "rounds/001/record.json"],
)
@pytest.mark.parametrize("how", ["flipped", "truncated", "empty"])
def test_a_damaged_file_stops_the_resumed_run(damaged: str, how: str, tmp_path: Path) -> None:
    go_on(new_run(tmp_path / "run"), lambda index: index == 2)
    path = tmp_path / "run" / damaged
    content = path.read_bytes()
    middle = len(content) // 2
    spoilt = {
        "flipped": content[:middle] + bytes([content[middle] ^ 0x80]) + content[middle + 1 :],
        "truncated": content[:-1],
        "empty": b"",
    }
    path.write_bytes(spoilt[how])
    with pytest.raises(StorageError, match=path.name):
        go_on(new_run(tmp_path / "run"))


def test_a_model_of_another_shape_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    go_on(new_run(tmp_path / "run"), lambda index: index == 1)
    with pytest.raises(ConfigError, match="parameters: there"):
        next(iter(IMP(mlp(), rate=0.4, rounds=3, run_dir=tmp_path / "run")))


def test_trained_networks_are_kept_only_on_disk(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give IMP a run_dir"):
        go_on(new_run(None)).trained(0)
    imp = go_on(new_run(tmp_path / "run"))
    for record, ticket in zip(imp.records, imp.tickets, strict=True):
        imp.trained(record.index).restore(imp.model)
        ticket_mask = Ticket(ticket.mask)
        ticket_mask.verify(imp.model)


def test_scope_objects_and_mappings_mean_the_same() -> None:
    model = mlp()
    by_object = IMP(model, rounds=1, scope=Scope.of(model, include=["0.*"]))
    assert by_object.scope == IMP(model, rounds=1, scope={"include": ["0.*"]}).scope


# Runs that start from a mask found elsewhere


def quarter(model: nn.Module) -> Mask:
    draw = torch.Generator().manual_seed(1)
    return Mask({name: torch.rand(shape, generator=draw) < 0.25 for name, shape in Scope.of(model).shapes.items()})


def test_the_first_round_holds_the_mask_to_start_from_and_later_ones_prune_it(tmp_path: Path) -> None:
    seed()
    model = mlp(40)
    start = quarter(model)
    imp = IMP(model, rate=0.5, rounds=2, mask=start, allocation="uniform", run_dir=tmp_path, plugins=Plugins())
    assert imp.plan == (start.kept, round(start.kept / 2), round(start.kept / 4))
    for current in imp:
        assert current.mask <= start
        assert current.density == current.mask.kept / imp.scope.total
        assert not any(dict(model.named_parameters())[n].detach()[~current.mask[n]].any() for n in current.mask)
        train(model, lr=0.001)
    assert imp.tickets[0].mask == start
    assert [record.total for record in imp.records] == [imp.scope.total] * 3
    with pytest.raises(ConfigError, match="start: there"):
        next(iter(IMP(model, rate=0.5, rounds=2, allocation="uniform", run_dir=tmp_path, plugins=Plugins())))


def test_a_density_is_of_the_scope_wherever_a_run_starts() -> None:
    model = mlp(40)
    imp = IMP(model, rounds=3, density=0.05, mask=quarter(model), plugins=Plugins())
    assert imp.plan[-1] == round(0.05 * imp.scope.total)


def test_a_mask_that_does_not_cover_the_scope_is_refused_with_the_list() -> None:
    model = mlp(40)
    other = Mask.ones({"0.weight": (40, 6), "3.weight": (3, 41)})
    with pytest.raises(ScopeError, match=r"(?s)mask to start from.*expected shape \(3, 40\), found \(3, 41\)"):
        IMP(model, rounds=1, mask=other, plugins=Plugins())


# Settings that go together


def test_batches_and_loss_go_together() -> None:
    with pytest.raises(ConfigError, match="batches= and loss= go together"):
        IMP(mlp(), rounds=1, batches=list, plugins=Plugins())


def test_floors_by_pattern_hold_for_what_they_match() -> None:
    seed()
    model = mlp(40)
    with torch.no_grad():
        model[3].weight.mul_(1e-4)
    imp = IMP(model, rounds=1, density=0.3, floor={"3.*": 0.25}, plugins=Plugins())
    for _ in imp:
        pass
    assert imp.tickets[1].mask.counts["3.weight"] == 30
    assert imp.tickets[1].facts.floor == {"3.*": 0.25}


def test_an_unknown_reaction_to_collapse_is_refused() -> None:
    with pytest.raises(ConfigError, match="on_collapse must be 'warn', 'stop' or 'reallocate', not 'ignore'"):
        IMP(mlp(), rounds=1, on_collapse="ignore", plugins=Plugins())  # type: ignore[arg-type]


def test_a_criterion_with_data_is_repeated_by_a_resumed_run(tmp_path: Path) -> None:
    """The mask after a crash is scored on the trained network from disk, dropout and batch order included."""

    def run_of(run_dir: Path | None, stop: int | None = None) -> IMP:
        seed()
        model = net_with_everything()
        images = [torch.randn(4, 1, 8, 8) for _ in range(3)]
        imp = IMP(
            model,
            rate=0.4,
            rounds=2,
            criterion={"name": "snip", "training": True},
            batches=lambda: torch.utils.data.DataLoader(images, batch_size=None, shuffle=True),  # type: ignore[arg-type]
            loss=lambda model, batch: model(batch).square().mean(),
            run_dir=run_dir,
            plugins=Plugins(),
        )
        return go_on(imp, lambda index: index == stop)

    expected = finished(run_of(None), tmp_path)
    run_of(tmp_path / "run", stop=1)
    assert finished(run_of(tmp_path / "run"), tmp_path) == expected


def test_a_lean_run_finds_the_same_tickets(tmp_path: Path) -> None:
    assert finished(go_on(new_run(None, lean=True)), tmp_path) == finished(go_on(new_run(None)), tmp_path)


def test_run_hands_the_optimizer_over_to_rewinding() -> None:
    seed()
    model, momenta = mlp(), []

    def spied(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        momenta.append([value["momentum_buffer"].clone() for value in optimizer.state.values() if value])
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(2, 6)).square().mean().backward()
            optimizer.step()

    imp = IMP(model, rate=0.4, rounds=2, rewind="step:2", plugins=Plugins())
    imp.run(spied, optimizer_factory=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
    assert momenta[0] == []
    assert all(a.equal(b) for a, b in zip(momenta[1], momenta[2], strict=True))
    assert len(momenta[1]) == 4


def test_a_finished_run_leaves_the_model_as_its_last_round_did(tmp_path: Path) -> None:
    first = go_on(new_run(tmp_path / "run"))
    again = go_on(new_run(tmp_path / "run"))
    assert bits(again.model) == bits(first.model)
    Ticket(again.tickets[3].mask).verify(again.model)


def test_a_pruning_that_failed_is_tried_again_from_the_trained_network(tmp_path: Path) -> None:
    for run_dir in (None, tmp_path / "run"):
        failures = [True]

        def flaky(inputs: ScoreInputs, failures: list[bool] = failures) -> dict[str, torch.Tensor]:
            if failures:
                failures.clear()
                raise RuntimeError("the disk with the batches was away")
            return {name: weights.abs() for name, weights in inputs.weights.items()}

        imp = new_run(run_dir, rewind="none", rounds=2, criterion=flaky)
        with pytest.raises(RuntimeError, match="was away"):
            go_on(imp)
        assert [record.index for record in imp.records] == [0]
        torch.nn.init.zeros_(imp.model[2].weight)
        go_on(imp)
        reference = go_on(new_run(None, rewind="none", rounds=2))
        assert [ticket.mask for ticket in imp.tickets] == [ticket.mask for ticket in reference.tickets]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scope": "encoder"}, "scope must be a Scope or a mapping"),
        ({"scope": {"inclde": ["0.*"]}}, r"scope takes include, exclude, where, embeddings, bare, not 'inclde'"),
        ({"mask": Ticket(Mask.ones({"w": (1,)}))}, r"mask must be a Mask \(of a ticket: ticket\.mask\), not a Ticket"),
        ({"rewind": None}, "rewind must be a policy such as 'init'"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"batches": [1, 2], "loss": print}, "batches must be a callable"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_at_once(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IMP(mlp(), rounds=1, plugins=Plugins(), **settings)  # type: ignore[arg-type]


def test_an_evaluation_that_returns_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="must return a mapping from names to numbers, not None"):
        IMP(mlp(), rounds=1, plugins=Plugins()).run(lambda model: None, lambda model: None)  # type: ignore[arg-type,return-value]


def test_a_round_that_trains_nothing_where_others_did_is_told_of() -> None:
    model = mlp()

    def train() -> None:
        for current in IMP(model, rounds=1, rewind="step:2", plugins=Plugins()):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(current.track(optimizer=optimizer), 2):
                model(torch.ones(1, 6)).sum().backward()
                optimizer.step()

    with pytest.warns(NoEffectWarning, match="round 1 trained nothing: no optimizer took a step") as told:
        train()
    assert told[0].filename == __file__
    for _ in IMP(model, rounds=1, plugins=Plugins()):  # pruning without training is a choice
        pass


def test_best_says_what_was_logged() -> None:
    model = mlp()
    imp = IMP(model, rounds=1, plugins=Plugins())
    for current in imp:
        current.log(loss=1.0, cer=0.2)
    with pytest.raises(ConfigError, match="no pruned round has logged 'wer', they have logged cer, loss;"):
        imp.best("wer")


def test_a_network_without_memory_is_refused() -> None:
    with torch.device("meta"):
        absent = mlp()
    with pytest.raises(ScopeError, match=r"0\.weight, 3\.weight: on the meta device, .*to_empty"):
        IMP(absent, rounds=1, plugins=Plugins())
    ticket = next(iter(IMP(mlp(), rounds=1, plugins=Plugins()))).mask
    for call in (Ticket(ticket).apply_, Ticket(ticket).verify):
        with pytest.raises(ScopeError, match="on the meta device"):
            call(absent)
