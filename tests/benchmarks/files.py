"""P7 and P8: how large masks and tickets are on disk."""

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from figures import NO_WORSE, Figure, Goal, compared
from networks import Weights, deep_speech_2, described
from safetensors.torch import save_file
from selection import ones, pruned_to

from ticketkit import Mask, Ticket

# Sparsity after 1, 3, 7 and 14 rounds of 20 %, and what packed bits may take of the entropy there.
LEVELS = {0.2: 1.4, 0.51: 1.02, 0.79: 1.4, 0.956: 4.2}
COMPACT = 1.05  # what a compact file may take of it everywhere


def mask_files(quick: bool) -> Iterator[Figure]:
    """P7: a ticket without weights, against the entropy of its mask and against masks as tensors."""
    weights = file_weights(quick)
    for sparsity, most in LEVELS.items():
        mask = pruned(weights, sparsity)
        ours, compact = written(Ticket(mask).save), written(partial(Ticket(mask).save, compact=True))
        entropy = {"entropy": [entropy_bytes(mask)]}
        label, shape = f"P7 mask file at {100 * sparsity:g} % sparsity", described(weights)
        for form, size, goal in (("packed", ours, most), ("compact", compact, COMPACT)):
            bound = Goal("<=", goal, "of the entropy")
            yield compared(f"{label}, {form}", [size], entropy, shape=shape, goal=bound, unit="bytes")
        for name, dtype in (("float32 masks", torch.float32), ("bool masks", torch.bool)):
            theirs = written(lambda path, m=mask, d=dtype: save_file({name: m[name].to(d) for name in m}, path))
            yield compared(label, [ours], {name: [theirs]}, shape=shape, goal=NO_WORSE, unit="bytes")


def ticket_files(quick: bool) -> Iterator[Figure]:
    """P8: a whole ticket with its rewind weights, against a dense checkpoint and torch's sparse tensors."""
    weights = file_weights(quick)
    mask = pruned(weights, 0.956)
    ticket = Ticket(mask, {f"parameter/{name}": tensor for name, tensor in weights.items()})
    ours = written(partial(ticket.save, compact=True))
    sizes = {
        "dense checkpoint": written(lambda path: torch.save(weights, path)),
        "torch CSR": written(lambda path: torch.save(in_rows(weights, mask), path)),
    }
    goals = {"dense checkpoint": Goal("<=", 0.06, "of the dense checkpoint"), "torch CSR": NO_WORSE}
    shape = f"{described(weights)}, 95.6 % pruned"
    for rival, size in sizes.items():
        label = "P8 compact ticket with rewind weights at 95.6 % sparsity"
        yield compared(label, [ours], {rival: [size]}, shape=shape, goal=goals[rival], unit="bytes")


def file_weights(quick: bool) -> Weights:
    """Return the weights whose masks are written; sizes grow in proportion."""
    return deep_speech_2(16, 32) if quick else deep_speech_2(384, 1312)


def pruned(weights: Weights, sparsity: float) -> Mask:
    """Return the mask of global magnitude pruning."""
    mask = ones(weights)
    return pruned_to(round((1 - sparsity) * mask.total), weights, mask)


def entropy_bytes(mask: Mask) -> float:
    """Return what no code for independent weights can beat on average: Σ n · H(density) / 8 over the parameters."""
    densities = mask.densities
    return sum(size * binary_entropy(densities[name]) for name, size in mask.sizes.items()) / 8


def binary_entropy(density: float) -> float:
    """Return the entropy in bits of one weight that is kept with probability `density`."""
    return -sum(p * math.log2(p) for p in (density, 1 - density) if p)


def in_rows(weights: Weights, mask: Mask) -> Weights:
    """Return the kept weights as torch's compressed sparse rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return {name: (weights[name] * mask[name]).flatten(1).to_sparse_csr() for name in mask}


def written(save: Callable[[Path], object]) -> int:
    """Return how many bytes a file has that `save` wrote."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "file")
        save(path)
        return path.stat().st_size
