"""LSTM, GRU and RNN for inference over products: called as torch's are, with the same outputs to float tolerance.

One layer and direction is computed at a time, the inputs of all steps in one product, then step by step. Sequences may
be packed; the state is taken and returned, so that a sequence can also be given one step at a time.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ticketkit.errors import ConfigError
from ticketkit.runtime.products import Form, product

Kind = Literal["LSTM", "GRU", "RNN_TANH", "RNN_RELU"]
GATES: Mapping[Kind, int] = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
States = list[tuple[Tensor, Tensor | None]]
Multiply = Callable[[Tensor, Tensor], Tensor]


class Direction(nn.Module):
    """One direction of one layer. Rows of the matrices are gates times hidden units, for the LSTM as i, f, o, g."""

    def __init__(
        self, kind: Kind, weights: Mapping[str, Tensor], *, forms: Mapping[str, Form], reverse: bool = False
    ) -> None:
        super().__init__()
        self.kind = kind
        self.reverse = reverse
        order = _order(kind, weights["weight_hh"].shape[0] // GATES[kind])
        zeros = torch.zeros(len(order))
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
        self.projected = 0 if projection is None else projection.shape[0]

    @property
    def hidden(self) -> int:
        """The hidden units."""
        return self.bias_ih.shape[0] // GATES[self.kind]

    def forward(
        self, x: Tensor, sizes: list[int], state: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return outputs and the last states, for the columns of all steps (width, sum of sizes).

        `sizes` are the sequences of each step, never rising; states are (units, sequences).
        """
        inputs = self.from_input(x, self.bias_ih)
        if x.shape[1] == len(sizes):
            return self._single(inputs, state, cell)
        state, cell = state.clone(), None if cell is None else cell.clone()
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + size)
        outputs = x.new_empty(state.shape[0], x.shape[1])
        steps = range(len(sizes))
        for step in reversed(steps) if self.reverse else steps:
            size, start = sizes[step], starts[step]
            own, own_cell = state[:, :size], None if cell is None else cell[:, :size]
            own, own_cell = self._step(inputs[:, start : start + size], own, own_cell, self.from_state)
            outputs[:, start : start + size] = own
            if size == state.shape[1]:
                state, cell = own, own_cell
            else:
                state[:, :size] = own
                if cell is not None and own_cell is not None:
                    cell[:, :size] = own_cell
        return outputs, state, cell

    def _single(self, inputs: Tensor, state: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what `forward` does for a single sequence, its states and gates as vectors."""
        own, own_cell = state[:, 0], None if cell is None else cell[:, 0]
        rows = inputs.T.contiguous().unbind(0)
        outputs = inputs.new_empty(len(rows), len(own))
        steps = range(len(rows))
        for step in reversed(steps) if self.reverse else steps:
            own, own_cell = self._step(rows[step], own, own_cell, self.from_state.vector)
            outputs[step] = own
        return outputs.T, own[:, None], None if own_cell is None else own_cell[:, None]

    def _step(
        self, inputs: Tensor, state: Tensor, cell: Tensor | None, from_state: Multiply
    ) -> tuple[Tensor, Tensor | None]:
        """Return the next state from the inputs' part of the gates; states and gates are vectors or columns."""
        if self.kind == "LSTM":
            gates = from_state(state, inputs)
            i, f, o = gates[: 3 * self.hidden].sigmoid_().chunk(3)
            cell = torch.addcmul(f * cell, i, gates[3 * self.hidden :].tanh_())  # type: ignore[operator]
            state = o * cell.tanh()
            if self.projection is None:
                return state, cell
            multiply = self.projection.vector if state.dim() == 1 else self.projection
            return multiply(state, state.new_zeros([self.projected, *state.shape[1:]])), cell
        if self.kind == "GRU":
            bias = self.bias_hh[:, 0] if state.dim() == 1 else self.bias_hh
            gates = from_state(state, bias)
            two = 2 * self.hidden
            r, z = (inputs[:two] + gates[:two]).sigmoid_().chunk(2)
            new = torch.addcmul(inputs[two:], r, gates[two:]).tanh_()
            return new + z * (state - new), None
        summed = from_state(state, inputs)
        return (summed.tanh_() if self.kind == "RNN_TANH" else summed.relu_()), None


class CompactDirection(nn.Module):
    """One direction without its idle units: those with no weight at all, whose state follows from their biases alone.

    The others make a smaller layer, which torch's own kernel computes. What an idle unit does is worked out once for as
    many steps as were ever asked for, for sequences that start from zero, and anew for others.
    """

    varying: ClassVar[frozenset[str]] = frozenset(
        ("columns", "busy", "idle", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "idle_bias_ih", "idle_bias_hh")
    )
    """Buffers whose lengths depend on what is zero."""

    def __init__(self, kind: Kind, weights: Mapping[str, Tensor], *, reverse: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.reverse = reverse
        gates = GATES[kind]
        self.hidden, self.inputs = weights["weight_hh"].shape[0] // gates, weights["weight_ih"].shape[1]
        idle = idle_units(weights, gates)
        columns = weights["weight_ih"].any(0).nonzero()[:, 0]
        busy, rest = (~idle).nonzero()[:, 0], idle.nonzero()[:, 0]
        zeros = torch.zeros(gates * self.hidden)
        biases = {name: weights.get(name, zeros) for name in ("bias_ih", "bias_hh")}
        own = _units({**weights, **biases}, busy, gates)
        own["weight_ih"] = own["weight_ih"][:, columns]
        idle_biases = _units({**biases, "weight_hh": weights["weight_hh"]}, rest, gates)
        own |= {f"idle_{name}": idle_biases[name] for name in biases}
        for name, value in {"columns": columns.int(), "busy": busy.int(), "idle": rest.int(), **own}.items():
            value = value.detach().float() if value.is_floating_point() else value
            self.register_buffer(name, value.contiguous())
        self.columns: Tensor
        self.busy: Tensor
        self.idle: Tensor
        self.idle_bias_ih: Tensor
        self.idle_bias_hh: Tensor
        self._known: tuple[Tensor, Tensor | None] | None = None

    def forward(
        self, x: Tensor, sizes: list[int], state: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what `Direction` returns."""
        turned = _turned(sizes) if self.reverse else None
        data = x.index_select(0, self.columns).T
        data = data if turned is None else data[turned]
        busy, idle = self.busy.long(), self.idle.long()
        outputs, last, last_cell = self._busy(data, sizes, state[busy], None if cell is None else cell[busy])
        resting, rest, rest_cell = self._resting(x, sizes, state[idle], None if cell is None else cell[idle])
        result = x.new_empty(self.hidden, x.shape[1])
        result[busy] = (outputs if turned is None else outputs[turned]).T
        result[idle] = resting if turned is None else resting[:, turned]
        joined = self._joined(last, rest)
        return result, joined, None if last_cell is None or rest_cell is None else self._joined(last_cell, rest_cell)

    def check(self) -> None:
        """Raise `ValueError` if the buffers are no such layer: what comes from a file may be anything."""
        if any(places.dim() != 1 for places in (self.columns, self.busy, self.idle)):
            raise ValueError("indices that are no vectors")
        units = torch.cat([self.busy, self.idle]).sort().values
        if not torch.equal(units, torch.arange(self.hidden, dtype=units.dtype)):
            raise ValueError(f"busy and idle units that are not {self.hidden} units together")
        if len(self.columns) and not 0 <= int(self.columns.min()) <= int(self.columns.max()) < self.inputs:
            raise ValueError(f"column indices outside of 0 to {self.inputs - 1}")
        gates, busy, idle = GATES[self.kind], self.busy.numel(), self.idle.numel()
        shapes = {"weight_ih": (gates * busy, self.columns.numel()), "weight_hh": (gates * busy, busy)}
        shapes |= dict.fromkeys(("bias_ih", "bias_hh"), (gates * busy,))  # type: ignore[arg-type]
        shapes |= dict.fromkeys(("idle_bias_ih", "idle_bias_hh"), (gates * idle,))  # type: ignore[arg-type]
        for name, shape in shapes.items():
            if (came := tuple(getattr(self, name).shape)) != shape:
                raise ValueError(f"{name} of the shape {came}, not {shape}")

    def _busy(
        self, data: Tensor, sizes: list[int], state: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return outputs (columns, units) and last states of the smaller layer, by torch's own kernel."""
        flat = [getattr(self, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        start: Any = state.T[None].contiguous()
        start = start if cell is None else (start, cell.T[None].contiguous())
        kernels = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}
        kernel: Any = kernels[self.kind]
        if sizes[0] == sizes[-1]:
            whole = data.reshape(len(sizes), sizes[0], -1)
            found = kernel(whole, start, flat, True, 1, 0.0, False, False, False)
        else:
            found = kernel(data.contiguous(), torch.tensor(sizes), start, flat, True, 1, 0.0, False, False)
        outputs, ends = found[0].reshape(len(data), -1), [end[0].T for end in found[1:]]
        return outputs, ends[0], ends[1] if len(ends) > 1 else None

    def _joined(self, busy: Tensor, idle: Tensor) -> Tensor:
        joined = busy.new_empty(self.hidden, busy.shape[1])
        joined[self.busy.long()], joined[self.idle.long()] = busy, idle
        return joined

    def _resting(
        self, x: Tensor, sizes: list[int], state: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what the idle units do, in the order of their own steps, and their last states."""
        nothing = x.new_zeros(1, max(len(sizes), x.shape[1]))
        if state.any() or (cell is not None and cell.any()):
            found: tuple[Tensor, Tensor, Tensor | None] = self._rest()(nothing[:, : x.shape[1]], sizes, state, cell)
            return found
        if self._known is None or self._known[0].shape[1] < len(sizes):
            zero = state.new_zeros(len(state), 1)
            self._known = self._worked_out(nothing, zero, None if cell is None else zero)
        states, cells = self._known
        lengths = _lengths(sizes)
        steps = torch.cat([torch.full((size,), step) for step, size in enumerate(sizes)])
        return states[:, steps], states[:, lengths - 1], None if cells is None else cells[:, lengths - 1]

    def _rest(self) -> Direction:
        """Return the idle units as a layer of one input: their biases, and weights that are all zero."""
        rows = len(self.idle_bias_ih)
        zeros = {"weight_ih": torch.zeros(rows, 1), "weight_hh": torch.zeros(rows, len(self.idle))}
        biases = {"bias_ih": self.idle_bias_ih, "bias_hh": self.idle_bias_hh}
        return Direction(self.kind, {**zeros, **biases}, forms=dict.fromkeys(zeros, "compact"))

    def _worked_out(self, inputs: Tensor, state: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return states and cells (units, steps) of the idle units from zero."""
        states, cells, rest = [], [], self._rest()
        for step in range(inputs.shape[1]):
            _, state, cell = rest(inputs[:, step : step + 1], [1], state, cell)
            states.append(state)
            cells.append(cell)
        there = [one for one in cells if one is not None]
        return torch.cat(states, 1), torch.cat(there, 1) if there else None


def direction_of(
    kind: Kind, weights: Mapping[str, Tensor], forms: Mapping[str, Form], *, reverse: bool = False
) -> Direction | CompactDirection:
    """Return one direction of one layer; compacted by units where all of it is compact and nothing is projected."""
    if set(forms.values()) == {"compact"} and "weight_hr" not in weights:
        return CompactDirection(kind, weights, reverse=reverse)
    return Direction(kind, weights, forms=forms, reverse=reverse)


def _lengths(sizes: list[int]) -> Tensor:
    """Return the steps of each sequence, from the sequences of each step."""
    return torch.tensor([sum(size > place for size in sizes) for place in range(sizes[0])])


def _turned(sizes: list[int]) -> Tensor:
    """Return for each column the one of the same sequence as far from its end; twice is once."""
    lengths = _lengths(sizes)
    starts = torch.tensor([0, *sizes]).cumsum(0)
    steps = torch.cat([torch.full((size,), step) for step, size in enumerate(sizes)])
    places = torch.cat([torch.arange(size) for size in sizes])
    return starts[lengths[places] - 1 - steps] + places


def idle_units(weights: Mapping[str, Tensor], gates: int) -> Tensor:
    """Return which hidden units have no weight that is not zero: no gate row and no recurrent column."""
    from_input, from_state = weights["weight_ih"], weights["weight_hh"]
    hidden = from_state.shape[0] // gates
    rows = (from_input.any(1) | from_state.any(1)).view(gates, hidden).any(0)
    return ~(rows | from_state.any(0))


def _units(weights: Mapping[str, Tensor], chosen: Tensor, gates: int) -> dict[str, Tensor]:
    """Return the weights of some of the units."""
    hidden = weights["weight_hh"].shape[0] // gates
    rows = (torch.arange(gates)[:, None] * hidden + chosen.long()).reshape(-1)
    own = {name: value[rows] for name, value in weights.items()}
    own["weight_hh"] = own["weight_hh"][:, chosen.long()]
    return own


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
                self.layers.append(direction_of(self.mode, own, chosen, reverse=bool(direction)))

    @torch.no_grad()
    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """Return what torch's module returns: outputs, and the last state (for an LSTM with its cell)."""
        if isinstance(input, PackedSequence):
            data, sizes = input.data, input.batch_sizes.tolist()
            batch, unsort = sizes[0] if sizes else 0, input.unsorted_indices
            start = self._start(hx, batch, data, sort=input.sorted_indices)
            outputs, ends = self._run(data.T, sizes, start)
            packed = PackedSequence(
                outputs.T.contiguous(), input.batch_sizes, input.sorted_indices, input.unsorted_indices
            )
            return packed, self._state(ends, unsort, batched=True)
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(0 if self.batch_first else 1)
        x = x.transpose(0, 1) if self.batch_first else x  # (steps, batch, width)
        steps, batch, _ = x.shape
        start = self._start(hx, batch, x, batched=batched)
        outputs, ends = self._run(x.reshape(steps * batch, -1).T, [batch] * steps, start)
        y = outputs.T.reshape(steps, batch, -1).contiguous()
        y = y.transpose(0, 1) if self.batch_first else y
        return (y if batched else y.squeeze(0 if self.batch_first else 1)), self._state(ends, None, batched=batched)

    def flatten_parameters(self) -> None:
        """Do nothing: networks call it of torch's layers, whose weights can lie apart."""

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
