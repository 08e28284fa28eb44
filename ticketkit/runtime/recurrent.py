"""LSTM, GRU and RNN for inference over products: called as torch's are, with the same outputs to float tolerance.

One layer and direction is computed at a time, the inputs of all steps in one product, then step by step. Sequences may
be packed; the state is taken and returned, so that a sequence can also be given one step at a time.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ticketkit.errors import ConfigError
from ticketkit.runtime.products import Form, product

Kind = Literal["LSTM", "GRU", "RNN_TANH", "RNN_RELU"]
GATES: Mapping[Kind, int] = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
States = list[tuple[Tensor, Tensor | None]]


class Direction(nn.Module):
    """One direction of one layer. Rows of the matrices are gates times hidden units, for the LSTM as i, f, o, g."""

    def __init__(
        self, kind: Kind, weights: Mapping[str, Tensor], *, forms: Mapping[str, Form], reverse: bool = False
    ) -> None:
        super().__init__()
        self.kind = kind
        self.reverse = reverse
        self.hidden = weights["weight_hh"].shape[0] // GATES[kind]
        order = _order(kind, self.hidden)
        zeros = torch.zeros(GATES[kind] * self.hidden)
        bias_ih, bias_hh = weights.get("bias_ih", zeros)[order], weights.get("bias_hh", zeros)[order]
        if kind != "GRU":  # of a GRU the reset gate lies between the two
            bias_ih, bias_hh = bias_ih + bias_hh, torch.zeros_like(bias_hh)
        self.register_buffer("bias_ih", bias_ih.detach().float()[:, None])
        self.register_buffer("bias_hh", bias_hh.detach().float()[:, None])
        self.bias_ih: Tensor
        self.bias_hh: Tensor
        self.from_input = product(weights["weight_ih"][order], forms["weight_ih"])
        self.from_state = product(weights["weight_hh"][order], forms["weight_hh"])
        projection = weights.get("weight_hr")
        self.projection = None if projection is None else product(projection, forms["weight_hr"])

    def forward(
        self, x: Tensor, sizes: list[int], state: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return outputs and the last states, for the columns of all steps (width, sum of sizes).

        `sizes` are the sequences of each step, never rising; states are (units, sequences).
        """
        inputs = self.from_input(x, self.bias_ih)
        state, cell = state.clone(), None if cell is None else cell.clone()
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + size)
        outputs = x.new_empty(state.shape[0], x.shape[1])
        steps = range(len(sizes))
        for step in reversed(steps) if self.reverse else steps:
            size, start = sizes[step], starts[step]
            own, own_cell = state[:, :size], None if cell is None else cell[:, :size]
            own, own_cell = self._step(inputs[:, start : start + size], own, own_cell)
            outputs[:, start : start + size] = own
            if size == state.shape[1]:
                state, cell = own, own_cell
            else:
                state[:, :size] = own
                if cell is not None and own_cell is not None:
                    cell[:, :size] = own_cell
        return outputs, state, cell

    def _step(self, inputs: Tensor, state: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.kind == "LSTM":
            gates = self.from_state(state, inputs)
            opened = gates[: 3 * self.hidden].sigmoid_()
            i, f, o = opened.view(3, self.hidden, -1)
            cell = torch.addcmul(f * cell, i, gates[3 * self.hidden :].tanh_())
            state = o * cell.tanh()
            return (state if self.projection is None else self.projection(state, state.new_zeros(1, 1))), cell
        if self.kind == "GRU":
            from_state = self.from_state(state, self.bias_hh)
            two = 2 * self.hidden
            r, z = (inputs[:two] + from_state[:two]).sigmoid_().view(2, self.hidden, -1)
            new = torch.addcmul(inputs[two:], r, from_state[two:]).tanh_()
            return new + z * (state - new), None
        summed = self.from_state(state, inputs)
        return (summed.tanh_() if self.kind == "RNN_TANH" else summed.relu_()), None


class Recurrent(nn.Module):
    """Stands in for an `nn.LSTM`, `nn.GRU` or `nn.RNN`: layers, directions, projections, packed sequences, states."""

    def __init__(self, module: nn.RNNBase, forms: Mapping[str, Form]) -> None:
        super().__init__()
        self.mode: Kind = module.mode  # type: ignore[assignment]
        if self.mode not in GATES:
            raise ConfigError(f"a recurrent layer of mode {module.mode!r} has no form for inference")
        self.input_size, self.hidden_size, self.num_layers = module.input_size, module.hidden_size, module.num_layers
        self.batch_first, self.bidirectional = module.batch_first, module.bidirectional
        self.directions = 2 if module.bidirectional else 1
        self.proj_size = getattr(module, "proj_size", 0)
        state = {name: parameter.detach() for name, parameter in module.named_parameters()}
        self.layers = nn.ModuleList()
        for layer in range(module.num_layers):
            for direction in range(self.directions):
                suffix = f"_l{layer}" + ("_reverse" if direction else "")
                own = {name.removesuffix(suffix): value for name, value in state.items() if _belongs(name, suffix)}
                chosen = {leaf: forms[leaf + suffix] for leaf in own if leaf.startswith("weight")}
                self.layers.append(Direction(self.mode, own, forms=chosen, reverse=bool(direction)))

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """Return what torch's module returns: outputs, and the last state (for an LSTM with its cell)."""
        if isinstance(input, PackedSequence):
            data, sizes = input.data, input.batch_sizes.tolist()
            batch, unsort = sizes[0] if sizes else 0, input.unsorted_indices
            start = self._start(hx, batch, data, sort=input.sorted_indices)
            outputs, ends = self._run(data.T, sizes, start)
            packed = PackedSequence(outputs.T, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
            return packed, self._state(ends, unsort, batched=True)
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(0 if self.batch_first else 1)
        x = x.transpose(0, 1) if self.batch_first else x  # (steps, batch, width)
        steps, batch, _ = x.shape
        start = self._start(hx, batch, x, batched=batched)
        outputs, ends = self._run(x.reshape(steps * batch, -1).T, [batch] * steps, start)
        y = outputs.T.reshape(steps, batch, -1)
        y = y.transpose(0, 1) if self.batch_first else y
        return (y if batched else y.squeeze(0 if self.batch_first else 1)), self._state(ends, None, batched=batched)

    def _run(self, x: Tensor, sizes: list[int], start: States) -> tuple[Tensor, States]:
        ends: States = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(self.directions):
                place = layer * self.directions + direction
                y, state, cell = self.layers[place](x.contiguous(), sizes, *start[place])
                outputs.append(y)
                ends.append((state, cell))
            x = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return x, ends

    def _start(self, hx: Any, batch: int, like: Tensor, *, batched: bool = True, sort: Tensor | None = None) -> States:
        """Return the states that each layer and direction starts from, units by sequences."""
        count, units = self.num_layers * self.directions, self.proj_size or self.hidden_size
        if hx is None:
            h = like.new_zeros(count, batch, units)
            c = like.new_zeros(count, batch, self.hidden_size) if self.mode == "LSTM" else None
        else:
            h, c = hx if self.mode == "LSTM" else (hx, None)
            h, c = (h, c) if batched else (h.unsqueeze(1), None if c is None else c.unsqueeze(1))
            if sort is not None:
                h, c = h.index_select(1, sort), None if c is None else c.index_select(1, sort)
        return [(h[i].T, None if c is None else c[i].T) for i in range(count)]

    def _state(self, ends: States, unsort: Tensor | None, *, batched: bool) -> Any:
        """Return the last states as torch's module does."""
        stacked = [torch.stack([state.T for state, _ in ends])]
        if self.mode == "LSTM":
            stacked.append(torch.stack([cell.T for _, cell in ends if cell is not None]))
        if unsort is not None:
            stacked = [state.index_select(1, unsort) for state in stacked]
        stacked = stacked if batched else [state.squeeze(1) for state in stacked]
        return tuple(stacked) if self.mode == "LSTM" else stacked[0]


def _belongs(name: str, suffix: str) -> bool:
    return name.endswith(suffix) and (suffix.endswith("_reverse") or not name.endswith("_reverse"))


def _order(kind: Kind, hidden: int) -> Tensor:
    """Return the rows of torch's gates in the order of this module's: the LSTM's sigmoids side by side."""
    rows = torch.arange(GATES[kind] * hidden).view(GATES[kind], hidden)
    return (rows[[0, 1, 3, 2]] if kind == "LSTM" else rows).reshape(-1)
