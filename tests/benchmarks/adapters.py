"""P17: what an adapter costs in another framework's training step.

Both sides train the same network by the framework's own loop; ours holds a mask of half its weights through the
adapter. A step is the mean, in the processor's seconds, from the end of the first step of a fit to that of its last.
"""

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from tempfile import TemporaryDirectory
from typing import Any

import torch
from figures import Figure, Goal, compared, interleaved, skipped
from networks import BiLSTM
from torch import nn
from torch.utils.data import DataLoader

from ticketkit import Mask, Scope

ROUNDS = 15
GOAL = Goal("<=", 1.02, "of the framework alone")
Build = Callable[[nn.Module, "DataLoader[Any]", Mask | None], Callable[[], float]]
"""Returns what measures a step of a framework that trains a network on batches, with a mask or alone."""


def adapter_steps(quick: bool) -> Iterator[Figure]:
    """P17: a step with half the weights pruned in every framework that is installed."""
    width, frames, steps = (16, 20, 3) if quick else (256, 100, 6)
    network = BiLSTM(width)
    batches = DataLoader([torch.randn(frames, 8, 80) for _ in range(steps)], batch_size=None)
    mask = Mask({name: torch.rand(shape) < 0.5 for name, shape in Scope.of(network).shapes.items()})
    shape = (
        f"BiLSTM-CTC, {Scope.of(network).total:,} weights in scope, half pruned, input ({frames}, 8, 80), fused AdamW"
    )
    for framework, build in FRAMEWORKS.items():
        try:
            contestants = {
                "ours": build(copy.deepcopy(network), batches, mask),
                "alone": build(copy.deepcopy(network), batches, None),
            }
        except (ImportError, OSError, RuntimeError) as error:
            skipped(f"P17 {framework}", error)
            continue
        seconds = interleaved(contestants, 2 if quick else ROUNDS)
        rival = {"alone": seconds["alone"]}
        yield compared(f"P17 training step, {framework}", seconds["ours"], rival, shape=shape, goal=GOAL)


class Clock:
    """Notes the end of every step of a fit."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def tick(self) -> None:
        """Note the end of a step."""
        self.ends.append(time.process_time())

    def mean(self) -> float:
        """Return the seconds of a step after the first, and forget them."""
        ends, self.ends = self.ends, []
        return (ends[-1] - ends[0]) / (len(ends) - 1)


def lightning_step(network: nn.Module, batches: "DataLoader[Any]", mask: Mask | None) -> Callable[[], float]:
    """Return what measures a step of Lightning's automatic optimization."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    from ticketkit.adapters.lightning import TicketCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clock = Clock()

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: torch.Tensor, index: int) -> Any:
            return self.network(batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)

    class Ticks(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            clock.tick()

    module = Module()
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)

    def measure() -> float:
        callbacks = [Ticks()] if mask is None else [TicketCallback(mask, part="network"), Ticks()]
        trainer = Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, callbacks=callbacks, **quiet)
        trainer.fit(module, batches)
        return clock.mean()

    return measure


def speechbrain_step(network: nn.Module, batches: "DataLoader[Any]", mask: Mask | None) -> Callable[[], float]:
    """Return what measures a step of a Brain."""
    from ticketkit.adapters.speechbrain import held
    from ticketkit_asr.torchaudio_shim import torchaudio

    torchaudio()
    import speechbrain

    clock = Clock()

    class Brain(speechbrain.Brain):
        def compute_forward(self, batch: torch.Tensor, stage: Any) -> Any:
            return self.modules.network(batch)

        def compute_objectives(self, loss: torch.Tensor, batch: torch.Tensor, stage: Any) -> torch.Tensor:
            return loss

        def on_fit_batch_end(self, *_: Any) -> None:
            clock.tick()

    def measure() -> float:
        options = {"device": "cpu", "noprogressbar": True}
        brain = Brain({"network": network}, lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True), run_opts=options)
        with nullcontext() if mask is None else held(brain, mask, part="network"):
            brain.fit([1], batches)
        return clock.mean()

    return measure


def trainer_step(network: nn.Module, batches: "DataLoader[Any]", mask: Mask | None) -> Callable[[], float]:
    """Return what measures a step of the Trainer of transformers."""
    from ticketkit_asr.torchaudio_shim import torchaudio

    torchaudio()
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from ticketkit.adapters.transformers import TicketCallback

    clock = Clock()

    class Recogniser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.network(frames)}

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    model, data = Recogniser(), [{"frames": batch} for batch in batches]
    held = None if mask is None else Mask({f"network.{name}": mask[name] for name in mask})
    quiet: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "log_level": "error", "save_strategy": "no"}

    def measure() -> float:
        callbacks = [Ticks()] if held is None else [TicketCallback(held), Ticks()]
        with TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                use_cpu=True,
                num_train_epochs=1,
                per_device_train_batch_size=1,
                optim="adamw_torch_fused",
                **quiet,
            )
            trainer = Trainer(model, arguments, lambda items: items[0], data, callbacks=callbacks)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return clock.mean()

    return measure


def accelerate_step(network: nn.Module, batches: "DataLoader[Any]", mask: Mask | None) -> Callable[[], float]:
    """Return what measures a step of a loop with an Accelerator."""
    from ticketkit.adapters.accelerate import Accelerator, held

    clock, accelerator = Clock(), Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True))

    def measure() -> float:
        with nullcontext() if mask is None else held(accelerator, model, mask, optimizer):
            for batch in batches:
                accelerator.backward(model(batch))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                clock.tick()
        return clock.mean()

    return measure


FRAMEWORKS: dict[str, Build] = {
    "Lightning": lightning_step,
    "SpeechBrain": speechbrain_step,
    "transformers": trainer_step,
    "accelerate": accelerate_step,
}
