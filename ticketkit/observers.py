"""Tell observers what happens, and on request check that they only watch."""

import os
from typing import Any

from torch import nn

from ticketkit.errors import PluginError
from ticketkit.plugins import Plugins
from ticketkit.snapshot import Snapshot, same_bits

CHECK = "TICKETKIT_CHECK_OBSERVERS"


def tell(plugins: Plugins, model: nn.Module, event: str, **arguments: Any) -> None:
    """Emit an event; with TICKETKIT_CHECK_OBSERVERS set, raise `PluginError` if an observer changed anything.

    Anything: the model's parameters and buffers to the bit, and torch's random generator.
    """
    if not os.environ.get(CHECK):
        plugins.emit(event, **arguments)
        return
    before = Snapshot.capture(model)
    plugins.emit(event, **arguments)
    after = Snapshot.capture(model)
    changed = [key for key, tensor in after.tensors.items() if not same_bits(tensor, before.tensors[key])]
    if not after.rng.torch_cpu.equal(before.rng.torch_cpu):
        changed.append("the state of torch's random generator")
    if changed:
        raise PluginError(
            f"an observer of ticketkit_{event} changed {', '.join(changed)}, but observers only watch; "
            f"those that watch it: {', '.join(plugins.observers(event))}"
        )
