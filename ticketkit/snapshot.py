"""What a training has come to, captured whole and restored bit for bit: network, random numbers, training state."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parameter import is_lazy

from ticketkit.distributed import collect, rank, ranks
from ticketkit.errors import ScopeError, StorageError
from ticketkit.mask import shape_differences
from ticketkit.names import named_buffers, named_parameters
from ticketkit.rng import EveryRank, RngState
from ticketkit.scope import tied_groups
from ticketkit.sharding import resharded, write_
from ticketkit.state import Stateful, collected, copied, flattened, unflattened
from ticketkit.storage import canonical_json, write_atomically


@dataclass(frozen=True)
class Snapshot:
    """Copies of every parameter and buffer of a model on the CPU, and the state of the random generators.

    Keys are `parameter/<name>` (tied parameters once, under the first name) and `buffer/<name>`. `training` holds the
    states of an optimizer and whatever else a loop tracks, by the name it gave them. A tensor that is distributed over
    ranks is captured so, each part where it is; in a file it is whole, and any number of ranks can restore it. `rng` is
    this rank's; `others` are those of ranks 1, 2, … in a snapshot that rank 0 writes for all.
    """

    tensors: Mapping[str, torch.Tensor]
    rng: RngState
    training: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[RngState, ...] = ()

    @classmethod
    def capture(cls, model: nn.Module, tracked: Mapping[str, Stateful] | None = None) -> Self:
        """Return a snapshot that shares no memory with the model or the tracked objects."""
        live = state_tensors(model)
        if lazy := [key.partition("/")[2] for key, tensor in live.items() if is_lazy(tensor)]:
            raise ScopeError(f"{', '.join(lazy)}: not initialised yet; run the model once on a batch first")
        tensors = {key: copied(tensor) for key, tensor in live.items()}
        training = {name: copied(thing.state_dict()) for name, thing in (tracked or {}).items()}
        return cls(tensors, RngState.capture(), training)

    def with_training(self, name: str, thing: Stateful) -> Self:
        """Return the same snapshot with the present state of one more tracked object."""
        return replace(self, training={**self.training, name: copied(thing.state_dict())})

    def restore(self, model: nn.Module) -> None:
        """Write every value back in place and clear gradients; parameters and buffers keep their identity.

        Raises `ScopeError` listing every tensor that the model has and the snapshot lacks, or the reverse.
        """
        self.restore_tensors(model)
        self.rng.restore()

    def restore_tensors(self, model: nn.Module, keys: Collection[str] | None = None) -> None:
        """Do what `restore` does, for all tensors or those of the given keys, leaving the random generators alone."""
        live = state_tensors(model)
        expected = {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}
        if problems := shape_differences(expected, {key: tuple(tensor.shape) for key, tensor in live.items()}):
            raise ScopeError(
                f"{type(model).__name__} is not the model this snapshot was taken of:\n  " + "\n  ".join(problems)
            )
        for key, tensor in live.items():
            if keys is None or key in keys:
                write_(tensor, self.tensors[key])
        for parameter in model.parameters():
            parameter.grad = None

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return the captured parameters by name."""
        return {key.removeprefix("parameter/"): t for key, t in self.tensors.items() if key.startswith("parameter/")}

    def collected(self) -> Self:
        """Return what rank 0 can write: whole tensors, and every rank's generators; all ranks must ask for it."""
        if ranks() == 1:
            return self
        first, *others = EveryRank.collect(self.rng).states
        return replace(
            self,
            tensors={key: collect(tensor) for key, tensor in self.tensors.items()},
            training=collected(self.training),
            rng=first,
            others=tuple(others),
        )

    def save(self, path: Path) -> None:
        """Write the snapshot as one safetensors file, whole or not at all, with a digest of its content."""
        tensors = {key: tensor.contiguous() for key, tensor in self.tensors.items()} | self.rng.to_tensors()
        for number, state in enumerate(self.others, start=1):
            tensors |= {f"rank/{number}/{key}": tensor for key, tensor in state.to_tensors().items()}
        skeleton = {name: flattened(state, f"training/{name}", tensors) for name, state in self.training.items()}
        training = canonical_json(skeleton)
        metadata = {"ticketkit": canonical_json([content_digest(f"snapshot{training}", tensors), training])}
        separate = _unshared(tensors)
        write_atomically(path, lambda temporary: save_file(separate, temporary, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the snapshot in a file, mapped into memory; raises `StorageError` if it is missing or damaged."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            tensors = load_file(path)
            digest, training = json.loads(metadata.get("ticketkit", "[null, null]"))
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise StorageError(f"cannot read the snapshot {path}: {error}") from error
        if digest != content_digest(f"snapshot{training}", tensors):
            raise StorageError(
                f"the snapshot {path} is damaged: its content does not have the digest it was saved with"
            )
        states = {name: unflattened(skeleton, tensors) for name, skeleton in json.loads(training).items()}
        network = {key: tensor for key, tensor in tensors.items() if key.startswith(("parameter/", "buffer/"))}
        here = f"rank/{rank()}/"
        own = {key.removeprefix(here): tensor for key, tensor in tensors.items() if key.startswith(here)}
        return cls(network, RngState.from_tensors(own or tensors), states)


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the live parameters and buffers of a model, tied ones once, under the snapshot's keys."""
    parameters = dict(named_parameters(resharded(model)))
    tensors: dict[str, torch.Tensor] = {f"parameter/{name}": parameters[name] for name in tied_groups(model)}
    return tensors | {f"buffer/{name}": buffer for name, buffer in named_buffers(model, wrappers=False)}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Say whether two tensors have the same dtype, shape and bytes: -0.0 differs from 0.0, NaN equals itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def content_digest(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over a text and the names, dtypes, shapes and bytes of CPU tensors, in hexadecimal."""
    content = hashlib.sha256(header.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        content.update(canonical_json([key, str(tensor.dtype), list(tensor.shape)]).encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors, copied where two share one storage, which safetensors refuses."""
    seen: set[int] = set()
    separate = {}
    for key, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        separate[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return separate
