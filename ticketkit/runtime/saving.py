"""A network for inference in a folder: its tensors in one safetensors file, the form of each layer in `runtime.json`.

Values may be kept in half precision, or as 8-bit integers with a scale for each row. They are computed with in float32;
of 8-bit exports, layers that have kept torch's form compute with integers (`quantising`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ticketkit.errors import ConfigError, StorageError, TicketError
from ticketkit.names import named_buffers, named_parameters
from ticketkit.runtime.choosing import Choice, applied
from ticketkit.runtime.preparing import Structure
from ticketkit.runtime.products import Product
from ticketkit.runtime.quantising import quantised_
from ticketkit.runtime.recurrent import CompactDirection

Dtype = Literal["fp32", "fp16", "int8"]
FORMAT, RESTRUCTURED = 1, 2
"""The second adds what has become of the network's structure; networks that have kept theirs are in the first."""
TENSORS, RUNTIME = "model.safetensors", "runtime.json"
SCALE = ".scale"
LEVELS = 127
WHOLE = Structure()


def save(
    module: nn.Module,
    choices: Mapping[str, Choice],
    directory: Path,
    *,
    structure: Structure = WHOLE,
    dtype: Dtype = "fp32",
) -> None:
    """Write a module whose layers have their forms already, and its structure where that has changed."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in _tensors(module).items():
        tensors |= _stored(name, tensor.detach().cpu(), dtype)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, directory / TENSORS)
    layers = {path: asdict(choice) for path, choice in choices.items()}
    facts = {"format": FORMAT, "dtype": dtype, "layers": layers, "threads": torch.get_num_threads()}
    if structure != WHOLE:
        facts |= {"format": RESTRUCTURED, **structure.facts()}
    (directory / RUNTIME).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def load_(module: nn.Module, directory: Path) -> nn.Module:
    """Give a freshly built module the layers and values that were saved; return it, in evaluation mode.

    Raises `StorageError` for files that are missing or damaged, `TicketError` listing what the module lacks or has too
    much.
    """
    facts = read_facts(directory)
    try:
        stored = load_file(directory / TENSORS)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot read {directory / TENSORS}: {error}") from error
    try:
        choices = {path: Choice(**choice) for path, choice in facts["layers"].items()}
        structure = Structure.read(facts) if facts["format"] == RESTRUCTURED else WHOLE
    except (KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{directory / RUNTIME} is damaged: {error!r}; export the ticket again") from error
    try:
        module = applied(structure.given_to(module), choices)
    except (AttributeError, ConfigError) as error:
        raise TicketError(f"{directory} is an export of another model: {error}") from error
    values = {
        name: _restored(name, stored) for name in stored if name.removesuffix(SCALE) not in stored.keys() - {name}
    }
    live = _tensors(module)
    if values.keys() != live.keys():
        missing, strange = sorted(live.keys() - values.keys()), sorted(values.keys() - live.keys())
        raise TicketError(
            f"{directory} is an export of another model: it lacks {', '.join(missing) or 'nothing'} and has "
            f"{', '.join(strange) or 'nothing'} too much"
        )
    for name, value in values.items():
        _put(module, name, value, live[name])
    for path, layer in module.named_modules():
        if isinstance(layer, Product | CompactDirection):
            try:
                layer.check()
            except ValueError as error:
                raise StorageError(f"{directory / TENSORS} is damaged: {path} has {error}") from error
    module = module.eval().requires_grad_(False)
    return quantised_(module) if facts.get("dtype") == "int8" else module


def read_facts(directory: Path) -> dict[str, Any]:
    """Return what `runtime.json` in a folder says; raises `StorageError` when it cannot be read."""
    path = directory / RUNTIME
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] not in (FORMAT, RESTRUCTURED):
            raise StorageError(
                f"{path} has format {facts['format']}, this ticketkit reads {FORMAT} and {RESTRUCTURED}; update it"
            )
        return facts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"cannot read {path}: {error!r}; export the ticket again") from error


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(named_parameters(module)), **dict(named_buffers(module))}


def _stored(name: str, tensor: Tensor, dtype: Dtype) -> dict[str, Tensor]:
    """Return a tensor as it is written: matrices in the given precision, everything small and integral as it is."""
    large = tensor.is_floating_point() and tensor.numel() > tensor.shape[0] if tensor.dim() > 1 else False
    sparse_values = tensor.is_floating_point() and name.endswith(".values")
    if dtype == "fp32" or not (large or sparse_values):
        return {name: tensor}
    if dtype == "fp16":
        if tensor.numel() and tensor.abs().max() > torch.finfo(torch.float16).max:
            raise ConfigError(f"{name} has values beyond half precision, 65504 at most; use the dtype fp32 or int8")
        return {name: tensor.half()}
    scale = _row_maxima(tensor).clamp(min=1e-12) / LEVELS
    return {name: (tensor / scale).round().clamp(-LEVELS, LEVELS).to(torch.int8), name + SCALE: scale}


def _restored(name: str, stored: Mapping[str, Tensor]) -> Tensor:
    tensor = stored[name]
    if (scale := stored.get(name + SCALE)) is not None:
        return tensor.float() * scale
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _row_maxima(tensor: Tensor) -> Tensor:
    """Return the largest magnitude of each row (of a vector, of all of it), ready to divide by."""
    if tensor.dim() == 1:
        return tensor.abs().amax().reshape(1) if tensor.numel() else tensor.new_ones(1)
    return tensor.abs().flatten(1).amax(1).reshape(-1, *[1] * (tensor.dim() - 1))


def _put(module: nn.Module, name: str, value: Tensor, live: Tensor) -> None:
    """Put a value in the place of a parameter or buffer; of sparse layers the lengths are those of the file."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    varying = isinstance(owner, Product | CompactDirection) and leaf in owner.varying
    if value.shape != live.shape and not varying:
        raise TicketError(f"{name} has the shape {tuple(value.shape)} in the file and {tuple(live.shape)} in the model")
    if leaf in owner._buffers:
        owner._buffers[leaf] = value.to(live.dtype)
        return
    with torch.no_grad():
        live.copy_(value)
