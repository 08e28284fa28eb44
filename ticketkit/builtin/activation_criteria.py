"""Wanda: a weight is worth its magnitude times the norm of all that it multiplies.

The norm is exact for every weight: over the batches, time steps, positions and uses of a tied parameter, the square
root of the sum of the squares of the values that the weight is multiplied with. What torch's recurrent and attention
layers keep to themselves is computed again, layer by layer, from the same weights.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ticketkit.criterion import ScoreInputs
from ticketkit.errors import ScoreError
from ticketkit.names import named_modules
from ticketkit.scope import tied_groups

Squares = Iterator[tuple[str, torch.Tensor]]
Use = tuple[nn.Module, str]


def wanda(inputs: ScoreInputs) -> Mapping[str, torch.Tensor]:
    """Return |W_ij| · ‖X_j‖₂ (Sun et al. 2024: Wanda), in float64; the paper compares the weights of one output row.

    X_j is what the weight multiplies: the input of a Linear or Bilinear; for convolutions the values under that element
    of the kernel; for recurrent layers and cells their input, the hidden state before each step and, with `proj_size`,
    the state before projection; for attention queries, keys, values, and the heads' joint output; for an embedding how
    often its token comes. Uses of a weight outside its own layer, as in `F.linear(x, other.weight)`, are not seen.
    Padding inside a `PackedSequence` does not count; any other padding does.

    Raises `ScoreError` for parameters of other kinds and those whose layer the loss does not run.
    """
    probe = inputs.probe
    uses = _uses(probe.model, inputs.mask)

    def observe(run: Callable[[], torch.Tensor]) -> dict[Use, torch.Tensor]:
        batch: dict[Use, torch.Tensor] = {}

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for leaf, squares in _squares(module, args, kwargs):
                batch[module, leaf] = batch.get((module, leaf), 0) + squares.cpu().double()

        for module in {module for found in uses.values() for module, _ in found}:
            module.register_forward_pre_hook(hook, with_kwargs=True)
        with torch.no_grad():
            run()
        return batch

    totals: dict[Use, torch.Tensor] = {}
    for batch in probe.per_batch(observe):
        for use, squares in batch.items():
            totals[use] = totals[use] + squares if use in totals else squares
    if unseen := [name for name, found in uses.items() if totals.keys().isdisjoint(found)]:
        raise ScoreError(
            f"wanda saw no input of {', '.join(unseen)}: the loss never calls the layers they belong to; exclude them "
            "from the scope"
        )
    return {
        name: inputs.weights[name].detach().cpu().double().abs()
        * sum((totals[use] for use in found if use in totals), torch.zeros(inputs.mask.shapes[name])).sqrt()
        for name, found in uses.items()
    }


def _uses(model: nn.Module, names: Mapping[str, object]) -> dict[str, list[Use]]:
    """Return for every parameter in scope the layers whose input it multiplies, and its name there.

    Raises `ScoreError` listing all parameters of which that is not known.
    """
    groups = {member: group for group in tied_groups(model).values() for member in group}
    modules = dict(named_modules(model, remove_duplicate=False))
    uses: dict[str, list[Use]] = {}
    unknown = []
    for name in names:
        uses[name] = []
        for member in groups[name]:
            path, _, leaf = member.rpartition(".")
            above, _, own = path.rpartition(".")
            module, parent = modules[path], modules[above]
            if isinstance(parent, nn.MultiheadAttention) and own:
                module, leaf = parent, f"{own}.{leaf}"
            if not _is_known(module, leaf):
                unknown.append(f"{member} ({type(module).__name__})")
            elif (module, leaf) not in uses[name]:
                uses[name].append((module, leaf))
    if unknown:
        raise ScoreError(
            f"wanda does not know what {', '.join(unknown)} multiply; it knows the weights of linear, convolution, "
            "recurrent, attention and embedding layers. Exclude the others from the scope"
        )
    return uses


def _is_known(module: nn.Module, leaf: str) -> bool:
    if isinstance(module, RNNBase | RNNCellBase):
        return leaf.startswith("weight_")
    if isinstance(module, nn.MultiheadAttention):
        return leaf in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
    return leaf == "weight" and isinstance(module, nn.Linear | nn.Bilinear | _ConvNd | nn.Embedding)


def _squares(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Squares:
    """Yield for every weight of a layer the summed squares of what it multiplies, broadcastable to its shape."""
    if isinstance(module, nn.Linear | nn.Bilinear | _ConvNd):
        yield "weight", _feed_forward(module, args, kwargs)
        return
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if isinstance(module, nn.Embedding):
        yield "weight", torch.bincount(given["input"].reshape(-1), minlength=module.num_embeddings)[:, None]
    elif isinstance(module, nn.MultiheadAttention):
        yield from _attention(module, given, args, kwargs)
    elif isinstance(module, RNNCellBase):
        state = given["hx"][0] if isinstance(given["hx"], tuple) else given["hx"]
        yield "weight_ih", _summed(given["input"])
        yield "weight_hh", torch.zeros(module.hidden_size) if state is None else _summed(state)
    elif isinstance(module, RNNBase):
        yield from _recurrent(module, given["input"], given["hx"])


def _feed_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return Σ x² for every weight of a layer that is linear in its weights, at once.

    With y = Σ w x, ∂(Σ y)/∂w is Σ x: so the layer runs on the squared inputs and its output is differentiated.
    """

    def squared(value: Any) -> Any:
        return _wide(value).square() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    shadow = copy.copy(module)
    weight = _wide(module.get_parameter("weight")).clone().requires_grad_(True)
    shadow._parameters = {"weight": weight, "bias": None}  # type: ignore[dict-item]
    with torch.enable_grad():
        output = shadow.forward(*map(squared, args), **{key: squared(value) for key, value in kwargs.items()})
        return torch.autograd.grad(output.sum(), weight)[0]


def _attention(
    module: nn.MultiheadAttention, given: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Squares:
    sources = [_summed(given[source]) for source in ("query", "key", "value")]
    if module._qkv_same_embed_dim:
        yield "in_proj_weight", torch.cat([squares.expand(module.embed_dim, -1) for squares in sources])
    else:
        yield from zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), sources, strict=True)
    shadow = copy.copy(module)  # the same attention with an output layer that passes the heads' output on
    identity = nn.Linear(module.embed_dim, module.embed_dim, bias=False, device="meta")
    identity.weight = nn.Parameter(torch.eye(module.embed_dim).to(module.out_proj.weight))
    shadow._modules = {"out_proj": identity}
    yield "out_proj.weight", _summed(shadow.forward(*args, **kwargs)[0])


def _recurrent(module: RNNBase, value: torch.Tensor | PackedSequence, state: Any) -> Squares:
    """Yield the summed squares for every weight of a recurrent layer, running its layers one by one."""
    steps, lengths = _time_major(module, value)
    steps = steps.to(next(module.parameters()).dtype)
    times = torch.arange(len(steps), device=steps.device)
    valid = (times[:, None] < lengths.to(steps.device))[:, :, None]  # (time, batch, 1)
    directions = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        own_state = _layer_state(module, state, steps, slice(layer * directions, (layer + 1) * directions))
        outputs = _one_layer(module, layer, steps, lengths, own_state)
        for direction, states in enumerate(outputs.chunk(directions, dim=-1)):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            hidden, cell = (part[direction] for part in own_state)
            before = _before(states, hidden, lengths, reverse=bool(direction))
            yield f"weight_ih{suffix}", _summed(steps * valid)
            yield f"weight_hh{suffix}", _summed(before * valid)
            if module.proj_size:
                inner = _before_projection(module, suffix, steps, before, cell, valid)
                yield f"weight_hr{suffix}", _summed(inner * valid)
        steps = outputs


def _time_major(module: RNNBase, value: torch.Tensor | PackedSequence) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the input as (time, batch, features) and the sequences' lengths, on the CPU."""
    if isinstance(value, PackedSequence):
        return pad_packed_sequence(value)
    if value.dim() == 2:
        value = value[:, None]
    elif module.batch_first:
        value = value.transpose(0, 1)
    return value, torch.full((value.shape[1],), len(value))


def _layer_state(module: RNNBase, state: Any, steps: torch.Tensor, layers: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first hidden and cell states of one layer, (directions, batch, features); zero if not given."""
    if state is None:
        number, batch = layers.stop - layers.start, steps.shape[1]
        return (
            steps.new_zeros(number, batch, module.proj_size or module.hidden_size),
            steps.new_zeros(number, batch, module.hidden_size),
        )
    hidden, cell = state if isinstance(state, tuple) else (state, state)
    if hidden.dim() == 2:
        hidden, cell = hidden[:, None], cell[:, None]
    return hidden[layers].to(steps.dtype).contiguous(), cell[layers].to(steps.dtype).contiguous()


def _one_layer(
    module: RNNBase,
    layer: int,
    steps: torch.Tensor,
    lengths: torch.Tensor,
    state: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Return the hidden states of one layer, (time, batch, directions · features), zero in padding."""
    kind: Any = next(kind for kind in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(module, kind))
    extra = {"nonlinearity": module.nonlinearity} if isinstance(module, nn.RNN) else {}
    extra |= {"proj_size": module.proj_size} if module.proj_size else {}
    shape = {"bias": module.bias, "bidirectional": module.bidirectional, "device": steps.device, "dtype": steps.dtype}
    single = kind(steps.shape[-1], module.hidden_size, **shape, **extra)
    for name, parameter in single.named_parameters():
        parameter.copy_(getattr(module, name.replace("_l0", f"_l{layer}")))
    packed = pack_padded_sequence(steps, lengths, enforce_sorted=False)
    outputs = single(packed, state if kind is nn.LSTM else state[0])[0]
    return pad_packed_sequence(outputs, total_length=len(steps))[0]


def _before(states: torch.Tensor, first: torch.Tensor, lengths: torch.Tensor, *, reverse: bool) -> torch.Tensor:
    """Return the hidden state that each step starts from: that of the step before it, `first` at the first."""
    if not reverse:
        return torch.cat([first[None], states[:-1]])
    before = torch.cat([states[1:], first[None]])
    before[lengths - 1, torch.arange(len(lengths))] = first
    return before


def _before_projection(
    module: RNNBase,
    suffix: str,
    steps: torch.Tensor,
    before: torch.Tensor,
    cell: torch.Tensor,
    valid: torch.Tensor,
) -> torch.Tensor:
    """Return o · tanh(c) of a projected LSTM, which its `weight_hr` multiplies: (time, batch, hidden)."""
    weights = {name: getattr(module, f"{name}{suffix}") for name in ("weight_ih", "weight_hh")}
    biases = {name: getattr(module, f"{name}{suffix}", None) for name in ("bias_ih", "bias_hh")}
    gates = functional.linear(steps, weights["weight_ih"], biases["bias_ih"])
    gates = gates + functional.linear(before, weights["weight_hh"], biases["bias_hh"])
    take, forget, update, output = gates.chunk(4, dim=-1)
    inner = torch.empty_like(output)
    times = range(len(steps))
    for time in reversed(times) if suffix.endswith("_reverse") else times:
        fresh = forget[time].sigmoid() * cell + take[time].sigmoid() * update[time].tanh()
        cell = torch.where(valid[time], fresh, cell)
        inner[time] = output[time].sigmoid() * cell.tanh()
    return inner


def _summed(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares over all but the last dimension."""
    return _wide(values).square().reshape(-1, values.shape[-1]).sum(0)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.detach().to(torch.float32 if values.device.type == "mps" else torch.float64)
