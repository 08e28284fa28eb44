"""How often a forward pass uses each weight: multiply-adds, dense and with zeros skipped."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.nn.utils.rnn import PackedSequence

from ticketkit.names import named_modules


def weight_uses(model: nn.Module, call: Callable[[], object]) -> dict[str, int]:
    """Return how many multiply-adds each weight of a parameter takes part in during `call()`, by parameter name.

    Counted are linear, convolutional, recurrent and attention layers, whose weights are all used equally often; a
    product between activations, as in attention, uses no weight. Parameters of other layers are not in the result.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> weight_uses(net, lambda: net(torch.zeros(5, 3)))
    {'0.weight': 5, '2.weight': 5}
    """
    uses: Counter[str] = Counter()
    with _watched(model, uses), torch.no_grad():
        call()
    return dict(uses)


def multiply_adds(uses: Mapping[str, int], kept: Mapping[str, int]) -> int:
    """Return the multiply-adds of a pass in which only the kept weights of each parameter count."""
    return sum(times * kept[name] for name, times in uses.items())


@contextmanager
def _watched(model: nn.Module, uses: Counter[str]) -> Iterator[None]:
    handles = []
    for path, module in named_modules(model):
        prefix = f"{path}." if path else ""

        def count(module: nn.Module, args: Any, kwargs: Any, output: Any, prefix: str = prefix) -> None:
            for leaf, times in _uses(module, args, kwargs, output).items():
                uses[prefix + leaf] += times

        handles.append(module.register_forward_hook(count, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _uses(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> dict[str, int]:
    """Return the uses of the matrices of one layer in one call."""
    if isinstance(module, nn.Linear):
        return {"weight": output.numel() // module.out_features}
    if isinstance(module, _ConvNd):
        positions = _input(args, kwargs) if module.transposed else output
        channels = module.in_channels if module.transposed else module.out_channels
        return {"weight": positions.numel() // channels}
    if isinstance(module, RNNBase):
        steps = _steps(module, _input(args, kwargs))
        return dict.fromkeys((name for name, p in module.named_parameters() if p.dim() == 2), steps)
    if isinstance(module, RNNCellBase):
        rows = _input(args, kwargs).numel() // module.input_size
        return {"weight_ih": rows, "weight_hh": rows}
    if isinstance(module, nn.MultiheadAttention):
        return _attention_uses(module, args, kwargs)
    return {}


def _input(args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return what torch's layers call `input`, however it was passed."""
    return args[0] if args else kwargs["input"]


def _attention_uses(module: nn.MultiheadAttention, args: Any, kwargs: Mapping[str, Any]) -> dict[str, int]:
    """Return the uses of an attention layer's matrices; it multiplies by `out_proj.weight` without calling `out_proj`.

    The three matrices in `in_proj_weight` count as one with their mean uses, rounded: they differ where keys and
    queries differ in number.
    """
    names = ("query", "key", "value")
    given = [args[place] if place < len(args) else kwargs[name] for place, name in enumerate(names)]
    rows = [tensor.numel() // tensor.shape[-1] for tensor in given]
    used = {"out_proj.weight": rows[0]}
    if module.in_proj_weight is not None:
        return used | {"in_proj_weight": round(sum(rows) / 3)}
    return used | dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), rows, strict=True))


def _steps(module: RNNBase, inputs: Tensor | PackedSequence) -> int:
    if isinstance(inputs, PackedSequence):
        return int(inputs.batch_sizes.sum())
    return inputs.numel() // module.input_size
