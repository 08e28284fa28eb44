"""Where a `Trainer` of transformers stands, as a round tracks it, and as the Trainer resumes from it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn
from transformers.trainer_callback import TrainerState

from ticketkit.rng import RngState


@dataclass
class Progress:
    """Where a Trainer stands before its next step: its state, and the generators then and before the epoch's loader."""

    values: dict[str, Any] = field(default_factory=lambda: dict(vars(TrainerState())))
    logged: int = 0
    epoch: RngState = field(default_factory=RngState.capture)
    step: RngState = field(default_factory=RngState.capture)

    def note(self, state: TrainerState) -> None:
        """Take down the present, before a step."""
        self.values, self.logged = dict(vars(state)), len(state.log_history)
        self.step = RngState.capture()

    def state_dict(self) -> dict[str, Any]:
        """Return what was noted."""
        text = json.dumps({**self.values, "log_history": self.values["log_history"][: self.logged]})
        return {"state": text, "epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the generators themselves stay until they are restored."""
        self.values = json.loads(state_dict["state"])
        self.logged = len(self.values["log_history"])
        self.epoch, self.step = state_dict["epoch"], state_dict["step"]


def next_step(progress: Mapping[str, Any]) -> int:
    """Return the `global_step` that a progress, as a round tracks it, stands at."""
    step: int = json.loads(progress["state"])["global_step"]
    return step


def write_checkpoint(folder: Path, model: nn.Module, progress: Mapping[str, Any]) -> None:
    """Write what a Trainer needs to start at a later step: its state, and weights, which the round then puts right."""
    save_model(model, str(folder / "model.safetensors"))
    (folder / "trainer_state.json").write_text(progress["state"], encoding="utf-8")
