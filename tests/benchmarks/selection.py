"""P1 to P4: one global pruning step, its time, its memory and its exactness."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from figures import CLOSE, NO_WORSE, Figure, Goal, compared, interleaved, skipped, timed
from gauge import Gauge, available, peak_bytes
from networks import Weights, described, large_weights
from torch import nn
from torch.nn.utils import prune

import ticketkit.contenders
from ticketkit import Mask, ScoreInputs, select
from ticketkit.builtin.weight_criteria import magnitude


def ones(weights: Weights) -> Mask:
    """Return the dense mask."""
    return Mask.ones({name: tuple(tensor.shape) for name, tensor in weights.items()})


def pruned_to(keep: int, weights: Weights, mask: Mask) -> Mask:
    """Prune as IMP does it: the built-in criterion, then the selection."""
    return select(magnitude(ScoreInputs(weights, weights, mask, torch.Generator(), keep)), mask, keep)


def our_step(weights: Weights, mask: Mask | None = None) -> Mask:
    """Prune 20 % of what is left with ticketkit."""
    mask = ones(weights) if mask is None else mask
    return pruned_to(round(0.8 * mask.kept), weights, mask)


def prune_step(weights: Weights, masks: Weights | None = None) -> list[nn.Module]:
    """Prune 20 % of what is left with torch.nn.utils.prune; building the modules copies nothing."""
    modules = []
    for name, tensor in weights.items():
        module = nn.Module()
        module.weight = nn.Parameter(tensor)
        if masks is not None:
            prune.custom_from_mask(module, "weight", masks[name])
        modules.append(module)
    prune.global_unstructured([(m, "weight") for m in modules], prune.L1Unstructured, amount=0.2)
    return modules


def topk_step(weights: Weights) -> Weights:
    """Prune 20 % with one torch.topk over all magnitudes."""
    scores = torch.cat([tensor.abs().flatten() for tensor in weights.values()])
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[torch.topk(scores, round(0.8 * len(scores)), sorted=False).indices] = True
    return split(kept, weights)


def partition_step(weights: Weights) -> Weights:
    """Prune about 20 % with one np.partition over all magnitudes; ties go either way."""
    scores = np.concatenate([tensor.abs().flatten().numpy() for tensor in weights.values()])
    dropped = len(scores) - round(0.8 * len(scores))
    return split(torch.from_numpy(scores >= np.partition(scores, dropped)[dropped]), weights)


def split(flat: torch.Tensor, weights: Weights) -> Weights:
    """Return one flat tensor as tensors shaped like the weights."""
    parts = flat.split([tensor.numel() for tensor in weights.values()])
    return {name: part.view_as(tensor) for (name, tensor), part in zip(weights.items(), parts, strict=True)}


STEPS: dict[str, Callable[[Weights], object]] = {
    "ours": our_step,
    "global_unstructured": prune_step,
    "topk": topk_step,
    "np.partition": partition_step,
}


def selection_time(quick: bool) -> Iterator[Figure]:
    """P1: one global 20 % step, against each rival in turn."""
    weights = large_weights(quick)
    for rival, least, rounds in (("global_unstructured", 25, 5), ("topk", 1, 5), ("np.partition", 1, CLOSE)):
        contestants = {name: timed(lambda step=STEPS[name]: step(weights)) for name in ("ours", rival)}
        seconds = interleaved(contestants, 2 if quick else rounds)
        yield compared(
            "P1 global 20 % mask",
            seconds["ours"],
            {rival: seconds[rival]},
            shape=described(weights),
            goal=Goal(">=", least, "times faster"),
        )


def selection_memory(quick: bool) -> Iterator[Figure]:
    """P2: the highest memory of that step above the weights, in fresh processes."""
    if not available():
        skipped("P2", "it reads /proc/<pid>/statm, which only Linux has")
        return
    weights = large_weights(quick)
    size = sum(tensor.nbytes for tensor in weights.values())
    shape = f"{described(weights)}, {size:,} bytes; anonymous memory"
    del weights
    label = "P2 peak extra memory of that step"
    ours = peak_bytes(one_step, "ours", quick)
    goal = Goal("<=", 0.6, "of the weights")
    yield compared(label, [ours], {"the weights": [size]}, shape=shape, goal=goal, unit="bytes")
    for rival in list(STEPS)[1:]:
        theirs = peak_bytes(one_step, rival, quick)
        yield compared(label, [ours], {rival: [theirs]}, shape=shape, goal=NO_WORSE, unit="bytes")


def one_step(gauge: Gauge, name: str, quick: bool) -> None:
    """Take one step inside the gauge, after a tiny one that sets up whatever a first step does."""
    step = STEPS[name]
    step({"w": torch.randn(64, 64)})
    weights = large_weights(quick)
    gauge.zero()
    with gauge:
        result = step(weights)
    del result


def pruned_selection_time(quick: bool) -> Iterator[Figure]:
    """P3: the same step when 95 % are pruned already, against prune's and against our own first."""
    weights = large_weights(quick)
    dense = ones(weights)
    sparse = pruned_to(dense.total // 20, weights, dense)
    masks = {name: sparse[name].float() for name in sparse}
    rivals: dict[str, tuple[Callable[[], object], float, int]] = {
        "global_unstructured": (lambda: prune_step(weights, masks), 4, 5),
        "our first round": (lambda: our_step(weights), 1, CLOSE),
    }
    for rival, (step, least, rounds) in rivals.items():
        contestants = {"ours": timed(lambda: our_step(weights, sparse)), rival: timed(step)}
        seconds = interleaved(contestants, 2 if quick else rounds)
        yield compared(
            "P3 global 20 % mask, 95 % pruned before",
            seconds["ours"],
            {rival: seconds[rival]},
            shape=described(weights),
            goal=Goal(">=", least, "times faster"),
        )


def exactness(quick: bool) -> Iterator[Figure]:
    """P4: the error of the count under heavy ties, and whether anything but the scores decides the mask."""
    size = 200_000 if quick else 12_600_000
    scores = torch.randn(size).bfloat16().abs()
    keep = round(0.2 * size)
    chosen = select({"w": scores}, Mask.ones({"w": (size,)}), keep)
    threshold = scores.float().kthvalue(size - keep + 1).values
    shape = f"{size:,} bfloat16 scores, {scores.unique().numel():,} distinct, 20 % kept"
    yield compared(
        "P4 error of the count under ties",
        [abs(chosen.kept - keep)],
        {"score > threshold": [abs(int((scores > threshold).sum()) - keep)]},
        shape=shape,
        goal=Goal("==", 0, "of the rival"),
        unit="weights",
    )
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    digests = list(digests_of_one_selection(scores, keep, devices))
    yield compared(
        f"P4 different masks over {len(digests)} combinations",
        [len({chosen.digest, *digests})],
        {"one and the same": [1]},
        shape=f"{shape}; threads 1 and 2, four chunk sizes, devices {' and '.join(devices)}",
        goal=Goal("==", 1, "mask"),
        unit="masks",
    )


def digests_of_one_selection(scores: torch.Tensor, keep: int, devices: list[str]) -> Iterator[str]:
    """Yield the digest of the mask for every thread count, chunk size and device; leave the settings as they were."""
    mask = Mask.ones({"w": tuple(scores.shape)})
    chunk, threads = ticketkit.contenders.CHUNK, torch.get_num_threads()
    try:
        for device, count, size in itertools.product(devices, (1, 2), (chunk, 1 << 12, 1 << 16, 1 << 20)):
            torch.set_num_threads(count)
            ticketkit.contenders.CHUNK = size
            yield select({"w": scores.to(device)}, mask, keep).digest
    finally:
        ticketkit.contenders.CHUNK = chunk
        torch.set_num_threads(threads)
