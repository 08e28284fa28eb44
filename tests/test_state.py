"""Laws of training state: what an optimizer or a scheduler gave comes back exactly, without pickle."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ticketkit.errors import ConfigError, StorageError
from ticketkit.state import copied, flattened, load_state, unflattened
from ticketkit.storage import canonical_json

tensors = st.lists(st.floats(width=32), max_size=4).map(torch.tensor)
arrays = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4).map(lambda values: np.array(values, np.int64))
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), tensors, arrays)
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.integers(), st.text()), inner, max_size=3),
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Say whether two states are equal with their types, NaN being equal to NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype is b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b or (a != a and b != b))


@given(states)
def test_every_state_comes_back_with_its_types(state: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    skeleton = flattened(state, "x", tensors)
    canonical_json(skeleton)
    assert same(unflattened(skeleton, tensors), state)


@given(states)
def test_a_copy_is_equal_and_shares_no_memory(state: Any) -> None:
    duplicate = copied(state)
    assert same(duplicate, state)
    for tensor in tensors_in(duplicate):
        tensor.fill_(7)
    assert all(tensor is not other for tensor in tensors_in(duplicate) for other in tensors_in(state))


def tensors_in(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state] if state.numel() else []
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in inner for tensor in tensors_in(value)]


def trained(kind: str) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    optimizers = {
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "lbfgs": lambda: torch.optim.LBFGS(model.parameters(), max_iter=2),
        "adagrad": lambda: torch.optim.Adagrad(model.parameters()),
    }
    optimizer = optimizers[kind]()
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    scheduler.step()


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lbfgs", "adagrad"])
def test_an_optimizer_goes_on_to_the_same_bits_after_its_state_was_written(kind: str) -> None:
    model, optimizer, scheduler = trained(kind)
    for _ in range(3):
        step(model, optimizer, scheduler)
    tensors: dict[str, torch.Tensor] = {}
    skeleton = flattened(copied([optimizer.state_dict(), scheduler.state_dict()]), "s", tensors)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(model, optimizer, scheduler)

    other, again, schedule = trained(kind)
    other.load_state_dict(weights)
    states = unflattened(skeleton, {key: tensor.clone() for key, tensor in tensors.items()})
    again.load_state_dict(states[0])
    schedule.load_state_dict(states[1])
    step(other, again, schedule)
    assert all(a.equal(b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("bad", [lambda: None, object(), {(1, 2): 3}, {True: 1}, {"a": [{1.5: 0}]}])
def test_what_cannot_be_written_is_named_by_its_place(bad: object) -> None:
    with pytest.raises(StorageError, match="'optimizer"):
        flattened(bad, "optimizer", {})


def test_ordered_dicts_and_numpy_scalars_are_kept() -> None:
    tensors: dict[str, torch.Tensor] = {}
    state = OrderedDict(b=np.float64(0.1), a=np.int32(3), dtype=torch.bfloat16)
    back = unflattened(flattened(state, "x", tensors), tensors)
    assert list(back) == ["b", "a", "dtype"]
    assert (back["b"], back["a"], back["dtype"]) == (0.1, 3, torch.bfloat16)
    assert back["b"].dtype == np.float64


def test_an_unknown_kind_of_state_is_refused() -> None:
    with pytest.raises(StorageError, match="later version"):
        unflattened(["z", 1], {})


def test_keys_that_are_spelled_alike_do_not_collide() -> None:
    tensors: dict[str, torch.Tensor] = {}
    state = {"a.b": torch.tensor([1.0]), "a": {"b": torch.tensor([2.0])}, 0: torch.tensor(3.0), "0": torch.tensor(4.0)}
    assert same(unflattened(flattened(state, "x", tensors), tensors), state)


def test_arrays_without_dimensions_keep_their_shape() -> None:
    tensors: dict[str, torch.Tensor] = {}
    assert unflattened(flattened(np.array(2.5), "x", tensors), tensors).shape == ()


def test_the_state_of_another_kind_of_optimizer_is_refused() -> None:
    parameters = [torch.nn.Parameter(torch.ones(2))]
    adam, sgd = torch.optim.AdamW(parameters), torch.optim.SGD(parameters, lr=0.1)
    with pytest.raises(ConfigError, match=r"SGD gets the state of an optimizer that has no dampening.* but .*betas"):
        load_state(sgd, adam.state_dict())
    load_state(sgd, torch.optim.SGD(parameters, lr=0.3).state_dict())
    assert sgd.param_groups[0]["lr"] == 0.3
