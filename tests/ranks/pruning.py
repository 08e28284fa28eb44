"""One IMP run: alone, or by torchrun with the network sharded over the ranks. Arguments: directory, settings as JSON.

Only rank 0's loss counts, and its gradient is divided by the number of ranks, alone too if `ranks` says so: so that one
process can compute what several do.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

import ticketkit
from ticketkit import distributed

settings = json.loads(sys.argv[2])
torch.set_num_threads(1)
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(6, 13), nn.Tanh(), nn.LSTM(13, 5, bidirectional=True))
together = "RANK" in os.environ
if together:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    columns = settings.get("columns", False)
    fully_shard(network[0], mesh=mesh, shard_placement_fn=lambda p: Shard(p.ndim - 1 if columns else 0))
    fully_shard(network, mesh=mesh)


def drawn() -> ticketkit.Mask:
    """Return a mask that is another one on every rank."""
    torch.manual_seed(distributed.rank())
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters() if "weight" in name}
    return ticketkit.Mask({name: torch.rand(shape) < 0.9 for name, shape in shapes.items()})


imp = ticketkit.IMP(
    network,
    rate=0.3,
    rounds=3,
    run_dir=sys.argv[1] if sys.argv[1] != "-" else None,
    plugins=ticketkit.Plugins(),
    **({"batches": list, "loss": lambda model, batch: model(batch)} if settings.get("data") else {}),
    **({"mask": drawn()} if settings.get("other_mask") else {}),
    **settings.get("imp", {}),
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
        nn.utils.clip_grad_norm_(network.parameters(), 0.5) if settings.get("clip") else None
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
if together:
    dist.barrier()
    dist.destroy_process_group()
os._exit(0)  # gloo's threads may outlive the group and abort an ordinary exit
