"""P6 and P9: what a pruned network takes while it trains, and how long it takes to rewind one."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from figures import CLOSE, NO_WORSE, Figure, Goal, compared, interleaved, skipped, timed
from gauge import Gauge, available, peak_bytes
from networks import MLP, Holder, described, large_weights
from rivals import hold_with_parametrize, hold_with_prune
from torch import nn

from ticketkit import IMP, Mask, Scope, Snapshot, enforced
from ticketkit.snapshot import state_tensors

Hold = Callable[[nn.Module, Mask], nn.Module]


def training_memory(quick: bool) -> Iterator[Figure]:
    """P6: the highest memory in a pruned round's training above that of a dense one, rewind state included."""
    if not available():
        skipped("P6", "it reads /proc/<pid>/statm, which only Linux has")
        return
    scope = Scope.of(MLP(width(quick), 4))
    prunable = 4 * scope.total
    shape = (
        f"MLP, {scope.total:,} of {scope.model_total:,} weights prunable, batch 32, AdamW, 80 % kept; anonymous memory"
    )
    dense = peak_bytes(train_dense, quick)
    extra = {name: peak_bytes(job, *options, quick) - dense for name, (job, options) in WAYS.items()}
    for ours, most in (("with a run directory", 1.1), ("with a run directory, lean", 0.3)):
        label = f"P6 peak memory in training over dense, {ours}"
        goal = Goal("<=", most, "of the prunable weights")
        yield compared(label, [extra[ours]], {"prunable weights": [prunable]}, shape=shape, goal=goal, unit="bytes")
        for rival in ("prune", "parametrize"):
            theirs = {rival: [extra[rival]]}
            yield compared(label, [extra[ours]], theirs, shape=shape, goal=NO_WORSE, unit="bytes")


def width(quick: bool) -> int:
    """Return the width of the network: 16.8 million prunable weights."""
    return 256 if quick else 2048


def train(model: nn.Module, steps: int = 3) -> None:
    """Train a few steps with an optimizer of its own."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    inputs = torch.randn(32, model.layers[0].in_features)
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).backward()
        optimizer.step()


def train_dense(gauge: Gauge, quick: bool) -> None:
    """Train twice without any mask; measure the second time."""
    train(MLP(8))
    gauge.zero()
    model = MLP(width(quick), 4)
    train(model)
    with gauge:
        train(model)


def train_with_imp(gauge: Gauge, lean: bool, quick: bool) -> None:
    """Measure the training of the first pruned round of an IMP run in a run directory."""

    def run(model: nn.Module, folder: str, train_pruned: Callable[[nn.Module], None]) -> None:
        for current in IMP(model, density=0.8, rounds=1, run_dir=folder, lean=lean):
            (train_pruned if current.index else train)(model)

    def measured(model: nn.Module) -> None:
        with gauge:
            train(model)

    with TemporaryDirectory() as folder:
        run(MLP(8), f"{folder}/warm", train)
        gauge.zero()
        run(MLP(width(quick), 4), f"{folder}/measured", measured)


def train_with_rival(gauge: Gauge, hold: Hold, quick: bool) -> None:
    """Train, prune, put the initial weights back, hold the mask as a rival does; measure the second training."""

    def prepared(model: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        saved = copy.deepcopy(model.state_dict())
        train(model)
        mask = Mask({name: torch.rand(shape) < 0.8 for name, shape in Scope.of(model).shapes.items()})
        model.load_state_dict(saved)
        model.zero_grad()
        return hold(model, mask), saved

    train(prepared(MLP(8))[0])
    gauge.zero()
    model, saved = prepared(MLP(width(quick), 4))
    with gauge:
        train(model)
    del saved  # a later round would go back to it


WAYS: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
    "with a run directory": (train_with_imp, (False,)),
    "with a run directory, lean": (train_with_imp, (True,)),
    "prune": (train_with_rival, (hold_with_prune,)),
    "parametrize": (train_with_rival, (hold_with_parametrize,)),
}


def rewind_time(quick: bool) -> Iterator[Figure]:
    """P9: put a network back to a snapshot on disk and start to hold its mask, against a plain copy of the bytes."""
    weights = large_weights(quick)
    model = Holder(weights)
    mask = Mask({name: torch.rand(shape) < 0.5 for name, shape in Scope.of(model, bare=True).shapes.items()})
    masks = {name: mask[name].float() for name in mask}
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with TemporaryDirectory() as folder:
        path = Path(folder, "snapshot.safetensors")
        Snapshot.capture(model).save(path)
        snapshot = Snapshot.load(path)

        def rewound(lean: bool) -> float:
            with ExitStack() as round_:
                start = time.perf_counter()
                snapshot.restore(model)
                round_.enter_context(enforced(model, mask, lean=lean))
                return time.perf_counter() - start

        def plain_copy() -> None:
            with torch.no_grad():
                for key, tensor in state_tensors(model).items():
                    tensor.copy_(saved[key.partition("/")[2]])

        def reloaded() -> None:
            model.load_state_dict(copy.deepcopy(saved))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.mul_(masks[name])

        contestants = {
            "ours": lambda: rewound(lean=False),
            "ours, lean": lambda: rewound(lean=True),
            "a plain copy": timed(plain_copy),
            "deepcopy + load_state_dict": timed(reloaded),
        }
        seconds = interleaved(contestants, 2 if quick else CLOSE)
    shape = f"{described(weights)}, half pruned; snapshot mapped from disk, in the page cache"
    for ours, mode in (("ours", ""), ("ours, lean", ", lean")):
        label = f"P9 rewind with its mask{mode}"
        copied = {"a plain copy": seconds["a plain copy"]}
        yield compared(label, seconds[ours], copied, shape=shape, goal=Goal("<=", 2, "of a plain copy"))
        rival = {"deepcopy + load_state_dict": seconds["deepcopy + load_state_dict"]}
        yield compared(label, seconds[ours], rival, shape=shape, goal=NO_WORSE)
