"""What networks cost beside their errors: multiply-adds, bytes, and the time of a forward pass, measured."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ticketkit.building import made
from ticketkit.config import RunConfig
from ticketkit.errors import RunError
from ticketkit.experiment import build, read_config
from ticketkit.ledger import Ledger
from ticketkit.macs import weight_uses
from ticketkit.plugins import Plugins
from ticketkit.rng import seeded
from ticketkit.roles import Corpus, ScoringTrainer, Trainer
from ticketkit.storage import write_text_atomically
from ticketkit.ticket import Ticket
from ticketkit.timing import timed

FILE = "costs.json"


@dataclass(frozen=True)
class Costs:
    """What a run's networks cost: `uses` of each weight in one batch, sizes of parameters, and bytes by round."""

    uses: Mapping[str, int]
    sizes: Mapping[str, int]
    bytes: Mapping[int, int]
    """Of a file with the mask and the surviving values of the trained network."""
    dense_bytes: int
    seconds: Mapping[int, float]
    """Of a forward pass over the batch in plain torch, zeros included, by round."""

    @property
    def dense(self) -> int:
        """Multiply-adds of the dense network in the batch."""
        return sum(times * self.sizes[name] for name, times in self.uses.items())

    def share(self, densities: Mapping[str, float]) -> float:
        """Return the multiply-adds that are left when zeros are skipped, as a share of dense."""
        left = sum(times * self.sizes[name] * densities.get(name, 1.0) for name, times in self.uses.items())
        return left / self.dense


def costs(directory: Path, plugins: Plugins, *, rounds: Sequence[int]) -> Costs | None:
    """Return what the networks of a finished run cost, measured once; None if its trainer has no batch to give."""
    path = directory / FILE
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        keyed = {name: {int(key): value for key, value in known[name].items()} for name in ("bytes", "seconds")}
        return Costs(**{**known, **keyed})
    found = _measure(read_config(directory, plugins), directory, plugins, rounds)
    if found is not None:
        write_text_atomically(path, json.dumps(asdict(found), indent=1))
    return found


def _measure(config: RunConfig, directory: Path, plugins: Plugins, rounds: Sequence[int]) -> Costs | None:
    ledger, records = Ledger(directory), Ledger(directory).records()
    with seeded(config.seed):
        bundle = build(config, directory, plugins)
        corpus: Corpus = made(config.chosen(plugins, "corpus"), "corpus")
        trainer: Trainer = made(config.chosen(plugins, "trainer"), "trainer", bundle, corpus, seed=config.seed)
        if not isinstance(trainer, ScoringTrainer):
            return None
        module, batch = bundle.module, next(iter(trainer.scoring_batches()))
        arguments = _captured(module, lambda: trainer.scoring_loss(module, batch))
    module.eval()
    uses = weight_uses(module, lambda: module(*arguments[0], **arguments[1]))
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    forward: dict[int, Callable[[], object]] = {}
    weighed = {}
    for record in records:
        trained = ledger.trained(record)
        weighed[record.index] = _bytes(replace(ledger.ticket(record), weights=trained.tensors))
        if record.index in rounds:
            trained.restore_tensors(module)
            forward[record.index] = _frozen(module, arguments)
    dense_bytes = sum(tensor.numel() * tensor.element_size() for tensor in ledger.trained(records[0]).tensors.values())
    return Costs({name: uses[name] for name in uses if name in sizes}, sizes, weighed, dense_bytes, timed(forward))


def _captured(module: nn.Module, call: Callable[[], object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a call passes to the module."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = module.register_forward_pre_hook(
        lambda module, args, kwargs: found.append((args, kwargs)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            call()
    finally:
        handle.remove()
    if not found:
        raise RunError(f"{type(module).__name__} was not called as a whole, so its forward pass cannot be measured")
    return found[0]


def _frozen(module: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Callable[[], object]:
    """Return a forward pass of the module as it is now."""
    own = deepcopy(module).eval()
    return lambda: own(*arguments[0], **arguments[1])


def _bytes(ticket: Ticket) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ticket.safetensors"
        ticket.save(path, compact=True)
        return path.stat().st_size
