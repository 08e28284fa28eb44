from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim import optimizer as optimizer_module

from ticketkit import IMP, ConfigError, Mask, Plugins, Scope, ScopeError, Ticket, TicketError
from ticketkit.adapters.holding import (
    Holding,
    check_round,
    check_same_mask,
    check_trains_the_model,
    mask_from_state,
    mask_of,
    mask_state,
    missing,
    numbers,
)
from ticketkit.testing import mlp


def half(model: nn.Module, seed: int = 0) -> Mask:
    draw, scope = torch.Generator().manual_seed(seed), Scope.of(model)
    return Mask({name: torch.rand(shape, generator=draw) < 0.5 for name, shape in scope.shapes.items()})


def step(model: nn.Module) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    model(torch.randn(3, 6)).square().mean().backward()
    optimizer.step()


def hooks() -> int:
    return len(optimizer_module._global_optimizer_post_hooks)


def test_the_mask_is_held_from_start_to_end_and_nothing_stays() -> None:
    model, before = mlp(), hooks()
    holding = Holding(half(model))
    for _ in range(2):
        holding.start(model, SGD(model.parameters(), lr=0.1))
        step(model)
        Ticket(holding.mask).verify(model)
        holding.end()
        holding.end()
        assert hooks() == before


def test_a_callback_that_is_dropped_lets_go_of_the_model() -> None:
    model, before = mlp(), hooks()
    holding = Holding(half(model))
    holding.start(model)
    assert hooks() == before + 1
    del holding
    assert hooks() == before


def test_a_ticket_its_file_and_its_mask_are_one_source(tmp_path: Path) -> None:
    mask, path = half(mlp()), tmp_path / "ticket.safetensors"
    Ticket(mask).save(path)
    assert mask_of(mask) == mask_of(Ticket(mask)) == mask_of(path) == mask_of(str(path)) == mask
    with pytest.raises(ConfigError, match="a ticket, its path or a mask is needed, not a float"):
        mask_of(0.5)  # type: ignore[arg-type]


def test_a_start_that_is_refused_leaves_the_weights_alone() -> None:
    model = mlp()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ScopeError, match="the optimizer holds"):
        Holding(half(model)).start(model, SGD(mlp().parameters(), lr=0.1))
    assert all(map(torch.equal, before, model.parameters()))


def test_another_optimizer_is_refused_until_the_mask_is_let_go_of() -> None:
    model, other = mlp(), mlp()
    mine, foreign, elsewhere = (SGD(m.parameters(), lr=0.1) for m in (model, model, other))
    holding = Holding(half(model))
    for _ in range(2):
        holding.start(model, mine)
        holding.refuse_others(mine, "do this")
        model(torch.randn(3, 6)).sum().backward()
        mine.step()
        other(torch.randn(3, 6)).sum().backward()
        elsewhere.step()
        with pytest.raises(ConfigError, match="broke off with an error; do this"):
            foreign.step()
        holding.end()
        foreign.step()
    holding.start(model, mine)
    holding.refuse_others(mine, "do this")
    del holding
    foreign.step()


def test_a_round_trains_the_parameters_of_its_model_and_no_others() -> None:
    whole = nn.ModuleDict({"encoder": mlp(), "head": nn.Linear(3, 2)})
    part = next(iter(IMP(whole["encoder"], rounds=1, plugins=Plugins())))
    with pytest.raises(ScopeError, match=r"Brain trains parameters .*: head\.weight, head\.bias; .*include"):
        check_trains_the_model(whole, "Brain", part)
    with pytest.raises(ScopeError, match=r"Brain does not train the model of this round: 0\.weight"):
        check_trains_the_model(whole["head"], "Brain", part)
    whole["head"].requires_grad_(False)
    check_trains_the_model(whole, "Brain", part)
    check_round(part, 3)
    check_round(part, None)
    for round, every, message in (
        (IMP, None, "not a type"),
        (part, "3", "not '3'"),
        (part, 1.5, "1.5"),
        (part, True, "T"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_round(round, every)


def test_two_trainings_at_once_and_another_model_are_refused() -> None:
    model = mlp()
    holding = Holding(half(model))
    holding.start(model)
    with pytest.raises(ConfigError, match="holds its mask already"):
        holding.start(model)
    holding.end()
    with pytest.raises(ConfigError, match="on another model"):
        holding.start(mlp())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mlp(9), "does not have the masked parameters"),
        (mlp().to("meta"), r"0\.weight, .*: on the meta device"),
    ],
    ids=["another architecture", "meta"],
)
def test_a_model_that_cannot_hold_the_mask_is_refused(model: nn.Module, message: str) -> None:
    before = hooks()
    with pytest.raises(ScopeError, match=message):
        Holding(half(mlp())).start(model)
    assert hooks() == before


def test_an_optimizer_for_another_copy_is_refused_and_nothing_is_held() -> None:
    model, before = mlp(), hooks()
    holding = Holding(half(model))
    with pytest.raises(ScopeError, match="the optimizer holds"):
        holding.start(model, SGD(mlp().parameters(), lr=0.1))
    assert hooks() == before
    holding.start(model, SGD(model.parameters(), lr=0.1))


def test_a_checkpoint_gives_the_mask_back_or_an_error() -> None:
    mask = half(mlp())
    state = mask_state(mask)
    assert mask_from_state(state) == mask
    check_same_mask(state, mask)
    with pytest.raises(TicketError, match="another mask"):
        check_same_mask(state, half(mlp(), seed=1))
    with pytest.raises(TicketError, match="does not hold a mask"):
        mask_from_state({})
    name = next(iter(state["bits"]))
    state["bits"][name][0] ^= 1
    with pytest.raises(TicketError, match="damaged"):
        mask_from_state(state)


def test_metrics_that_are_one_number_are_kept() -> None:
    found = {"a": 1, "b": torch.tensor([2.5]), "c": torch.ones(2), "d": True, "e": None, "f": float("inf")}
    assert numbers(found) == {"a": 1.0, "b": 2.5, "f": float("inf")}


def test_a_missing_library_is_named_with_the_extra_that_brings_it() -> None:
    absent = ModuleNotFoundError("No module named 'lightning'", name="lightning")
    assert "pip install 'ticketkit[lightning]'" in str(missing("lightning.pytorch", "lightning", absent))
    inner = ModuleNotFoundError("No module named 'fsspec'", name="fsspec")
    assert missing("lightning.pytorch", "lightning", inner) is inner
