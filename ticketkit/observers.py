"""Tell observers what happens, and on request check that they only watch."""

import os
from typing import Any

from torch import nn

from ticketkit.errors import PluginError
from ticketkit.plugins import Plugins
from ticketkit.snapshot import Snapshot, same_bits

CHECK = "TICKETKIT_CHECK_OBSERVERS"


def tell(plugins: Plugins, model: nn.Module, event: str, **arguments: Any) -> None:
    """Emit an event; with TICKETKIT_CHECK_OBSERVERS set, raise `PluginError` naming an observer that changed anything.

    Anything: the model's parameters and buffers to the bit, and torch's random generator.
    """
    checking = bool(os.environ.get(CHECK))
    before = Snapshot.capture(model) if checking else None
    for watcher in plugins.watchers(event):
        watcher.tell(**arguments)
        if before is not None and (changed := _changes(before, Snapshot.capture(model))):
            raise PluginError(
                f"{watcher.name} changed {', '.join(changed)} while it watched {watcher.event}; observers only watch"
            )


def _changes(before: Snapshot, after: Snapshot) -> list[str]:
    """Return what differs between two snapshots of one model."""
    changed = [key for key, tensor in after.tensors.items() if not same_bits(tensor, before.tensors[key])]
    if not after.rng.torch_cpu.equal(before.rng.torch_cpu):
        changed.append("the state of torch's random generator")
    return changed
