"""Going back: what a network was, captured whole and restored bit for bit.

The rewind contract names every part that a training changes. `Snapshot` holds the parts that belong to the network and
its random numbers; the optimizer, its learning-rate schedule and a gradient scaler are rewound by building fresh ones.

| part | what it holds | rewound by |
|---|---|---|
| weights | the parameters in scope | `Snapshot` |
| other_parameters | biases, norms, embeddings and whatever else is out of scope | `Snapshot` |
| buffers | BatchNorm statistics and counters, all persistent and non-persistent buffers | `Snapshot` |
| gradients | cleared to None | `Snapshot` |
| rng | Python's, NumPy's and torch's global generators | `Snapshot` |
| optimizer | moments, learning-rate schedule, scaler | a fresh one each round |
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ticketkit.errors import ScopeError, StorageError
from ticketkit.mask import shape_differences
from ticketkit.rng import RngState
from ticketkit.scope import tied_groups
from ticketkit.storage import canonical_json, write_atomically

CONTRACT = ("weights", "other_parameters", "buffers", "gradients", "rng", "optimizer")


@dataclass(frozen=True)
class Snapshot:
    """Copies of every parameter and buffer of a model on the CPU, and the state of the random generators.

    Keys are `parameter/<name>` (tied parameters once, under the first name) and `buffer/<name>`.
    """

    tensors: Mapping[str, torch.Tensor]
    rng: RngState

    @classmethod
    def capture(cls, model: nn.Module) -> Self:
        """Return a snapshot that shares no memory with the model."""
        tensors = {key: tensor.detach().cpu().clone() for key, tensor in state_tensors(model).items()}
        return cls(tensors, RngState.capture())

    def restore(self, model: nn.Module) -> None:
        """Write every value back in place and clear gradients; parameters and buffers keep their identity.

        Raises `ScopeError` listing every tensor that the model has and the snapshot lacks, or the reverse.
        """
        self.restore_tensors(model)
        self.rng.restore()

    def restore_tensors(self, model: nn.Module) -> None:
        """Do what `restore` does, leaving the random generators alone."""
        live = state_tensors(model)
        expected = {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}
        if problems := shape_differences(expected, {key: tuple(tensor.shape) for key, tensor in live.items()}):
            raise ScopeError(
                f"{type(model).__name__} is not the model this snapshot was taken of:\n  " + "\n  ".join(problems)
            )
        with torch.no_grad():
            for key, tensor in live.items():
                tensor.copy_(self.tensors[key])
        for parameter in model.parameters():
            parameter.grad = None

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return the captured parameters by name."""
        return {key.removeprefix("parameter/"): t for key, t in self.tensors.items() if key.startswith("parameter/")}

    def save(self, path: Path) -> None:
        """Write the snapshot as one safetensors file, whole or not at all, with a digest of its content."""
        tensors = {key: tensor.contiguous() for key, tensor in self.tensors.items()} | self.rng.to_tensors()
        metadata = {"ticketkit": content_digest("snapshot", tensors)}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the snapshot in a file; raises `StorageError` if it is missing or damaged."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"cannot read the snapshot {path}: {error}") from error
        if metadata.get("ticketkit") != content_digest("snapshot", tensors):
            raise StorageError(
                f"the snapshot {path} is damaged: its content does not have the digest it was saved with"
            )
        rng = RngState.from_tensors(tensors)
        return cls({key: tensor for key, tensor in tensors.items() if not key.startswith("rng/")}, rng)


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the live parameters and buffers of a model, tied ones once, under the snapshot's keys."""
    parameters = dict(model.named_parameters())
    tensors: dict[str, torch.Tensor] = {f"parameter/{name}": parameters[name] for name in tied_groups(model)}
    return tensors | {f"buffer/{name}": buffer for name, buffer in model.named_buffers()}


def content_digest(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over a text and the names, dtypes, shapes and bytes of CPU tensors, in hexadecimal."""
    content = hashlib.sha256(header.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        content.update(canonical_json([key, str(tensor.dtype), list(tensor.shape)]).encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
