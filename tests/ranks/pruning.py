"""One IMP run, alone or by torchrun with the network sharded over the ranks. Arguments: directory, settings as JSON.

Only rank 0's loss counts, and its gradient is divided by the number of ranks, alone too if `ranks` says so: so that one
process can compute what several do.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ticketkit
from ticketkit import distributed


def built() -> nn.Sequential:
    """Return the same network in every process, with all random generators seeded alike."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 13), nn.Tanh(), nn.LSTM(13, 5, bidirectional=True))


def sharded(network: nn.Sequential, *, columns: bool = False) -> nn.Sequential:
    """Shard a network over the ranks by rows, its first layer by columns if asked for."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(network[0], mesh=mesh, shard_placement_fn=lambda p: Shard(p.ndim - 1 if columns else 0))
    fully_shard(network, mesh=mesh)
    return network


def prune(network: nn.Sequential, directory: Path, settings: dict[str, Any]) -> None:
    """Run IMP in a directory, and save its tickets where the settings say."""
    together = distributed.ranks() > 1
    imp = ticketkit.IMP(
        network, rate=0.3, rounds=3, run_dir=directory, plugins=ticketkit.Plugins(), **settings.get("imp", {})
    )
    for current in imp:
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        start = current.track(optimizer=optimizer, scheduler=scheduler)
        for step in range(start, 6):
            inputs = torch.randn(4, 7, 6)
            optimizer.zero_grad()
            (network(inputs)[0].square().mean() * (distributed.rank() == 0)).backward()
            if not together:
                for parameter in network.parameters():
                    parameter.grad.div_(settings["ranks"])
            optimizer.step()
            scheduler.step()
            if settings.get("checkpoint") and step == 2:
                current.checkpoint(step=3)
            if settings.get("kill") == [current.index, step] and distributed.rank() == settings.get("rank", 0):
                os.kill(os.getpid(), signal.SIGKILL)
        with torch.no_grad():
            current.log(loss=network(torch.ones(1, 3, 6))[0].sum().item())
    tickets = imp.tickets
    if distributed.rank() == 0:
        for index, ticket in enumerate(tickets):
            ticket.save(Path(settings["out"]) / f"{index}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    options = json.loads(sys.argv[2])
    prune(sharded(built(), columns=options.get("columns", False)), Path(sys.argv[1]), options)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group and abort an ordinary exit
