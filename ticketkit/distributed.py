"""One mask on every rank: decided by rank 0, broadcast as packed bits, compared by digest."""

import torch
import torch.distributed as dist

from ticketkit.errors import MaskError
from ticketkit.mask import Mask


def agreed(mask: Mask) -> Mask:
    """Return rank 0's mask on every rank of the default process group; without one, or alone in it, the mask itself.

    Ranks may have come to different masks by scores of their own batches or seeds of their own; only rank 0's counts.
    Every rank calls this once a pruning, so that no collective waits for a rank that took another turn. Raises
    `MaskError` naming ranks and digests if the ranks mask different parameters, or hold different bits afterwards.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return mask
    _compare({name: tuple(shape) for name, shape in mask.shapes.items()}, "mask different parameters")
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    bits = {}
    for name in mask:
        packed = torch.frombuffer(bytearray(mask.bits(name) or b"\0"), dtype=torch.uint8).to(device)
        dist.broadcast(packed, src=0)
        bits[name] = bytes(packed.cpu().numpy())[: len(mask.bits(name))]
    decided = Mask.from_bits(mask.shapes, bits, aliases=mask.aliases)
    _compare(decided.digest, "hold different masks after rank 0 broadcast its own")
    return decided


def _compare(mine: object, fault: str) -> None:
    """Raise `MaskError` on every rank unless all ranks have the same value."""
    everyone: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    different = [rank for rank, other in enumerate(everyone) if other != everyone[0]]
    if different:
        raise MaskError(
            f"rank 0 and ranks {different} {fault}: {everyone[0]!r:.200} and {everyone[different[0]]!r:.200}; build "
            "the model and IMP the same way on every rank"
        )
