"""The criterion, as a run finds it: through the entry point."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import ticketkit
from ticketkit.testing import check_criterion, plugin_installed

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ticketkit.Plugins]:
    """The plugins of an environment where this one is installed."""
    monkeypatch.setenv("TICKETKIT_LOAD_PLUGINS", "movement")
    with plugin_installed(PROJECT, tmp_path):
        yield ticketkit.Plugins.discover()


def test_it_obeys_the_laws_of_criteria(plugins: ticketkit.Plugins) -> None:
    check_criterion("movement", plugins=plugins)


def test_the_weights_that_moved_most_are_kept(plugins: ticketkit.Plugins) -> None:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[9.0, 0.1, -3.0, 0.0]]))
    imp = ticketkit.IMP(model, rate=0.5, rounds=1, criterion="movement", plugins=plugins)
    for round in imp:
        if round.index == 0:
            with torch.no_grad():
                model.weight.add_(torch.tensor([[0.0, 2.0, -0.5, -1.0]]))
    assert imp.tickets[1].mask["weight"].tolist() == [[False, True, False, True]]
    assert imp.tickets[1].facts.criterion.entry == "movement:movement"
