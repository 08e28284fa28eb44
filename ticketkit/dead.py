"""Dead units: outputs, inputs and hidden units of which a mask keeps nothing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.rnn import RNNBase, RNNCellBase

from ticketkit.mask import Mask
from ticketkit.names import owned_parameters
from ticketkit.scope import masked_parameters

RECURRENT = re.compile(r"(?P<prefix>(?:.*\.)?)weight_hh(?P<layer>(?:_l\d+(?:_reverse)?)?)")
GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}  # of every other recurrent module, 1


@dataclass(frozen=True)
class DeadUnits:
    """Indices of units of which no weight is kept, in ascending order, by parameter.

    `rows` are output units (a Linear's neurons, a convolution's filters), `columns` input units (features, channels);
    a bias has rows only. `hidden` are the units of each recurrent layer, keyed `<module>.l0`, `<module>.l0_reverse`, …
    (a cell: `<module>`; at the root without the dot), whose rows are empty for every gate, from input and recurrence.
    """

    rows: Mapping[str, tuple[int, ...]]
    columns: Mapping[str, tuple[int, ...]]
    hidden: Mapping[str, tuple[int, ...]]

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """How many rows and how many columns of each parameter are dead."""
        return {name: (len(rows), len(self.columns[name])) for name, rows in self.rows.items()}


def dead_units(mask: Mask, model: nn.Module | None = None) -> DeadUnits:
    """Return the rows, columns and hidden units of which the mask keeps nothing.

    A row is an index of axis 0, a column one of axis 1; for a transposed convolution of `model` it is the reverse, and
    the channels of a grouped convolution of `model` are counted over all groups. Without a model every kernel counts as
    that of an ungrouped convolution, and gates are told from shapes: a weight_hh of (4H, H), (3H, H) or (H, H), or
    (4H, P) with P < H for an LSTM with a projection. Units are only seen through masked parameters: a hidden unit is
    reported if both its weight_ih and its weight_hh are masked.
    Raises `ScopeError` when the model does not have the masked parameters.

    >>> dead_units(Mask({"fc.weight": torch.tensor([[True, False], [False, False]])})).counts
    {'fc.weight': (1, 1)}
    """
    if model is not None:
        masked_parameters(model, mask.shapes)
    owners = (
        {} if model is None else {name: module for name, _, module in owned_parameters(model, remove_duplicate=False)}
    )
    modules = {name: owners.get(name) for name in mask}
    kept = {name: _kept_by_unit(tensor, modules[name]) for name, tensor in mask.items()}
    hidden = {}
    for name, (alive, _) in kept.items():
        layer = RECURRENT.fullmatch(name)
        partner = f"{layer['prefix']}weight_ih{layer['layer']}" if layer else ""
        if layer and partner in mask and isinstance(modules[name], RNNBase | RNNCellBase | None):
            gates = _gates(mask.shapes[name], modules[name])
            units = (alive | kept[partner][0]).reshape(gates, -1).any(0)
            hidden[(layer["prefix"] + layer["layer"].removeprefix("_")).removesuffix(".")] = _dead(units)
    return DeadUnits(
        rows={name: _dead(rows) for name, (rows, _) in kept.items()},
        columns={name: _dead(columns) for name, (_, columns) in kept.items()},
        hidden=hidden,
    )


def _gates(shape: tuple[int, ...], module: nn.Module | None) -> int:
    """Return how many gates are stacked along axis 0 of weight_hh; more than four times H rows mean a projection."""
    if isinstance(module, RNNBase):
        return GATES.get(module.mode, 1)
    if module is not None:
        return next((GATES[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in GATES), 1)
    return min(shape[0] // shape[1], 4) if shape[1] else 1


def _kept_by_unit(kept: torch.Tensor, module: nn.Module | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which rows and which columns keep a weight, as two bool vectors."""
    if kept.ndim < 2:
        return kept.reshape(-1), kept.new_empty(0)
    groups = module.groups if isinstance(module, _ConvNd) else 1
    inner = kept.unsqueeze(-1).flatten(2).any(2)
    first = inner.any(1)
    second = inner.reshape(groups, inner.shape[0] // groups, inner.shape[1]).any(1).reshape(-1)
    return (second, first) if isinstance(module, _ConvTransposeNd) else (first, second)


def _dead(alive: torch.Tensor) -> tuple[int, ...]:
    return tuple((~alive).nonzero().flatten().tolist())
