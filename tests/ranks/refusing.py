"""Run by torchrun: what a network on several ranks cannot do is refused on each of them."""

import os

import pytest
import torch
import torch.distributed as dist
from pruning import built, sharded

import ticketkit
from ticketkit import IMP, ConfigError, Mask, MaskError, Plugins, ScopeError
from ticketkit.sharding import Part

torch.set_num_threads(1)
dist.init_process_group("gloo")
network = sharded(built())

with pytest.raises(ConfigError, match="rewind='reinit' draws fresh weights module by module"):
    IMP(network, rounds=1, rewind="reinit", plugins=Plugins())
with pytest.raises(ConfigError, match="run the whole network in one process, and this one is distributed"):
    IMP(network, rounds=1, batches=list, loss=lambda model, batch: model(batch), plugins=Plugins())

torch.manual_seed(dist.get_rank())
shapes = ticketkit.Scope.of(network).shapes
drawn = Mask({name: torch.rand(shape) < 0.9 for name, shape in shapes.items()})
with pytest.raises(MaskError, match=r"rank 0 and ranks \[1\] hold different masks, first at '0.weight'"):
    next(iter(IMP(network, rounds=1, mask=drawn, plugins=Plugins())))

for name, settings in {"plan": ({"rate": 0.3}, {"rate": 0.5}), "criterion": ({}, {"criterion": "lamp"})}.items():
    with pytest.raises(ConfigError, match=rf"rank 0 and ranks \[1\] run with different settings, first at '{name}'"):
        next(iter(IMP(network, rounds=1, plugins=Plugins(), **settings[dist.get_rank()])))
run_dir = {} if dist.get_rank() else {"run_dir": "nowhere"}
with pytest.raises(ConfigError, match="different settings, first at 'a run_dir': True and False"):
    next(iter(IMP(network, rounds=1, plugins=Plugins(), **run_dir)))

copies = built()  # a whole network on every rank, as under DDP
if dist.get_rank() == 1:
    copies[0].weight.data[0, 0] = torch.nan
with pytest.raises(ticketkit.TicketkitError, match=r"rank 1: score of parameter '0\.weight' is nan"):
    list(IMP(copies, rounds=1, plugins=Plugins()))

weight = network[0].weight
partial = type(weight).from_local(torch.ones(2, 2), weight.device_mesh, [torch.distributed.tensor.Partial()])
with pytest.raises(ScopeError, match="shard parameters in rows or columns"):
    Part.of(partial)

with torch.no_grad():
    network(torch.ones(1, 2, 6))  # leaves the outermost parameters whole, in views that nothing writes back
ticket = ticketkit.Ticket(Mask({name: torch.rand(shape) < 0.5 for name, shape in shapes.items()}))
ticket.apply_(network)
ticket.verify(network)
if dist.get_rank() == 1:
    ticketkit.sharding.local(network[0].weight).data.fill_(1.0)
with pytest.raises(ticketkit.TicketError, match=r"rank 1: .*pruned weights that are not zero: 0\.weight"):
    ticket.verify(network)

print("refused", flush=True)
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads may outlive the group and abort an ordinary exit
