"""The state of every random generator that training draws from, captured, restored and written without pickle."""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from ticketkit.distributed import everyones, rank
from ticketkit.errors import StorageError


@dataclass(frozen=True)
class RngState:
    """The states of Python's, NumPy's and torch's global generators; torch's for the CPU and every CUDA device."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch_cpu: torch.Tensor
    torch_cuda: tuple[torch.Tensor, ...]

    @classmethod
    def capture(cls) -> Self:
        """Return a copy of the present states; reading them changes none."""
        cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else ()
        numpy = np.random.get_state(legacy=True)
        return cls(random.getstate(), tuple(numpy), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Put every generator back to the captured state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(list(self.torch_cuda))

    def same(self, other: "RngState") -> bool:
        """Say whether two states would draw the same numbers."""
        own, others = self.to_tensors(), other.to_tensors()
        return own.keys() == others.keys() and all(tensor.equal(others[key]) for key, tensor in own.items())

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return the states as uint8 tensors, for a safetensors file."""
        version, words, gauss = self.python
        name, keys, *rest = self.numpy
        facts = {
            "python": [version, list(words), gauss],
            "numpy": [str(name), [int(k) for k in keys], *map(_plain, rest)],
        }
        text = torch.frombuffer(bytearray(json.dumps(facts, separators=(",", ":")).encode()), dtype=torch.uint8)
        cuda = {f"rng/cuda/{index}": state for index, state in enumerate(self.torch_cuda)}
        return {"rng/torch": self.torch_cpu, "rng/python_numpy": text, **cuda}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> Self:
        """Return the states that `to_tensors` wrote; raises `StorageError` when they are not there."""
        try:
            facts = json.loads(bytes(tensors["rng/python_numpy"].numpy()))
            cpu = tensors["rng/torch"]
        except (KeyError, ValueError) as error:
            raise StorageError(f"the snapshot holds no generator states ({error}); it was not written whole") from error
        version, words, gauss = facts["python"]
        name, keys, *rest = facts["numpy"]
        devices = sum(key.startswith("rng/cuda/") for key in tensors)
        cuda = tuple(tensors[f"rng/cuda/{index}"] for index in range(devices))
        return cls((version, tuple(words), gauss), (name, np.array(keys, np.uint32), *rest), cpu, cuda)


@dataclass(frozen=True)
class EveryRank:
    """The states of all ranks' generators, that of rank 0 first; only one if they are alike."""

    states: tuple[RngState, ...]

    @classmethod
    def collect(cls, mine: RngState) -> Self:
        """Return what each rank has; all ranks must ask."""
        found = everyones(mine)
        return cls(tuple(found[:1] if all(state.same(found[0]) for state in found) else found))

    @property
    def mine(self) -> RngState:
        """That of this rank; for one that was not there, that of rank 0."""
        return self.states[rank() if rank() < len(self.states) else 0]


def _plain(value: Any) -> int | float:
    return value if isinstance(value, int | float) else value.item()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators inside the block and put them back to what they were afterwards."""
    before = RngState.capture()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        before.restore()


def derived_seed(seed: int, index: int) -> int:
    """Return a generator seed for one round: 63 bits of SHA-256 over the run's seed and the round's index."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big") >> 1
