"""The criterion, from its source, whether or not the package is installed."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import ticketkit

SOURCE = Path(__file__).parents[1] / "ticketkit_movement.py"


@pytest.fixture
def plugin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ticketkit_movement", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_registers_one_criterion(plugin: ModuleType) -> None:
    registered = {}
    plugin.ticketkit_register_criteria(register=registered.__setitem__)
    assert registered == {"movement": plugin.movement}


def test_the_weights_that_moved_most_are_kept(plugin: ModuleType) -> None:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[9.0, 0.1, -3.0, 0.0]]))
    imp = ticketkit.IMP(model, rate=0.5, rounds=1, criterion=plugin.movement)
    for round in imp:
        if round.index == 0:
            with torch.no_grad():
                model.weight.add_(torch.tensor([[0.0, 2.0, -0.5, -1.0]]))
    assert imp.tickets[1].mask["weight"].tolist() == [[False, True, False, True]]
