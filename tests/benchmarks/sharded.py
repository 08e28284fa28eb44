"""P18: a selection over weights that two ranks share, against one rank that has them all, and its memory.

Run by torchrun, it is one of the ranks: `sharded.py network|memory QUICK`. Rank 0 prints what it measured as JSON.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from figures import CLOSE, Figure, Goal, compared
from networks import described, large_weights
from selection import ones, pruned_to

from ticketkit import Mask
from ticketkit.distributed import AllRanks, Array

RANKS = 2
LARGE = {f"w{index}": (8, 31_250, 1000) for index in range(4)}  # 10⁹ weights


def sharded_selection(quick: bool) -> Iterator[Figure]:
    """P18: the time of a global 20 % step over two ranks, and what it takes in memory at 10⁹ weights."""
    found = _on_ranks("network", quick)
    yield compared(
        "P18 global 20 % mask over 2 ranks",
        found["ours"],
        {"one rank with all weights": found["alone"]},
        shape=f"{described(large_weights(quick))}; each rank sends {found['sent']:,} bytes, the mask of "
        f"{found['mask']:,} included",
        goal=Goal("<=", 1.0, "of one rank"),
    )
    found = _on_ranks("memory", quick)
    yield compared(
        "P18 peak extra memory of a rank",
        found["peak"],
        {"its weights": found["weights"]},
        shape=f"{found['total']:,} float32 weights over {RANKS} ranks, {found['seconds']:.1f} s; each sends "
        f"{found['sent']:,} bytes, the mask of {found['mask']:,} included",
        goal=Goal("<=", 0.6, "of the weights"),
        unit="bytes",
    )


def _on_ranks(what: str, quick: bool) -> dict[str, Any]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    command = [sys.executable, *torchrun, __file__, what, "quick" if quick else ""]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


class Counted(AllRanks):
    """The process group, with a count of the bytes that this rank hands over."""

    sent = 0

    def summed(self, counts: Array) -> Array:
        """Return the sum over all ranks."""
        self.sent += counts.nbytes
        return super().summed(counts)

    def joined(self, values: Array) -> Array:
        """Return all ranks' values."""
        self.sent += values.nbytes
        return super().joined(values)


def network(quick: bool, ranks: Counted) -> dict[str, Any]:
    """Let rank 0 do the step alone, then both together, in turns."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.manual_seed(0)
    weights = large_weights(quick)
    mesh = init_device_mesh("cpu", (RANKS,))
    shared = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in weights.items()}
    mask = ones(weights)
    seconds: dict[str, list[float]] = {"alone": [], "ours": []}
    for _ in range(2 if quick else CLOSE):
        for name, tensors in (("alone", weights), ("ours", shared)):
            dist.barrier()
            if name == "ours" or dist.get_rank() == 0:
                ranks.sent, started = 0, time.perf_counter()
                found = pruned_to(round(0.8 * mask.total), tensors, mask)
                seconds[name].append(time.perf_counter() - started)
    if found != pruned_to(round(0.8 * mask.total), weights, mask):
        raise RuntimeError("two ranks have found another mask than one")
    return {**seconds, "sent": ranks.sent, "mask": sum(len(mask.bits(name)) for name in mask)}


def memory(quick: bool, ranks: Counted) -> dict[str, Any]:
    """Do the step over weights of which no rank has more than its share, and read the kernel's highest mark."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (RANKS,))
    shapes = dict.fromkeys(LARGE, (8, 8, 8)) if quick else LARGE
    torch.manual_seed(dist.get_rank())
    weights = {
        name: DTensor.from_local(torch.randn(shape[0] // RANKS, *shape[1:]), mesh, [Shard(0)])
        for name, shape in shapes.items()
    }
    mask = Mask.ones(shapes)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark goes back to what is there now
    before, started = _mark(), time.perf_counter()
    chosen = pruned_to(round(0.8 * mask.total), weights, mask)
    seconds, after = time.perf_counter() - started, _mark()
    if chosen.kept != round(0.8 * mask.total):
        raise RuntimeError(f"{chosen.kept} weights were kept")
    return {
        "peak": [after - before],
        "weights": [4 * mask.total // RANKS],
        "total": mask.total,
        "seconds": seconds,
        "sent": ranks.sent,
        "mask": sum(len(mask.bits(name)) for name in mask),
    }


def _mark() -> int:
    """Return the most memory that this process has had since the mark was put back, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def main() -> None:
    """Measure as one of the ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    counted = Counted()
    import ticketkit.contenders

    ticketkit.contenders.ALL_RANKS = counted
    found = {"network": network, "memory": memory}[sys.argv[1]](sys.argv[2] == "quick", counted)
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group and abort an ordinary exit


if __name__ == "__main__":
    main()
