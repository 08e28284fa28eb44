from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from ticketkit.testing import convnet
from ticketkit.testing.moment import Moment, alike, first_difference


@dataclass(eq=False)
class Example:
    features: torch.Tensor
    text: str


@dataclass(frozen=True, slots=True)
class Slotted:
    value: torch.Tensor


class Plain:
    def __init__(self, value: int):
        self.value = value


def test_nothing_has_changed_when_nothing_was_done() -> None:
    model = convnet()
    model[0].weight.grad = torch.ones_like(model[0].weight).to_sparse()
    moment = Moment.of(model)
    assert moment.changes() == []
    model.eval().train()
    assert moment.changes() == []


def test_what_is_not_asked_for_may_change() -> None:
    model = convnet()
    moment = Moment.of(model, all=False)
    torch.rand(1)
    model.register_forward_hook(lambda *_: None)
    assert moment.changes() == []
    model.eval()
    assert moment.changes()[0] == "the mode of module ''"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model[0].weight.data[0].mul_(-1), "the values of parameter '0.weight'"),
        (lambda model: model[1].running_mean.add_(1), "the values of buffer '1.running_mean'"),
        (lambda model: model[0].requires_grad_(False), "requires_grad of parameter '0.weight'"),
        (lambda model: model(torch.ones(2, 1, 8, 8)).sum().backward(), "the gradient of parameter '0.weight'"),
        (lambda model: model[2].eval(), "the mode of module '2'"),
        (lambda model: setattr(model, "cache", 1), "attribute 'cache' of module ''"),
        (lambda model: model.append(torch.nn.Identity()), "attribute '_modules' of module ''"),
        (
            lambda model: setattr(model[0], "weight", torch.nn.Parameter(model[0].weight.detach().clone())),
            "_parameters",
        ),
        (lambda _: np.random.rand(), "the state of numpy.random"),
    ],
    ids=["weights", "buffers", "frozen", "gradients", "mode", "attribute", "layers", "parameter", "generator"],
)
def test_what_has_changed_is_named(change: Any, said: str) -> None:
    model = convnet()
    moment = Moment.of(model)
    change(model)
    assert any(said in line for line in moment.changes())


@pytest.mark.parametrize(
    ids=lambda value: type(value).__name__,
    argnames=("one", "other"),
    argvalues=[
        (0.0, -0.0),
        (float("nan"), float("nan")),
        (torch.tensor([torch.nan]), torch.tensor([torch.nan])),
        (torch.arange(6).reshape(2, 3), torch.arange(6).reshape(3, 2).T.contiguous().T.reshape(2, 3).clone()),
        (torch.ones(4, 4)[:, ::2], torch.ones(4, 2)),
        (np.array([1, 2]), np.array([1, 2])),
        ([{"a": (1, None)}], [{"a": (1, None)}]),
        (Example(torch.ones(2), "x"), Example(torch.ones(2), "x")),
        ({1, 2}, {2, 1}),
        (Slotted(torch.ones(2)), Slotted(torch.ones(2))),
        (Plain(1), Plain(1)),
        (len, len),
        (torch.float32, torch.float32),
    ],
)
def test_what_holds_the_same_is_alike(one: Any, other: Any) -> None:
    assert alike(one, other)


@pytest.mark.parametrize(
    ids=lambda value: type(value).__name__,
    argnames=("one", "other"),
    argvalues=[
        (1, True),
        (1, 1.0),
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(2), torch.ones(2, 1)),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([1], np.int32), np.array([1], np.int64)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([1, 2], [1]),
        ((1,), [1]),
        (Example(torch.ones(2), "x"), Example(torch.zeros(2), "x")),
        (Slotted(torch.ones(2)), Slotted(torch.zeros(2))),
        (Plain(1), Plain(2)),
        (lambda: 1, lambda: 1),
    ],
)
def test_what_differs_is_not_alike(one: Any, other: Any) -> None:
    assert not alike(one, other)


def test_the_first_difference_is_shown() -> None:
    one, other = torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [-0.0, 1.0]])
    assert first_difference(one, other) == "[1, 0] is 0.0, then -0.0"
    assert first_difference(torch.tensor(1), torch.tensor(2)) == "[] is 1, then 2"
    assert first_difference(one, one[0]) == " is torch.float32 (2, 2), then torch.float32 (2,)"
