"""The whole loop on every kind of network: three rounds of pruning and rewinding, held against plain tensors."""

import copy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.zoo import ZOO, Animal
from ticketkit import IMP, Plugins, Scope, Ticket

ROUNDS, STEPS = 3, 2

pytestmark = [
    pytest.mark.parametrize("name", ZOO),
    pytest.mark.filterwarnings("ignore::ticketkit.CollapseWarning"),  # an eighth of a dozen weights is next to nothing
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
States = dict[str, Tensor]


@dataclass
class History:
    """What a run of IMP did, in clones: states at the start and the end of every round, masks, tickets, oddities."""

    imp: IMP
    fresh: nn.Module
    reference: States
    keys: list[str]
    starts: list[States] = field(default_factory=list)
    ends: list[States] = field(default_factory=list)
    masks: list[States] = field(default_factory=list)
    revived: list[str] = field(default_factory=list)
    changed_keys: list[list[str]] = field(default_factory=list)


def states(model: nn.Module) -> States:
    """Return clones of all parameters and buffers, tied ones under each of their names."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: t.detach().clone() for name, t in [*parameters, *model.named_buffers()]}


def train(animal: Animal, model: nn.Module, watch: History | None = None) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        animal.loss(model).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if watch is not None:
            parameters = dict(model.named_parameters())
            watch.revived += [key for key, kept in watch.masks[-1].items() if parameters[key][~kept].any()]


@cache
def history(name: str) -> History:
    animal = ZOO[name]
    torch.manual_seed(7)
    model = animal.build()
    plain, fresh = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(8)
    train(animal, plain)
    torch.manual_seed(8)
    imp = IMP(model, rate=0.5, rounds=ROUNDS, scope=animal.scope, plugins=Plugins())
    seen = History(imp, fresh, states(plain), list(model.state_dict()))
    for current in imp:
        seen.masks.append({key: current.mask[key] for key in current.mask})
        seen.starts.append(states(copy.deepcopy(model)))
        seen.changed_keys.append(list(model.state_dict()))
        train(animal, model, seen)
        seen.ends.append(states(copy.deepcopy(model)))
    return seen


def same(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors have the same bits, −0.0 and NaN included."""
    return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()


def test_every_matrix_is_in_scope_that_is_not_out_on_purpose(name: str) -> None:
    animal, model = ZOO[name], history(name).fresh
    named: dict[int, list[str]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim >= 2:
            named.setdefault(id(parameter), []).append(key)
    outside = [keys[0] for keys in named.values() if any(fnmatchcase(keys[0], glob) for glob in animal.outside)]
    assert list(Scope.of(model, **animal.scope).names) == [k[0] for k in named.values() if k[0] not in outside]
    for glob in animal.outside:
        assert any(fnmatchcase(key, glob) for key in outside), f"{glob} matches nothing"


def test_masks_are_nested_and_keep_half_of_what_was_left_to_the_weight(name: str) -> None:
    seen = history(name)
    sizes = {key: parameter.numel() for key, parameter in seen.fresh.named_parameters()}
    for index, mask in enumerate(seen.masks):
        total = sum(sizes[key] for key in mask)
        kept = sum(int(flags.sum()) for flags in mask.values())
        assert abs(kept - total * 0.5**index) <= 0.5
        assert seen.imp.records[index].kept == kept
        assert all((flags <= seen.masks[index - 1][key]).all() for key, flags in mask.items() if index)
    assert len(seen.masks) == ROUNDS + 1


def test_pruned_weights_are_zero_after_every_step_and_round(name: str) -> None:
    seen = history(name)
    assert seen.revived == []
    for mask, end in zip(seen.masks, seen.ends, strict=True):
        assert all(same(end[key][~kept], torch.zeros_like(end[key][~kept])) for key, kept in mask.items())


def test_the_weights_of_the_least_magnitude_are_pruned(name: str) -> None:
    seen = history(name)
    for mask, after, end in zip(seen.masks, seen.masks[1:], seen.ends, strict=False):
        pruned = torch.cat([end[key][mask[key] & ~kept].abs() for key, kept in after.items()])
        left = torch.cat([end[key][kept].abs() for key, kept in after.items()])
        assert pruned.max() <= left.min()


def test_the_dense_round_trains_to_the_bits_of_plain_torch(name: str) -> None:
    seen = history(name)
    assert seen.ends[0].keys() == seen.reference.keys()
    assert all(same(seen.ends[0][key], value) for key, value in seen.reference.items())
    assert not all(same(seen.starts[0][key], value) for key, value in seen.reference.items())


def test_every_round_starts_from_the_first_weights_to_the_bit(name: str) -> None:
    seen = history(name)
    first = states(seen.fresh)
    for mask, start in zip(seen.masks, seen.starts, strict=True):
        aliases = {alias: key for key, others in seen.imp.scope.aliases.items() for alias in others}
        for key, value in start.items():
            kept = mask.get(aliases.get(key, key), torch.ones(value.shape, dtype=torch.bool))
            assert same(value, first[key].masked_fill(~kept, 0.0)), key


def test_keys_are_never_changed(name: str) -> None:
    seen = history(name)
    assert all(keys == seen.keys for keys in [*seen.changed_keys, list(seen.imp.model.state_dict())])
    assert list(copy.deepcopy(seen.imp.model).state_dict()) == seen.keys


def test_a_ticket_moves_to_a_fresh_network_by_its_file(name: str, tmp_path: Path) -> None:
    seen = history(name)
    ticket = seen.imp.tickets[-1]
    ticket.save(tmp_path / "ticket.safetensors")
    loaded = Ticket.load(tmp_path / "ticket.safetensors")
    assert loaded == ticket
    torch.manual_seed(9)
    other = ZOO[name].build()
    loaded.apply_(other)
    loaded.verify(other)
    assert list(other.state_dict()) == seen.keys
    moved = states(other)
    assert all(same(moved[key], value) for key, value in seen.starts[-1].items())


def test_a_wrapped_network_has_the_same_tickets(name: str) -> None:
    animal, seen = ZOO[name], history(name)
    torch.manual_seed(7)
    wrapped = AveragedModel(animal.build())
    torch.manual_seed(8)
    imp = IMP(wrapped, rate=0.5, rounds=ROUNDS, scope=animal.scope, plugins=Plugins())
    for _ in imp:
        train(animal, wrapped)
    assert imp.tickets == seen.imp.tickets
    other = copy.deepcopy(seen.fresh)
    imp.tickets[-1].apply_(other)
    seen.imp.tickets[-1].verify(wrapped)
    assert all(same(value, seen.starts[-1][key]) for key, value in states(other).items())
