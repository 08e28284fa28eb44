"""Which form each layer gets: by decree, or by measuring all that could pay on this machine."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ticketkit.errors import ConfigError
from ticketkit.names import named_modules
from ticketkit.runtime.attention import Attention
from ticketkit.runtime.layers import matrices, stand_in, unsupported
from ticketkit.runtime.products import BLOCK, Form, zero_rows_and_columns
from ticketkit.timing import timed

Runtime = Literal["auto", "dense", "sparse", "compact"]
LEAST_GAIN = 0.95
"""A form must take less than this share of the dense layer's time: what is measured as equal stays dense."""
WORTH_CSR, WORTH_BSR, WORTH_COMPACT = 0.6, 0.5, 0.95
"""Tried are CSR up to this density, BSR from this share of values in its blocks, compact up to this share of size."""

READ = "torch reads its weights in the fused path of nn.TransformerEncoderLayer"


@dataclass(frozen=True)
class Choice:
    """The form of one layer: why, its density, and the seconds that each form took, where they were measured."""

    form: Form
    density: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    left_dense: str | None = None
    """Why a pruned layer has no other form."""


def choose(
    module: nn.Module,
    runtime: Runtime,
    example: tuple[Any, ...] | None = None,
    named: Mapping[str, Any] | None = None,
) -> dict[str, Choice]:
    """Return a choice for each layer with a matrix, by its path; the module is left as it is.

    `auto` measures on what each layer gets when the module is called with the `example`, and needs one (`named` are
    arguments by name). `sparse` and `compact` decree CSR and compaction wherever something is pruned; `dense` changes
    nothing.
    """
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        return _chosen(module, runtime, example, named or {})
    finally:
        for child, mode in modes.items():
            child.training = mode


def _chosen(
    module: nn.Module, runtime: Runtime, example: tuple[Any, ...] | None, named: Mapping[str, Any]
) -> dict[str, Choice]:
    layers = {path: layer for path, layer in named_modules(module) if matrices(layer)}
    densities = {path: density_of(layer) for path, layer in layers.items()}
    pruned = {path: layer for path, layer in layers.items() if densities[path] < 1}
    reasons = {path: reason for path, layer in pruned.items() if (reason := unsupported(layer)) is not None}
    reasons |= dict.fromkeys(pruned.keys() & read_by_their_owner(module), READ)
    decided: dict[str, Choice] = {
        path: Choice("dense", densities[path], left_dense=reasons.get(path)) for path in layers
    }
    open_to = {path: layer for path, layer in pruned.items() if path not in reasons}
    if runtime == "dense":
        return decided
    if runtime == "auto":
        if example is None:
            raise ConfigError("runtime 'auto' measures each layer, so it needs example inputs of the module")
        inputs = captured(module, example, open_to, named)
        for path, layer in open_to.items():
            if path in inputs:
                decided[path] = measured(layer, inputs[path])
            else:
                decided[path] = Choice("dense", densities[path], left_dense="the example does not call it")
        return decided
    form: Form = "csr" if runtime == "sparse" else "compact"
    fitting = [path for path, layer in open_to.items() if form == "csr" or compact_share(layer) < 1]
    return decided | {path: Choice(form, densities[path]) for path in fitting}


def measured(layer: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Choice:
    """Return the fastest form of a layer for some inputs; dense unless another is clearly faster."""
    args, kwargs = inputs
    candidates: dict[str, Callable[[], object]] = {"dense": lambda: layer(*args, **kwargs)}
    for form in _worth_trying(layer):
        candidates[form] = _call(stand_in(layer, form), args, kwargs)
    seconds = timed(candidates, repeats=9)
    fastest: Any = min(seconds, key=lambda form: seconds[form])
    chosen: Form = fastest if seconds[fastest] < LEAST_GAIN * seconds["dense"] else "dense"
    return Choice(chosen, density_of(layer), seconds)


def applied(module: nn.Module, choices: Mapping[str, Choice]) -> nn.Module:
    """Replace the layers of a module that have a form other than dense, in place; return the module.

    A module that is such a layer itself is returned as its stand-in.
    """
    for path, choice in choices.items():
        if choice.form == "dense":
            continue
        parent, _, leaf = path.rpartition(".")
        made = stand_in(module.get_submodule(path), choice.form)
        if not path:
            return made
        setattr(module.get_submodule(parent), leaf, made)
    return module


def read_by_their_owner(module: nn.Module) -> set[str]:
    """Return the paths of layers whose weights torch reads past them: those of its fused Transformer encoder."""
    owners = [
        path
        for path, owner in named_modules(module)
        if isinstance(owner, nn.TransformerEncoderLayer) and not isinstance(owner.self_attn, Attention)
    ]
    prefixes = tuple(f"{path}." if path else "" for path in owners)
    return {path for path, _ in named_modules(module) if prefixes and path.startswith(prefixes)}


def _worth_trying(layer: nn.Module) -> list[Form]:
    density, forms = density_of(layer), list[Form]()
    if density <= WORTH_CSR:
        forms.append("csr")
        if _fill(layer) >= WORTH_BSR:
            forms.append("bsr")
    if compact_share(layer) <= WORTH_COMPACT:
        forms.append("compact")
    return forms


def density_of(layer: nn.Module) -> float:
    """Return the share of a layer's weights that are not zero."""
    found = matrices(layer).values()
    return sum(int(matrix.count_nonzero()) for matrix in found) / sum(matrix.numel() for matrix in found)


def _fill(layer: nn.Module) -> float:
    """Return the share of values that are not zero in the blocks that are not all zero."""
    values = places = 0
    for matrix in matrices(layer).values():
        pad = (0, -matrix.shape[1] % BLOCK, 0, -matrix.shape[0] % BLOCK)
        blocks = nn.functional.pad(matrix != 0, pad).unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK)
        values += int(blocks.sum())
        places += BLOCK * BLOCK * int(blocks.any(-1).any(-1).sum())
    return values / places if places else 1.0


def compact_share(layer: nn.Module) -> float:
    """Return the size of the matrices without their zero rows and columns, as a share of their size."""
    left = total = 0
    for matrix in matrices(layer).values():
        rows, columns = zero_rows_and_columns(matrix)
        left += (matrix.shape[0] - rows) * (matrix.shape[1] - columns)
        total += matrix.numel()
    return left / total


def captured(
    module: nn.Module, example: tuple[Any, ...], layers: Mapping[str, nn.Module], named: Mapping[str, Any]
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return what each layer is called with first when the module is called with an example."""
    found: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: found.setdefault(path, (args, kwargs)) and None

    handles = [layer.register_forward_pre_hook(note(path), with_kwargs=True) for path, layer in layers.items()]
    try:
        with torch.no_grad(), _unnested(module):
            module(*example, **named)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def _unnested(module: nn.Module) -> Iterator[None]:
    """Let torch's encoders hand on plain tensors, which every layer takes."""
    encoders = [layer for _, layer in named_modules(module) if isinstance(layer, nn.TransformerEncoder)]
    nested = [encoder.use_nested_tensor for encoder in encoders]
    try:
        for encoder in encoders:
            encoder.use_nested_tensor = False
        yield
    finally:
        for encoder, flag in zip(encoders, nested, strict=True):
            encoder.use_nested_tensor = flag


def _call(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Tensor]:
    return lambda: layer(*args, **kwargs)
